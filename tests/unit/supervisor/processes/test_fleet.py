"""supervisor.processes.fleet: the end of a worker is told whatever else fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast
from unittest.mock import Mock

import pytest

from supervisor.processes import fleet as fleet_module
from supervisor.processes.fleet import _PASSING, Fleet
from supervisor.processes.watchdog import Watchdog
from supervisor.state.paths import StateDir
from supervisor.wire.frames import Allowance, Hello, Load
from supervisor.wire.progress import Reading
from tests.helpers.serving import DEADLINE


def bug() -> NoReturn:
    raise RuntimeError("planted")


@pytest.mark.parametrize("reading", [lambda: None, bug], ids=["", "unreadable"])
def test_an_exit_is_told_whatever_else_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reading: Callable[[], None]
) -> None:
    told: list[tuple[str, int, str]] = []
    changes: list[None] = []
    fleet = Fleet(
        cast(Any, None),
        cast(Any, SimpleNamespace(worker_socket=lambda *_: tmp_path)),  # a folder
        cast(Any, None),
        cast(Any, SimpleNamespace(worker_exited=lambda *exit: told.append(exit))),
        module="",
        on_change=lambda: changes.append(None),
        stall_seconds=1.0,
    )
    process = SimpleNamespace(reading=reading)
    worker = SimpleNamespace(name="m#1", process=process, child=SimpleNamespace(pid=7))
    fleet._workers["m", 1] = cast(Any, worker)
    with pytest.raises(RuntimeError) if reading is bug else contextlib.nullcontext():
        fleet._exited(("m", 1), "SIGKILL")
    assert told == [("m", 1, "SIGKILL")]
    assert len(changes) == 1
    assert ("the socket of worker m#1 cannot be removed" in caplog.text) is (reading is not bug)


class Told:
    """A listener that keeps what it is told of exits."""

    def __init__(self) -> None:
        self.exits: list[tuple[str, int, str]] = []
        self.exited = asyncio.Event()

    def worker_dying(self, *news: Any) -> None: ...

    def worker_exited(self, *exit: Any) -> None:
        self.exits.append(exit)
        self.exited.set()


def fleet_of(tmp_path: Path, told: Told, process: Callable[..., Any]) -> Fleet:
    """A fleet whose processes are started by `process`."""
    catalog = SimpleNamespace(
        locate=lambda _: tmp_path, models={"m": SimpleNamespace(env={}, python="")}
    )
    fleet = Fleet(
        cast(Any, None),
        StateDir(tmp_path, tmp_path),
        cast(Any, catalog),
        cast(Any, told),
        module="",
        on_change=lambda: None,
        stall_seconds=1.0,
    )
    fleet._start = cast(Any, process)
    return fleet


@pytest.mark.parametrize("number", sorted(_PASSING), ids=errno.errorcode.__getitem__)
def test_what_a_start_lacks_for_a_moment_is_waited_for_until_it_is_stopped(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fleet_module, "_RETRY_SECONDS", 0.0)
    tries = 0

    async def scenario() -> None:
        enough = asyncio.Event()

        def lack(*_: Any, **__: Any) -> NoReturn:
            nonlocal tries
            tries += 1
            if tries == 5:
                enough.set()
            raise OSError(number, os.strerror(number))

        told = Told()
        fleet = fleet_of(tmp_path, told, lack)
        fleet.spawn("m", 1)
        await asyncio.wait_for(enough.wait(), DEADLINE)
        assert told.exits == []
        assert fleet.stop("m", 1, kill=False, stacks=False)
        await asyncio.wait_for(told.exited.wait(), DEADLINE)
        at_the_end = tries
        for _ in range(10):
            await asyncio.sleep(0)
        assert tries == at_the_end
        assert told.exits == [("m", 1, "it could not be started")]
        assert not fleet.stop("m", 1, kill=True, stacks=False)

    asyncio.run(scenario())
    assert caplog.text.count("cannot start a worker") == 1


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no such"), PermissionError(errno.EACCES, "denied")]
)
def test_what_will_not_pass_is_an_exit(tmp_path: Path, error: OSError) -> None:
    async def scenario() -> None:
        def fail(*_: Any, **__: Any) -> NoReturn:
            raise error

        told = Told()
        fleet_of(tmp_path, told, fail).spawn("m", 1)
        await asyncio.wait_for(told.exited.wait(), DEADLINE)
        assert told.exits == [("m", 1, f"it could not be started: {error.strerror}")]

    asyncio.run(scenario())


def test_a_bug_in_a_later_attempt_is_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_RETRY_SECONDS", 0.0)

    async def scenario() -> None:
        errors = [RuntimeError("planted"), OSError(errno.EMFILE, "too many")]

        def fail(*_: Any, **__: Any) -> NoReturn:
            raise errors.pop()

        told = Told()
        fleet_of(tmp_path, told, fail).spawn("m", 1)
        await asyncio.wait_for(told.exited.wait(), DEADLINE)
        assert told.exits == [("m", 1, "it could not be started")]

    asyncio.run(scenario())


def test_a_bug_after_a_later_attempt_kills_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_RETRY_SECONDS", 0.0)

    async def scenario() -> None:
        killed = asyncio.get_running_loop().create_future()
        child = SimpleNamespace(pid=7, signal=killed.set_result)
        errors = [OSError(errno.EMFILE, "too many")]

        def start(*_: Any, **__: Any) -> Any:
            if errors:
                raise errors.pop()
            return SimpleNamespace(child=child, channel=None)

        told = Told()  # knows no `worker_started`
        fleet_of(tmp_path, told, start).spawn("m", 1)
        assert await asyncio.wait_for(killed, DEADLINE) == signal.SIGKILL
        assert told.exits == []  # it is told when it is reaped

    asyncio.run(scenario())


def test_an_exit_that_nobody_knows_is_told(tmp_path: Path) -> None:
    """Its start has failed half-way."""
    told = Told()

    async def scenario() -> None:
        fleet_of(tmp_path, told, lambda: None)._exited(("m", 1), "SIGKILL")

    asyncio.run(scenario())
    assert told.exits == [("m", 1, "SIGKILL")]


def test_files_that_change_while_a_worker_starts_are_told(tmp_path: Path) -> None:
    """It may have half of each version, and the next one will not."""
    told: list[tuple[object, ...]] = []
    listener = SimpleNamespace(
        worker_broken=lambda *args: told.append(("broken", *args)),
        worker_loading=lambda *args: told.append(("loading", *args)),
    )
    fleet = Fleet(
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        cast(Any, listener),
        module="",
        on_change=lambda: None,
        stall_seconds=1.0,
    )

    async def follow(*, same: bool) -> None:
        frames_to_come = [Hello(7), None]

        async def receive() -> object:
            return frames_to_come.pop(0)

        process = SimpleNamespace(runs_our_code=lambda: same)
        worker = SimpleNamespace(name="m#1", model="m", generation=1, process=process)
        await fleet._follow(cast(Any, worker), cast(Any, SimpleNamespace(receive=receive)))

    asyncio.run(follow(same=True))
    assert told == [("loading", "m", 1, 0, 0)]
    asyncio.run(follow(same=False))
    assert told[1:] == [("broken", "m", 1, "Bulkhead's files changed while it started")]


def test_a_worker_that_stands_still_is_killed_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(
        *cast(Any, (None, None, None, None)), module="", on_change=lambda: None, stall_seconds=1.0
    )
    readings, signals = [Reading(beats=1)], list[int]()
    worker = SimpleNamespace(
        name="m#1",
        process=SimpleNamespace(reading=lambda: readings[-1]),
        child=SimpleNamespace(signal=signals.append),
        watchdog=Watchdog(1.0),
        is_killed=False,
    )
    fleet._workers["m", 1] = cast(Any, worker)
    times = [0.5 * n for n in range(10)]
    for now in times:
        readings.append(Reading(beats=int(10 * now)))
        fleet.kill_if_still("m", 1, now, 2.0)
    assert signals == []
    for now in times:
        fleet.kill_if_still("m", 1, times[-1] + now, 2.0)
    assert signals == [signal.SIGKILL]
    assert "worker m#1 has not moved for 2.5 s and is killed" in caplog.text
    fleet.kill_if_still("m", 2, 0.0, 0.0)  # there is none


def test_a_load_says_what_the_worker_may_hold(tmp_path: Path) -> None:
    told = Allowance(room=1, limit=2, prompt_token=3, score=4, row=5)

    async def scenario() -> None:
        sent: asyncio.Queue[Load] = asyncio.Queue()
        channel = SimpleNamespace(send=sent.put_nowait, receive=asyncio.Event().wait)

        async def connect() -> Any:
            return channel

        child = SimpleNamespace(pid=7, files=())
        process = SimpleNamespace(child=child, channel=None, connect=connect, gone=asyncio.Event())
        fleet = fleet_of(tmp_path, Told(), lambda *_, **__: process)
        fleet._listener = cast(Any, Mock())
        fleet._catalog = cast(
            Any,
            SimpleNamespace(
                locate=fleet._catalog.locate,
                concurrency={"m": 9}.__getitem__,
                models={"m": SimpleNamespace(env={}, python="", context=77)},
            ),
        )
        fleet._allowance = {"m": told}.__getitem__
        fleet._prefill_gate = True
        fleet.spawn("m", 1)
        load = await asyncio.wait_for(sent.get(), DEADLINE)
        assert (load.allowance, load.prefill_gate) == (told, True)
        assert (load.max_concurrency, load.context) == (9, 77)

    asyncio.run(scenario())
