"""supervisor.processes.spare: adopted with all that a worker of its own has, replaced, dropped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from supervisor.errors import WorkerCrashed
from supervisor.processes.launcher import InstalledCode, Launcher
from supervisor.processes.spare import Spare, SpareState, is_calm
from supervisor.processes.worker import ExitCallbacks, WorkerProcess
from supervisor.scheduler.model import Limits, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.wire import frames
from tests.helpers.children import ROOT
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.fakes.worker import EAGER, SPAWN_DEED
from tests.helpers.serving import DEADLINE, Deadline, Server, alive, gate, serving
from tests.helpers.tiny_llama import make_llama
from tests.process.test_memory import pressed

SPARE = "[memory]\nspare = true\n"


def config_for(*folders: Path, extra: str = "") -> str:
    tables = "".join(f'[models.{folder.name}]\nsource = "{folder}"\n' for folder in folders)
    return f"[server]\nport = 0\n{SPARE}{tables}{extra}"


def wait_for_spare(server: Server, wanted: str) -> None:
    """Return once the spare is that."""
    deadline = Deadline()
    while (now := server.health()["memory"]["spare"]) != wanted:
        deadline.check(f"the spare to be {wanted}, it is {now}")


def recorded(server: Server) -> dict[str, int]:
    """Pids of all children by role."""
    children = json.loads((server.state / "children.json").read_text())["children"]
    return {child["role"]: child["pid"] for child in children}


def ready_spare(server: Server) -> int:
    """The pid of the spare, once it is ready."""
    wait_for_spare(server, "ready")
    server.see_children()
    return recorded(server)["spare"]


def files(server: Server, pattern: str) -> list[str]:
    return sorted(path.name for path in (server.state / "logs").glob(pattern))


# ── in a server ──────────────────────────────────────────────────────────────────────────────────


def test_loads_and_a_recovery_get_the_spare_and_all_that_belongs_to_it(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        script = Script(gates={"decode": str(stop.path)}, deeds={"decode": "abort"})
        model = script.write(tmp_path / "m")
        own = Script(generations=()).write(tmp_path / "own")
        config = config_for(model, own, extra='env = { A = "b" }\n')
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            first = ready_spare(server)
            assert [name[-7:] for name in files(server, "spare.*")] == [".stderr", ".stdout"]

            # A model with an environment of its own does not get it.
            assert server.chat("own", max_tokens=1).text == text_of(1)
            assert server.loaded("own")["pid"] != first == ready_spare(server)

            running = server.stream("m", max_tokens=8)
            stop.arrived()
            running.saw("w2 ")
            assert server.loaded("m")["pid"] == recorded(server)["worker m#1"] == first
            if sys.platform == "linux":
                niceness = os.getpriority(os.PRIO_PROCESS, server.process.pid)
                threads = [thread.id for thread in psutil.Process(first).threads()]
                assert {os.getpriority(os.PRIO_PROCESS, each) for each in threads} == {niceness}

            second = ready_spare(server)
            stop.open()
            assert running.answer().text == text_of(8)
            assert running.answer().events[-1] == "[DONE]"
            assert (server.loaded("m")["pid"], server.loaded("m")["generation"]) == (second, 2)

            assert "Fatal Python error: Aborted" in server.worker_log("m")
            stderr = files(server, "worker.m.*.1.stderr")
            assert len(stderr) == len(files(server, "worker.m.*.1.stdout")) == 1
            report = server.loaded("m")["last_crash"]["id"]
            crash = server.request("GET", f"/admin/crashes/{report}").json
            assert crash["pid"] == first
            assert Path(crash["stderr_file"]).name == stderr[0]
            assert "Fatal Python error: Aborted" in crash["stacks"]
            assert not alive(first)


def test_death_of_a_spare_is_no_models_and_another_one_comes(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        first = ready_spare(server)
        os.kill(first, signal.SIGSEGV)
        wait_for_spare(server, "waiting")
        assert server.chat("m", max_tokens=1).text == text_of(1)
        assert ready_spare(server) not in (first, server.loaded("m")["pid"])
        assert server.loaded("m")["deaths"] == 0
        assert f"pid {first} died (SIGSEGV)" in server.log()
        assert server.request("GET", "/admin/crashes").json == {"crashes": []}
        last = ready_spare(server)
        assert server.stop() == 0  # and `serving` sees that no process is left
        assert f"the spare worker, pid {last}, has ended" in server.log()


def test_spare_that_dies_with_its_load_is_that_loads_death(tmp_path: Path) -> None:
    model = Script(deeds={"load": "abort"}).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        first = ready_spare(server)
        assert server.chat("m", max_tokens=2).text == text_of(2)
        assert server.loaded("m")["deaths"] == 1
        assert server.loaded("m")["pid"] != first


def test_spare_goes_first_when_memory_is_short(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with pressed(tmp_path, config_for(model)) as (server, machine):
        spare = ready_spare(server)
        memory = server.health()["memory"]
        assert memory["charged_bytes"] == memory["reserved_bytes"] > 150 * 10**6
        machine.use(96)
        wait_for_spare(server, "waiting")
        deadline = Deadline()
        while alive(spare):
            deadline.check("the spare to end")


def test_real_spare_serves_like_any_worker(tmp_path: Path) -> None:
    """Among others: what it has imported on one thread works on another."""
    folders = [make_llama(tmp_path / name, seed=5) for name in ("m", "own")]
    body = {"prompt": "Tell me", "max_tokens": 40, "temperature": 0}
    config = config_for(*folders, extra='env = { A = "b" }\n')
    environ = {EAGER: "1"}
    with serving(tmp_path / "s", scripted=True, config=config, environ=environ) as server:
        spare = ready_spare(server)
        answers = [
            server.request("POST", "/v1/completions", {**body, "model": model}).json["choices"]
            for model in ("own", "m")
        ]
        assert answers[0] == answers[1]
        assert server.loaded("m")["pid"] == spare != server.loaded("own")["pid"]


# ── by itself ────────────────────────────────────────────────────────────────────────────────────


class Stage:
    """A spare whose processes are real, and scripted by their environment."""

    def __init__(self, folder: Path, launcher: Launcher, environ: dict[str, str]) -> None:
        self.started: list[WorkerProcess] = []
        self.changed = asyncio.Event()
        self._folder, self._launcher, self._environ = folder, launcher, environ
        self.spare = Spare(self._start, self.changed.set, backoff=(0.0, 0.0))

    def _start(self, callbacks: ExitCallbacks) -> WorkerProcess:
        process = WorkerProcess(
            self._launcher,
            "tests.helpers.fakes.worker",
            "spare",
            self._folder / f"spare.{len(self.started)}",
            callbacks,
            arguments=["--spare"],
            environ=self._environ,
        )
        self.started.append(process)
        return process

    def maintain(self, *, calm: bool = True, later: float = 0.0) -> None:
        self.spare.maintain(asyncio.get_running_loop().time() + later, calm=calm)

    async def ready(self) -> WorkerProcess:
        """A spare that is ready, and not taken."""
        self.maintain()
        assert self.spare.startup is not None
        await self.spare.startup
        assert self.spare.state is SpareState.READY
        assert self.spare.process is not None
        return self.spare.process


Scenario = Callable[[Stage], Awaitable[None]]


@contextmanager
def launching() -> Iterator[Launcher]:
    lifeline, held = os.pipe()
    yield Launcher("test", lifeline, {**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(held)
    os.close(lifeline)


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    def run(scenario: Scenario, **environ: str) -> None:
        async def whole(launcher: Launcher) -> None:
            stage = Stage(tmp_path, launcher, environ)
            stage.spare.enable()
            try:
                async with asyncio.timeout(DEADLINE):
                    await scenario(stage)
            finally:
                stage.spare.disable()
                for process in stage.started:
                    process.child.signal(signal.SIGKILL)
                    await process.gone.wait()
                    if process.channel is not None:
                        process.channel.close()

        with launching() as launcher:
            asyncio.run(whole(launcher))

    return run


def test_one_at_most_and_only_when_it_is_calm(play: Callable[..., None]) -> None:
    async def scenario(stage: Stage) -> None:
        stage.maintain(calm=False)
        assert stage.started == []
        assert stage.spare.take() is None
        stage.maintain()
        stage.maintain()
        assert len(stage.started) == 1
        assert stage.spare.take() is None  # it imports

    play(scenario)


def test_files_that_change_while_it_imports_make_it_useless(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have half of each version."""

    async def scenario(stage: Stage) -> None:
        monkeypatch.setattr(InstalledCode, "is_same", lambda self, home: False)
        stage.maintain()
        assert stage.spare.startup is not None
        await stage.spare.startup
        await stage.started[0].gone.wait()
        assert stage.spare.take() is None
        monkeypatch.setattr(InstalledCode, "is_same", lambda self, home: True)
        assert await stage.ready() is stage.started[1]

    play(scenario)


