"""worker.priority: work yields the CPU, and leaves nothing of that behind."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from worker.priority import in_background


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="Darwin does not tell a thread's state")
def test_only_the_work_steps_back() -> None:
    before = niceness()
    assert in_background(niceness) == 19
    assert niceness() == before


def test_what_the_work_raises_is_raised() -> None:
    with pytest.raises(SystemExit, match="3"):
        in_background(lambda: sys.exit(3))
