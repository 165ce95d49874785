"""A worker dies, recovery off: in each phase, in each way, every request ends exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import (
    DEADLINE,
    Answer,
    Deadline,
    Gate,
    Server,
    Streaming,
    gate,
    serving,
)

SIGNALS = {"SIGABRT": signal.SIGABRT, "SIGSEGV": signal.SIGSEGV, "SIGKILL": signal.SIGKILL}
PHASES = ("spawning", "loading", "prefill", "decoding")


DEEDS = {"exit0": "exit status 0", "raise": "exit status 70", "abort": "SIGABRT"}
BREAKS = {"torn": "exit status 0", "garbage": "malformed frame"}
KEYS = {"loading": "load", "prefill": "prefill", "decoding": "decode"}
"""A phase's name in scripts."""


def config_for(folder: Path) -> str:
    """Two models: `victim`, whose script misbehaves, and `neighbour`, which is well."""
    Script(generations=()).write(folder / "neighbour")
    return f"""
[server]
port = 0
[recovery]
mode = "off"
[models.victim]
source = "{folder / "victim"}"
[models.neighbour]
source = "{folder / "neighbour"}"
"""


@contextlib.contextmanager
def scripted(folder: Path, **script: Any) -> Iterator[Server]:
    """A server whose `victim` follows the script."""
    Script(**script).write(folder / "victim")
    with serving(folder / "s", scripted=True, config=config_for(folder)) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


def assert_crash(answer: Answer, phase: str, cause: str) -> None:
    """The contract's form: a retryable 503 before the first byte, a typed event after it."""
    if answer.status == 503:
        assert phase != "decoding"
        error = answer.json["error"]
        assert 1 <= int(answer.headers["retry-after"]) <= 59
        assert answer.headers["x-should-retry"] == "true"
    else:
        assert phase == "decoding"
        assert answer.status == 200
        assert text_of(3).startswith(answer.text)
        assert "[DONE]" not in answer.events
        errors = [event for event in answer.events if '"error"' in event]
        assert errors == answer.events[-1:]
        error = json.loads(errors[0])["error"]
    assert (error["type"], error["code"]) == ("server_error", "worker_crashed")
    assert cause in error["message"]


def start_load(server: Server, n: int) -> list[Streaming]:
    return [server.stream("victim", max_tokens=8) for _ in range(n)]


