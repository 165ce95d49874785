"""supervisor.state.last_run: whether the last run ended in order."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from supervisor.state import last_run
from supervisor.state.last_run import Run
from supervisor.state.paths import StateDir, open_state

RUN = Run(7, 1000.0, "0.1.0", "boot-1")


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return open_state(tmp_path / "s")


def test_a_run_that_ended_in_order_leaves_nothing(state: StateDir) -> None:
    assert last_run.find(state) is None
    last_run.begin(state, RUN)
    last_run.end(state)
    last_run.end(state)  # somebody else has removed it
    assert last_run.find(state) is None


def test_a_run_that_was_cut_is_found_with_when_it_was_seen_last(state: StateDir) -> None:
    last_run.begin(state, RUN)
    log = state.logs / "gateway.log"
    log.touch()
    os.utime(state.root / "run.json", (2000, 2000))
    os.utime(log, (5000, 5000))
    assert last_run.find(state) == Run(7, 1000.0, "0.1.0", "boot-1", seen=5000.0)


TIMES = [
    b'{"pid": 7, "version": "0.1.0", "started": %s}' % time for time in (b"1e300", b"-1e300", b"-5")
]


def test_no_run_was_seen_in_the_future(state: StateDir) -> None:
    last_run.begin(state, RUN)
    before = time.time()
    os.utime(state.root / "run.json", (2e9 * 5, 2e9 * 5))
    found = last_run.find(state)
    assert found is not None
    assert before <= found.seen <= time.time()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"pid": "x"}', *TIMES])
def test_a_file_that_cannot_be_read_is_no_run(
    state: StateDir, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (state.root / "run.json").write_bytes(content)
    assert last_run.find(state) is None
    assert "how the last run ended is not known" in caplog.text


def test_a_folder_in_its_place_is_a_line_in_the_log(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    (state.root / "run.json").mkdir()
    assert last_run.find(state) is None
    last_run.end(state)
    assert "cannot remove" in caplog.text
