"""`bulkhead selftest`: a worker of its own is wedged under load, and nobody is lost."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from supervisor.cli.selftest import command, run
from supervisor.cli.selftest.faults import KILLS, STARVES, WEDGES, Injection, inject
from supervisor.cli.selftest.traffic import Stream
from tests.helpers.serving import DEADLINE


def stream(number: int, text: str = "abc", **more: object) -> Stream:
    made = Stream(number, text=text, at=[1.0, 2.0, 7.0, 7.5], is_whole=True)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def judged(
    *streams: Stream, fault: Injection = Injection.ABORT, detected: float | None = 0.5
) -> run.RoundResult:
    return run.judge(fault, streams, {(n, False): "abc" for n in range(9)}, detected, at=2.5)


def test_a_round_counts_each_request_once() -> None:
    row = judged(
        stream(0),
        stream(1, recoveries=1),
        stream(2, recoveries=1, text="abx"),
        stream(3, is_whole=False, code="worker_crashed"),
        stream(4, is_whole=False, lost="cut without a word"),
    )
    assert (row.requests, row.whole, row.recovered, row.same) == (5, 3, 2, 2)
    assert (row.refused, row.lost) == ({"worker_crashed": 1}, {"cut without a word": 1})
    assert row.pause == 4.5  # from the fault to the token at 7.0
    assert not row.is_passed


def test_a_round_passes_when_nobody_is_lost_and_the_fault_was_seen() -> None:
    went_on, refused = stream(0, recoveries=1), stream(1, is_whole=False, code="worker_crashed")
    assert judged(went_on, stream(1)).is_passed
    assert not judged(went_on, detected=None).is_passed
    assert judged(stream(0)).failures == ["no request was recovered"]
    assert judged(went_on, refused).failures == ["1 requests were refused"]
    assert judged(refused, fault=Injection.MEMORY).is_passed


@pytest.mark.parametrize(("platform", "passes"), [("linux", False), ("darwin", True)])
def test_another_text_is_a_failure_but_for_metal(
    platform: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    row = judged(stream(0, recoveries=1, text="abx"))
    assert row.is_passed is passes


def test_a_round_without_a_fault_need_not_show_one() -> None:
    assert judged(stream(0), fault=Injection.NONE, detected=None).is_passed


def test_the_table_tells_all_of_it() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(command.result_table([judged(stream(0, recoveries=2), stream(1, lost="no end"))]))
    head, line = console.export_text().splitlines()[:2]
    assert head.split() == [
        "fault",
        "asked",
        "whole",
        "recovered",
        "same",
        "refused",
        "lost",
        "seen",
        "after",
        "pause",
    ]
    assert line.split("  ")[0] == "SIGABRT, a Metal abort"
    assert "1 no end" in line
    assert line.rstrip().endswith("0.50 s  4.50 s")


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        ({}, [*KILLS, *WEDGES, *STARVES]),
        ({"kill": True}, list(KILLS)),
        ({"wedge": True, "oom": True}, [*WEDGES, *STARVES]),
    ],
)
@pytest.mark.parametrize("passes", [True, False])
def test_flags_choose_and_the_exit_status_tells(
    flags: dict[str, bool],
    faults: list[Injection],
    passes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[Injection] = []

    def fake(wanted: list[Injection]) -> list[run.RoundResult]:
        chosen.extend(wanted)
        return [judged(stream(0, recoveries=1), detected=1.0 if passes else None)]

    monkeypatch.setattr(command, "_run", fake)
    if passes:
        command.selftest(**flags)
    else:
        with pytest.raises(SystemExit, match="1"):
            command.selftest(**flags)
    assert chosen == faults


def test_a_wedged_worker_loses_nobody_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "STREAMS", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command.selftest(wedge=True)
    said = capsys.readouterr().out
    assert "No request was lost." in said
    line = next(line for line in said.splitlines() if line.startswith("SIGSTOP"))
    assert line.split()[3:9] == ["3", "3", "3", "3", "0", "0"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="no limits from outside")
def test_a_starved_process_gets_no_more_memory() -> None:
    code = "print('here', flush=True); input(); bytearray(2**28)"
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe)
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    inject(Injection.MEMORY, child.pid)
    _, said = child.communicate(b"\n", DEADLINE)
    assert child.returncode == 1
    assert b"MemoryError" in said