class VictimServer:
    """One server for many cases: each has a victim of its own, and all have the neighbour, which
    nobody unloads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: list[str] = []
        self.neighbour = 0
        """Its pid."""

    def add(self, victim: str, phase: str, deed: str = "") -> None:
        """A model that stops at its gate in that phase, and then does the deed."""
        fifo, env = self.gate(victim), ""
        if phase == "spawning":
            Script().write(self._folder / victim)
            env = f'env = {{ FAKE_SPAWN_GATE = "{fifo}" }}\n'
        else:
            deeds = {KEYS[phase]: deed} if deed else {}
            script = Script(gates={KEYS[phase]: str(fifo)}, deeds=deeds)
            script.write(self._folder / victim)
        self._tables.append(f'[models.{victim}]\nsource = "{self._folder / victim}"\n{env}')

    def gate(self, victim: str) -> Path:
        return self._folder / f"{victim}.gate"

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        config = config_for(self._folder) + "pin = true\n" + "".join(self._tables)
        with serving(self._folder / "s", scripted=True, config=config) as self.server:
            assert self.server.chat("neighbour", max_tokens=2).text == text_of(2)
            self.neighbour = self.server.loaded("neighbour")["pid"]
            yield

    def assert_recovered(self, victim: str) -> None:
        """The next request loads the model again, and nobody else noticed anything."""
        server = self.server
        assert server.chat(victim, max_tokens=5).text == text_of(5)
        assert server.loaded(victim)["generation"] == 2
        assert server.loaded("neighbour")["pid"] == self.neighbour
        assert server.loaded("neighbour")["deaths"] == 0
        assert server.request("POST", f"/admin/models/{victim}/unload").status == 200


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VictimServer]:
    """Of every signal, deed and broken frame, in every phase."""
    made = VictimServer(tmp_path_factory.mktemp("victims"))
    for phase in PHASES:
        for name in SIGNALS:
            made.add(f"{name}-{phase}", phase)
    for phase in KEYS:
        for deed in DEEDS:
            made.add(f"{deed}-{phase}", phase, deed)
    for deed in BREAKS:
        made.add(deed, "decoding", deed)
    with made.open():
        yield made


def reach(phase: str, stop: Gate, hit: Streaming) -> None:
    """Wait until the worker stands in the phase and the client has all that was sent before."""
    stop.arrived()
    if phase == "decoding":
        hit.saw("w2 ")


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", SIGNALS)
def test_signal_in_every_phase(
    name: str, phase: str, victims: VictimServer, pool: ThreadPoolExecutor
) -> None:
    server, victim = victims.server, f"{name}-{phase}"
    with gate(victims.gate(victim)) as stop:
        hit = server.stream(victim, max_tokens=8)
        reach(phase, stop, hit)
        pid = server.loaded(victim)["pid"]
        os.kill(pid, SIGNALS[name])
        assert_crash(hit.answer(), phase, name)
        # The client knows before the process has ended, and so has left the gate: its main
        # thread may be a zombie while the one at the gate still dies. Reaped, none is left.
        deadline = Deadline()
        while psutil.pid_exists(pid):
            deadline.check("the victim to end")
        stop.open()
        if phase == "spawning":
            # The environment's gate stands before every incarnation.
            again = pool.submit(server.chat, victim, max_tokens=5)
            stop.arrived()
            stop.open()
            assert again.result(DEADLINE).text == text_of(5)
        victims.assert_recovered(victim)


@pytest.mark.parametrize("phase", KEYS)
@pytest.mark.parametrize("deed", DEEDS)
def test_own_end_in_every_phase(deed: str, phase: str, victims: VictimServer) -> None:
    victim = f"{deed}-{phase}"
    with gate(victims.gate(victim)) as stop:
        hit = victims.server.stream(victim, max_tokens=8)
        reach(phase, stop, hit)
        stop.open()
        assert_crash(hit.answer(), phase, DEEDS[deed])
        victims.assert_recovered(victim)


@pytest.mark.parametrize("deed", BREAKS)
def test_broken_frame(deed: str, victims: VictimServer) -> None:
    """A worker that breaks the protocol is killed, whether it dies of it by itself or not."""
    with gate(victims.gate(deed)) as stop:
        hit = victims.server.stream(deed, max_tokens=8)
        reach("decoding", stop, hit)
        stop.open()
        assert_crash(hit.answer(), "decoding", BREAKS[deed])
        victims.assert_recovered(deed)


def test_everyone_in_the_worker_is_told_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with gate(tmp_path / "gate") as stop:
        Script(gates={"decode": str(stop.path)}).write(tmp_path / "victim")
        with serving(tmp_path / "s", scripted=True, config=config_for(tmp_path)) as server:
            beside = server.chat("neighbour", max_tokens=4)
            hit = start_load(server, 16)
            whole = [pool.submit(server.chat, "victim", max_tokens=8) for _ in range(4)]
            stop.arrived()
            server.wait_for("victim", in_flight=20)
            os.kill(server.loaded("victim")["pid"], signal.SIGABRT)
            answers = [stream.answer() for stream in hit]
            for answer in answers:
                # Some had their tokens, some were queued behind the gate.
                assert_crash(answer, "decoding" if answer.status == 200 else "prefill", "SIGABRT")
            assert any(answer.status == 200 for answer in answers)
            for future in whole:
                assert_crash(future.result(DEADLINE), "prefill", "SIGABRT")
            assert server.chat("neighbour", max_tokens=4).text == beside.text
            assert server.chat("victim", max_tokens=5).text == text_of(5)
            log = server.log()
            assert "died (SIGABRT) with 20 requests in it" in log


def test_death_while_draining(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with gate(tmp_path / "gate") as stop:
        Script(gates={"decode": str(stop.path)}).write(tmp_path / "victim")
        with serving(tmp_path / "s", scripted=True, config=config_for(tmp_path)) as server:
            (hit,) = start_load(server, 1)
            reach("decoding", stop, hit)
            pid = server.loaded("victim")["pid"]
            server.see_children()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait_for("victim", state="draining")["pid"] == pid
            os.kill(pid, signal.SIGABRT)
            assert_crash(hit.answer(), "decoding", "SIGABRT")
            assert server.process.wait(DEADLINE) == 0


def test_last_words_are_kept_also_through_restarts(tmp_path: Path) -> None:
    """omlx#1106: what a crash left was gone after the restart."""
    with scripted(tmp_path, deeds={"decode": "raise"}) as server:
        (hit,) = start_load(server, 1)
        hit.answer()
        assert "RuntimeError: planned" in server.worker_log("victim")
        assert server.chat("victim", max_tokens=2).status == 200
        # Each incarnation has files of its own.
        assert len(list((tmp_path / "s/logs").glob("worker.victim.*.stderr"))) == 2
    with serving(tmp_path / "s", scripted=True, config=config_for(tmp_path)) as server:
        assert server.chat("victim", max_tokens=2).status == 200
        assert "RuntimeError: planned" in server.worker_log("victim")
        assert "worker victim#1 died" in server.log()


def test_abort_leaves_stacks(tmp_path: Path) -> None:
    with scripted(tmp_path, deeds={"decode": "abort"}) as server:
        (hit,) = start_load(server, 1)
        hit.answer()
        # Its client learns of the signal while the stacks are still being written.
        deadline = Deadline()
        while "_phase" not in (words := server.worker_log("victim")):
            deadline.check("its stacks")
        assert "Fatal Python error: Aborted" in words


def test_one_load_for_everyone(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Concurrent requests for a cold model cause one load; one that leaves cancels nothing."""
    with gate(tmp_path / "gate") as stop:
        Script(gates={"load": str(stop.path)}).write(tmp_path / "victim")
        with serving(tmp_path / "s", scripted=True, config=config_for(tmp_path)) as server:
            waiting = start_load(server, 12)
            stop.arrived()
            server.wait_for("victim", queued=12, state="loading")
            stop.open()
            assert {stream.answer().text for stream in waiting} == {text_of(8)}
            assert server.loaded("victim")["generation"] == 1


def test_unloadable_model(tmp_path: Path) -> None:
    with scripted(tmp_path, deeds={"load": "unloadable"}) as server:
        for _ in range(2):
            answer = server.chat("victim")
            error = answer.json["error"]
            assert (answer.status, error["code"], error["param"]) == (
                400,
                "model_load_failed",
                "model",
            )
            assert answer.headers["x-should-retry"] == "false"
            assert "planned" in error["message"]
        assert [m["state"] for m in server.health()["models"]] == ["failed", "cold"]
        assert len(list((tmp_path / "s/logs").glob("worker.victim.*.stderr"))) == 1
        Script(generations=()).write(tmp_path / "victim")  # the operator repairs the files
        assert server.chat("victim", max_tokens=3).text == text_of(3)
