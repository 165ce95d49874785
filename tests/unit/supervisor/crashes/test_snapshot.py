"""supervisor.crashes.snapshot: what a report says of a death, from all that is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.crashes.redaction import Redactor
from supervisor.crashes.snapshot import REPORT_BYTES, compose_report, read_stderr
from supervisor.crashes.store import TEXT_MAX
from supervisor.wire.crash import CrashReport
from tests.helpers.crashes import METAL, PlannedEvidence, snapshot

LOG = "2026-11-21T18:08:05.123 INFO    loaded in 1.20 s, 900 MB"
STACKS = (
    'Fatal Python error: Aborted\n\nCurrent thread 0x01 (most recent call first):\n  File "x"\n'
)


def composed(
    stderr: Path, how: str, evidence: PlannedEvidence | None = None, **more: Any
) -> CrashReport:
    evidence = evidence or PlannedEvidence()
    redactor = Redactor(["hunter2hunter2"])
    return compose_report(snapshot(stderr, **more), how, redactor, evidence, "1.2.3")


def test_stderr_is_redacted_and_explains_the_death(tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    stderr.write_text(f"[x] key sk-abcdefgh1234 or hunter2hunter2\n{METAL}{STACKS}")
    report = composed(stderr, "SIGABRT")
    assert report.stderr == f"[x] key [redacted] or [redacted]\n{METAL.strip()}"
    assert (report.cause, report.line) == ("gpu_out_of_memory", METAL.strip())
    assert report.stderr_file == str(stderr)
    assert "Current thread" in report.stacks
    assert (report.memory, report.permanent, report.blame) == (True, False, "suspects")
    assert report.versions["bulkhead"] == "1.2.3"
    assert "mlx" in report.versions


@pytest.mark.parametrize(
    ("how", "signal", "exit_code"),
    [
        ("SIGABRT", "SIGABRT", None),
        ("signal 40", "signal 40", None),
        ("exit status 70", None, 70),
        ("it could not be started: No space left on device", None, None),
    ],
)
def test_how_it_ended(how: str, signal: str | None, exit_code: int | None, tmp_path: Path) -> None:
    report = composed(tmp_path / "absent", how)
    assert (report.how, report.signal, report.exit_code) == (how, signal, exit_code)
    assert (report.stderr, report.stacks, report.line) == ("", "", None)


def test_the_end_of_a_long_stderr_is_what_counts(tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    many = 2 * REPORT_BYTES // len(LOG)
    stderr.write_text(f"{METAL}{LOG}\n" + f"{LOG}\n" * many + METAL)
    report = composed(stderr, "SIGABRT")
    assert len(report.stderr) == TEXT_MAX
    assert report.stderr.endswith(METAL.strip())
    # The first line may be the rest of a message: it is not shown.
    assert read_stderr(stderr, Redactor(), len(METAL) + 20).text.splitlines()[1:] == [METAL.strip()]


@pytest.mark.parametrize(
    ("how", "kill_reason", "told"),
    [("SIGKILL", "", "Killed process 7"), ("SIGKILL", "it stalled", None), ("SIGABRT", "", None)],
)
def test_the_kernel_is_asked_about_kills_that_are_not_ours(
    how: str, kill_reason: str, told: str | None, tmp_path: Path
) -> None:
    evidence = PlannedEvidence()
    evidence.record = "Killed process 7"
    report = composed(tmp_path / "absent", how, evidence, kill_reason=kill_reason)
    assert report.oom_record == told
    assert (report.cause == "oom_killed") == (told is not None)
    assert report.put_down == (kill_reason or None)


def test_what_macos_has_written_is_named(tmp_path: Path) -> None:
    evidence = PlannedEvidence()
    evidence.reports = ["/Library/x.ips"]
    assert composed(tmp_path / "absent", "SIGABRT", evidence).ips == "/Library/x.ips"