def test_three_deaths_in_a_row_are_enough(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stage: Stage) -> None:
        for count in (1, 2, 3):
            stage.maintain()
            assert len(stage.started) == count
            await stage.started[-1].gone.wait()
            assert stage.spare.process is None
        stage.maintain()
        assert len(stage.started) == 3
        assert stage.spare.state is SpareState.OFF
        assert "the last of 3 in a row" in caplog.text

    play(scenario, **{SPAWN_DEED: "abort"})


def test_death_is_waited_out(play: Callable[..., None]) -> None:
    async def scenario(stage: Stage) -> None:
        stage.spare = Spare(stage._start, stage.changed.set, backoff=(100.0,))
        stage.spare.enable()
        (await stage.ready()).child.signal(signal.SIGKILL)
        await stage.started[0].gone.wait()
        stage.maintain(later=99)
        assert len(stage.started) == 1
        stage.maintain(later=101)
        assert len(stage.started) == 2

    play(scenario)


def test_one_that_is_taken_ends_the_row_of_deaths(play: Callable[..., None]) -> None:
    async def scenario(stage: Stage) -> None:
        for _ in range(2):
            (await stage.ready()).child.signal(signal.SIGKILL)
            await stage.started[-1].gone.wait()
        await stage.ready()
        taken = stage.spare.take()
        assert taken is stage.started[2]
        ends: list[str] = []
        taken.reassign(
            ExitCallbacks(ends.append, ends.append), "m", stage.started[0].child.files[0]
        )
        (await stage.ready()).child.signal(signal.SIGKILL)
        await stage.started[-1].gone.wait()
        assert stage.spare.state is SpareState.WAITING
        taken.child.signal(signal.SIGTERM)  # without a model it ends at once
        await taken.gone.wait()
        assert ends == ["exit status 0"]

    play(scenario)


