"""supervisor.processes.fleet: the end of a worker is told whatever else fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from supervisor.processes.fleet import Fleet
from supervisor.wire.frames import Hello


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
