"""supervisor.crashes.view: the list and a report, as a person reads them."""

from __future__ import annotations

import pytest

from supervisor.crashes import view
from supervisor.wire.crash import CrashReport
from tests.unit.supervisor.crashes.test_store import report

GATEWAY = report(1, process="gateway", model=None, generation=None, cause="killed")
LONG = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ"
ADVICE = "Unless somebody did it by hand: lower the model's max_concurrency or memory.budget."


def listed(width: int | None, *reports: CrashReport) -> list[str]:
    return [line.plain for line in view.crash_table(reports, width)]


def text(shown: CrashReport, width: int | None = None) -> str:
    return "\n".join(line.plain for line in view.crash_lines(shown, width))


def test_the_list_has_what_and_why_and_what_to_do() -> None:
    head, first, second = listed(200, report(), GATEWAY)
    assert head.split() == ["time", "what", "id", "cause", "what", "to", "do"]
    assert f"coder#3  {report().id}  SIGABRT, gpu_out_of_memory  Lower max_concurrency." in first
    assert second.split()[2] == "gateway"
    piped = listed(None, report())[1].split("\t")
    assert piped[1:] == [
        "coder#3",
        report().id,
        "SIGABRT, gpu_out_of_memory",
        "Lower max_concurrency.",
    ]


def test_a_time_that_is_none_is_shown_as_it_is() -> None:
    assert listed(None, report(time="yesterday"))[1].startswith("yesterday\t")


def test_at_80_columns_cause_and_advice_are_below() -> None:
    told = listed(80, report(), report(model=LONG, advice=ADVICE))
    assert max(map(len, told)) <= 80
    assert told[1].split()[2:] == ["coder#3", report().id]
    assert told[2:4] == [
        "  cause: SIGABRT, gpu_out_of_memory",
        "  what to do: Lower max_concurrency.",
    ]
    assert told[4] == f"{LONG}#3"
    assert told[5].index(report().id) == told[1].index(report().id)
    assert " ".join(ADVICE.split()) in " ".join(" ".join(told).split())


@pytest.mark.parametrize("width", [40, 80])
def test_a_report_fits_the_terminal_and_is_whole(width: int) -> None:
    shown = report(
        model=LONG,
        advice=ADVICE,
        put_down="its generation thread has been in one step for 61.2 s and nobody knows why",
        stderr_file=f"/Users/somebody/.bulkhead/logs/worker.{LONG}.20261121T080731.3.stderr",
        stacks="Current thread 0x1 (most recent call first):\n" + "  File x" * 30,
    )
    folded = text(shown, width)
    assert max(map(len, folded.splitlines())) <= width
    assert [line for line in folded.splitlines() if line != line.rstrip()] == []
    assert "".join(text(shown).split()) == "".join(folded.split())
    if width == 80:
        # What is folded stands below where it began.
        assert "\n              or memory.budget.\n" in folded


def test_no_line_of_a_report_speaks_to_the_terminal() -> None:
    evil = "a\x1b[2J\r\x07b"
    shown = report(model=evil, advice=evil, line=evil, stderr=evil, stacks=f"\t{evil}")
    for line in [*text(shown, 80).splitlines(), *text(shown).splitlines(), *listed(80, shown)]:
        assert line.isprintable()
    assert "a\\x1b[2J" in text(shown)


def test_the_whole_report_is_shown() -> None:
    told = text(report(memory=True, oom_record="Killed process 4711"))
    assert told.startswith("coder#3 died (SIGABRT: the GPU ran out of memory)\n")
    for line in (
        "  what to do  Lower max_concurrency.",
        "  cause       gpu_out_of_memory, for want of memory",
        "  said        [METAL] Insufficient Memory",
        "  kernel      Killed process 4711",
        "Requests inside: 3",
        "  req-1, 100 prompt tokens, 7 tokens emitted, resumed",
        "  req-2",
        "  and 1 more",
        "  60 s before  machine 50.0 GB",
        "   0 s before  process 30.0 GB, machine 60.0 GB",
        "  coder#3  ready, 0 KB, 3 in flight, 1 queued",
        "    File x",
        "  last words",
    ):
        assert line in told.splitlines(), line
    bare = text(
        report(
            in_flight=0,
            requests=[],
            models=[],
            machine=[],
            footprint=[],
            stderr="",
            stacks="",
            line=None,
            memory=False,
            put_down="it stalled",
        )
    )
    assert len(bare.splitlines()) == 7
    assert "  killed for  it stalled" in bare
