"""supervisor.app: what ends the supervisor, and with which exit status."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from supervisor import app, dispatcher
from supervisor.background import Refused
from supervisor.crashes.writer import ReportWriter
from supervisor.models import size_cache
from supervisor.processes import orphans
from supervisor.state import logs
from supervisor.state.paths import StateDir
from supervisor.state.trouble import Trouble
from supervisor.wire import control_frames, frames
from tests.helpers.fakes.supervised import Supervised, supervised
from tests.helpers.serving import DEADLINE

Run = Callable[[Callable[[Supervised], Awaitable[None]]], int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a story that ends the supervisor; its exit status."""
    monkeypatch.setattr(dispatcher, "_EXIT_SECONDS", 1e6)  # it is this process that would end

    def run(story: Callable[[Supervised], Awaitable[None]]) -> int:
        async def limited() -> int:
            async with asyncio.timeout(DEADLINE):
                async with supervised(tmp_path, monkeypatch, "m") as running:
                    await story(running)
                    return await running.running

        return asyncio.run(limited())

    return run


def test_a_gateway_that_gives_up_during_the_drain_makes_no_failure(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(running: Supervised) -> None:
        async def stop() -> None:
            running.gateway.gave_up.set()

        monkeypatch.setattr(running.gateway, "stop", stop)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0


def test_a_gateway_that_gives_up_is_a_failure(run: Run) -> None:
    async def story(running: Supervised) -> None:
        running.gateway.gave_up.set()

    assert run(story) == 1


def test_an_exception_that_nobody_has_caught_is_a_failure(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(running: Supervised) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: [][0])

    assert run(story) == 1
    assert "a bug; the supervisor exits" in caplog.text
    assert "IndexError" in caplog.text


def test_a_warning_of_the_event_loop_is_none(run: Run) -> None:
    async def story(running: Supervised) -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "a warning"})
        full = {"message": "out of descriptors", "exception": OSError(), "socket": None}
        loop.call_exception_handler(full)
        await running.answered()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0


def test_a_child_that_cannot_be_checked_hides_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(running: Supervised) -> None:
        maintained = asyncio.Event()
        monkeypatch.setattr(running.gateway, "check", lambda _: [][0])
        monkeypatch.setattr(running.fleet.spare, "maintain", lambda *_, **__: maintained.set())
        await maintained.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0


def test_a_state_directory_that_nobody_may_look_into_ends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    tries = 0

    def record(*_: object) -> NoReturn:
        nonlocal tries
        tries += 1
        denied()

    monkeypatch.setattr(app, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(StateDir, "restore", denied)
    monkeypatch.setattr(orphans, "record", record)
    monkeypatch.setattr(Path, "exists", denied)

    async def story(running: Supervised) -> None:
        while tries < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await running.answered()
        monkeypatch.setattr(Path, "unlink", denied)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert caplog.text.count("cannot put back") == 1
    assert caplog.text.count("the record of running processes") == 1


def test_a_stdout_that_is_closed_stops_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object, **__: object) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    monkeypatch.setattr(sys, "stdout", sys.stdout)

    async def story(running: Supervised) -> None:
        await running.answered()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert sys.stdout is None  # or the end of Python would fail in it


@pytest.mark.parametrize(
    "error", [Refused("can't start new thread"), RuntimeError("x"), TypeError("x"), None]
)
def test_old_reports_that_cannot_be_read_cost_a_line(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
) -> None:
    async def fail(_: ReportWriter) -> None:
        if error is not None:
            raise error
        await asyncio.Event().wait()

    monkeypatch.setattr(app, "_LOAD_REPORTS_SECONDS", 0.0)
    monkeypatch.setattr(ReportWriter, "load_last", fail)

    async def story(running: Supervised) -> None:
        await running.answered()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert caplog.text.count("old crash reports are not shown") == 1


class Hanging:
    """What does not return before the test is over, as on a disk that does not answer."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers = threading.Event()

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        assert self.answers.wait(DEADLINE)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    disk = Hanging()
    yield disk
    disk.answers.set()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(StateDir, "restore"), (logs, "cut_to_tail"), (size_cache, "write_atomically")],
)
def test_a_disk_that_hangs_costs_one_look_and_neither_requests_nor_the_end(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    hanging: Hanging,
    caplog: pytest.LogCaptureFixture,
    owner: object,
    name: str,
) -> None:
    for seconds in ("LOOK_SECONDS", "_UPKEEP_SECONDS", "_END_SECONDS", "_HANG_SECONDS"):
        monkeypatch.setattr(app, seconds, 0.0)
    monkeypatch.setattr(owner, name, hanging)

    async def story(running: Supervised) -> None:
        client = await running.request("r", "m")
        running.fleet.ready(*await running.fleet.next_spawn())
        assert isinstance(await client.receive(), control_frames.Granted)
        while not hanging.calls:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(20):
            await running.answered()
        await running.leave(client)
        running.fleet.finish()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert hanging.calls == 1
    told = "the disk does not answer" if owner is size_cache else "no answer from the disk for 0 s"
    assert told in caplog.text


def test_no_thread_for_a_look_costs_a_line_and_that_look(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    async def refused(*_: object) -> NoReturn:
        nonlocal tries
        tries += 1
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(app, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(app, "on_thread", refused)

    async def story(running: Supervised) -> None:
        while tries < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await running.answered()
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert caplog.text.count("can't start new thread") == 1


def test_what_the_end_removes_is_not_put_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, asked, answers = list[int](), threading.Event(), threading.Event()

    def restore(_: StateDir) -> None:
        asked.set()
        assert answers.wait(DEADLINE)

    monkeypatch.setattr(app, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(StateDir, "restore", restore)
    end = app.Supervisor._end_looks

    async def released(supervisor: app.Supervisor) -> None:
        supervisor._keepers.append((lambda: kept.append(1), Trouble("x")))
        asyncio.get_running_loop().call_soon(answers.set)
        await end(supervisor)
        assert not supervisor._looks

    monkeypatch.setattr(app.Supervisor, "_end_looks", released)

    async def story(running: Supervised) -> None:
        while not asked.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(story) == 0
    assert kept == []


def test_after_the_second_signal_a_worker_may_stand_still_for_as_long_as_its_size_takes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CHECK_SECONDS", 0.0)

    async def story(running: Supervised) -> None:
        checks, asked = 0, list[tuple[str, int, float]]()

        def check(_: float) -> None:
            nonlocal checks
            checks += 1

        def kill_if_still(model: str, generation: int, now: float, seconds: float) -> None:
            asked.append((model, generation, seconds))

        monkeypatch.setattr(running.gateway, "check", check)
        monkeypatch.setattr(running.fleet, "kill_if_still", kill_if_still)
        client = await running.request("r", "m")
        model, generation = await running.fleet.next_spawn()
        running.fleet.listener.worker_ready(model, generation, frames.Ready(40 * 10**9, 4096))
        assert isinstance(await client.receive(), control_frames.Granted)
        await running.leave(client)
        for _ in range(2):
            assert asked == []
            before = checks
            os.kill(os.getpid(), signal.SIGTERM)
            while checks < before + 3:  # noqa: ASYNC110
                await asyncio.sleep(0)
        (asked_for,) = set(asked)
        assert asked_for[:2] == (model, generation)
        assert 22.0 <= asked_for[2] < 23.0  # 40 GB, and what the pool keeps free beside them
        running.fleet.listener.worker_exited(model, generation, "SIGKILL")

    assert run(story) == 0
