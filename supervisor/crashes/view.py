"""Crash reports as a person reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.text import Text

from supervisor.layout import Column, Room, Row, fold, one_line, table, visible
from supervisor.units import gigabytes
from supervisor.wire.crash import CrashBrief, CrashReport, InFlight, Sample

_COLUMNS = (
    Column("time"),
    Column("what"),
    Column("id"),
    Column("cause", room=Room.ELSE_BELOW),
    Column("what to do", room=Room.ELSE_BELOW),
)
_LABEL = 14
"""Characters of a label with the blanks around it."""
_REQUESTS_SHOWN = 20
_SAMPLES_SHOWN = (60, 30, 10, 5, 2, 0)
"""Seconds before the death of which the memory is shown."""


def crash_table(crashes: Iterable[CrashBrief], width: int | None) -> list[Text]:
    """One row a report. `width` is the terminal's, None = a pipe, see `supervisor.layout`."""
    rows = [
        Row(
            (
                _time(crash.time),
                _name(crash),
                crash.id,
                f"{crash.how}, {crash.cause}",
                one_line(crash.advice),
            )
        )
        for crash in crashes
    ]
    return table(_COLUMNS, rows, width, name=1)


def crash_lines(report: CrashReport, width: int | None) -> list[Text]:
    """All of a report, in paragraphs."""
    head, *parts = ([visible(line) for line in part] for part in _parts(report) if part)
    lines = [*fold(head[0], width, rest="  ")]
    for line in head[1:]:
        lines += fold(line[_LABEL:], width, line[:_LABEL])
    for part in parts:
        lines.append("")
        for line in part:
            indent = line[: len(line) - len(line.lstrip())]
            lines += fold(line.lstrip(), width, indent, f"{indent}  ")
    return [Text(line) for line in lines]


def _parts(report: CrashReport) -> Iterator[list[str]]:
    yield [
        f"{_name(report)} died ({report.how}: {report.summary})",
        *_labelled("what to do", report.advice),
        *_labelled(
            "time",
            f"{_time(report.time)}, after {report.uptime_seconds:,.0f} s, {report.phase}",
        ),
        *_labelled("cause", report.cause + _traits(report)),
        *_labelled("said", report.line),
        *_labelled("exception", report.exception),
        *_labelled("killed for", report.put_down),
        *_labelled("kernel", report.oom_record),
        *_labelled("macOS", report.ips),
        *_labelled("process", f"pid {report.pid}, its stderr is {report.stderr_file}"),
        *_labelled(
            "versions", ", ".join(f"{name} {value}" for name, value in report.versions.items())
        ),
    ]
    yield _requests(report)
    yield _memory(report)
    processes = [
        f"  {model.name}#{model.generation}  {model.state}, {gigabytes(model.memory_bytes)}, "
        f"{model.in_flight} in flight, {model.queued} queued"
        for model in report.models
    ]
    yield _titled("Processes at that moment", processes)
    yield _titled("Stacks", _indented(report.stacks))
    yield _titled("Last words on stderr", _indented(report.stderr))


def _traits(report: CrashReport) -> str:
    traits = (
        (report.permanent, "would happen again"),
        (report.memory and report.cause != "killed", "for want of memory"),
        (report.blame == "outside", "from outside"),
        (report.blame == "request", "a request's fault"),
    )
    return "".join(f", {text}" for holds, text in traits if holds)


def _requests(report: CrashReport) -> list[str]:
    if not report.in_flight:
        return []
    outcomes = {each.request_id: each.outcome for each in report.recovery}
    shown = report.requests[:_REQUESTS_SHOWN]
    lines = [f"  {_shape(request, outcomes.get(request.request_id))}" for request in shown]
    if report.in_flight > len(shown):
        lines.append(f"  and {report.in_flight - len(shown)} more")
    return [f"Requests inside: {report.in_flight}", *lines]


def _shape(request: InFlight, outcome: str | None) -> str:
    parts = [
        f"{count} {what}"
        for count, what in (
            (request.prompt_tokens, "prompt tokens"),
            (request.emitted_tokens, "tokens emitted"),
        )
        if count is not None
    ]
    return ", ".join([request.request_id, *parts, *([outcome] if outcome else [])])


def _memory(report: CrashReport) -> list[str]:
    """A line for some of the seconds; the JSON has them all."""
    lines = []
    for seconds in _SAMPLES_SHOWN:
        own = _at(report.footprint, seconds)
        machine = [each for each in report.machine if abs(each.seconds - seconds) <= 1]
        used = machine[-1].used_bytes if machine else None
        figures = [
            f"{what} {gigabytes(size)}"
            for what, size in (("process", own), ("machine", used))
            if size is not None
        ]
        if figures:
            lines.append(f"  {seconds:>2} s before  {', '.join(figures)}")
    return _titled("Memory", lines)


def _at(samples: Sequence[Sample], seconds: float) -> int | None:
    near = [sample.bytes for sample in samples if abs(sample.seconds - seconds) <= 1]
    return near[-1] if near else None


def _labelled(label: str, text: str | None) -> list[str]:
    return [] if text is None else [f"  {label:<10}  {one_line(text)}"]


def _titled(title: str, lines: list[str]) -> list[str]:
    return [title, *lines] if lines else []


def _indented(text: str) -> list[str]:
    return [f"  {line.expandtabs()}" for line in text.splitlines()]


def _name(crash: CrashBrief) -> str:
    return crash.process if crash.model is None else f"{crash.model}#{crash.generation}"


def _time(text: str) -> str:
    """Local time, to the second; what is no time as it is."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return text
