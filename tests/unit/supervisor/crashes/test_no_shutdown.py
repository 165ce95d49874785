"""supervisor.crashes.no_shutdown: the report of a run that ended without a shutdown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from supervisor.crashes.no_shutdown import RESTARTED, compose, report_run
from supervisor.crashes.store import Store
from supervisor.crashes.view import crash_lines
from supervisor.state.last_run import Run
from supervisor.state.paths import StateDir, open_state

RUN = Run(7, 1000.0, "0.1.0", "boot-1", seen=1060.0)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return open_state(tmp_path / "s")


def test_it_is_logged_and_kept(state: StateDir, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report_run(RUN, state, "boot-1")
    assert "the last run ended without a shutdown: pid 7, started" in caplog.text
    (brief,) = Store(state.crashes).listing()
    assert (brief.process, brief.model, brief.cause) == ("supervisor", None, "no_shutdown")
    report = Store(state.crashes).read(brief.id)
    assert report is not None
    assert (report.pid, report.uptime_seconds) == (7, 60.0)
    first = crash_lines(report, None)[0].plain
    assert first.startswith("supervisor died (unknown: the last run ended without a shutdown)")


@pytest.mark.parametrize(
    ("before", "now", "restarted"),
    [
        ("boot-1", "boot-1", False),
        ("boot-1", "boot-2", True),
        ("boot-1", "", False),
        ("", "boot-2", False),
    ],
)
def test_a_restarted_machine_is_told_from_a_kill(
    before: str, now: str, restarted: bool, state: StateDir
) -> None:
    advice = compose(Run(7, 1.0, "0.1.0", before, seen=2.0), state, now).advice
    assert (advice == RESTARTED) is restarted
    assert restarted or "killed the supervisor" in advice


def test_a_report_that_cannot_be_written_is_a_line_in_the_log(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    state.crashes.touch()
    report_run(RUN, state, "")
    assert "is lost" in caplog.text