def test_one_that_got_a_fatal_signal_is_not_taken(play: Callable[..., None]) -> None:
    async def scenario(stage: Stage) -> None:
        process = await stage.ready()
        process.callbacks.on_fatal_signal("SIGABRT")
        assert stage.spare.take() is None

    play(scenario)


def test_one_that_is_wedged_is_not_taken_and_its_end_is_a_death(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stage: Stage) -> None:
        process = await stage.ready()
        process.child.signal(signal.SIGSTOP)
        stage.maintain()
        stage.maintain(later=60.0)  # we were stopped ourselves, or so it seems
        for quarter in range(20):
            stage.maintain(later=60.0 + quarter / 4)
        assert stage.spare.state is SpareState.READY
        for quarter in range(20, 30):
            stage.maintain(later=60.0 + quarter / 4)
        assert stage.spare.take() is None
        await process.gone.wait()
        assert "has stalled" in caplog.text
        assert "died (SIGKILL)" in caplog.text
        assert stage.spare.process is None

    play(scenario)


def test_one_that_goes_for_want_of_memory_is_no_death(play: Callable[..., None]) -> None:
    async def scenario(stage: Stage) -> None:
        for _ in range(4):
            process = await stage.ready()
            stage.spare.drop("memory is short")
            stage.maintain()
            assert stage.started[-1] is process  # never two at once
            await process.gone.wait()
        assert stage.spare.state is SpareState.WAITING

    play(scenario)


def test_import_that_takes_too_long_is_a_death(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        stage.maintain()
        stage.maintain(later=601)
        await stage.started[0].gone.wait()
        assert stage.spare.state is SpareState.WAITING
        assert stage.spare.process is None

    with gate(tmp_path / "gate") as stop:
        play(scenario, FAKE_SPAWN_GATE=str(stop.path))


def test_faults_and_output_follow_the_new_name(play: Callable[..., None], tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        taken = await stage.ready()
        stage.spare.take()
        ends: list[str] = []
        base = tmp_path / "worker.m.1"
        taken.reassign(ExitCallbacks(ends.append, ends.append), "worker m#1", base)
        channel = await taken.connect()
        load = frames.Load("m", 1, str(tmp_path / "none"), str(tmp_path / "socket"), 1, 0)
        channel.send(load)  # no model is there: the server says so on stderr, and to us
        assert isinstance(await channel.receive(), frames.LoadFailed)
        taken.child.signal(signal.SIGABRT)
        await taken.gone.wait()
        assert ends == ["SIGABRT", "SIGABRT"]
        assert taken.child.role == "worker m#1"
        assert taken.child.files == (Path(f"{base}.stdout"), Path(f"{base}.stderr"))
        said = taken.child.files[1].read_text()
        assert "loading" in said
        assert "Fatal Python error: Aborted" in said
        assert not any(name.startswith("spare.0.") for name in os.listdir(tmp_path))

    play(scenario)


def test_nobody_is_hindered_by_an_import() -> None:
    pool = Pool([Spec("m")], limits=Limits(), rules=Rules(recovery="resume"))

    def calm(level: Level = Level.NORMAL) -> bool:
        return is_calm(pool.models.values(), level)

    assert calm()
    leases = [pool.acquire(f"r{number}", "m", 60.0, 1.0)[0] for number in (1, 2)]
    assert not calm()  # it loads
    pool.ready("m", 1, 0, 4096, 2.0)
    assert calm()
    assert not calm(Level.WARN)
    pool.exited("m", 1, "SIGABRT", 3.0)
    assert not calm()  # two are on their way back
    for lease in leases:
        pool.returned(lease, 5, 3.1)
        assert not calm()
    pool.ready("m", 2, 0, 4096, 4.0)
    assert calm()  # both have their places again
    # One that was sent back without an interruption of its own.
    again = pool.models["m"].granted[leases[0]]
    pool.models["m"].waiting[leases[0]] = again
    again.error, again.interruptions = WorkerCrashed("It died."), 0
    assert not calm()
