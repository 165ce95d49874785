"""supervisor.processes.fleet: the end of a worker is told whatever else fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from supervisor.processes.fleet import Fleet


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
    fleet._exited(("m", 1), "SIGKILL")
    assert told == [("m", 1, "SIGKILL")]
    assert len(changes) == 1
    assert "the socket of worker m#1 stays" in caplog.text
    assert ("planted" in caplog.text) is (reading is bug)
