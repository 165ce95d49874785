"""The recorded requests of agents, as they are, to the demo: one after the other, whole answers.

A small model on a CPU, so the times tell what trying an agent on a fresh machine is like, and not
what a model for agents needs.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import harness
from tests.helpers.recorded import PROGRAMS, Recorded, recorded
from worker.demo import MODEL_DIR

SHORT = ("continue", "pi")
LONGEST_SECONDS = 60.0
"""Of one answer, on a machine that does nothing else."""
_DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back, in seconds and tokens; `fault` is empty for a whole answer."""

    fault: str
    first: float
    whole: float
    prompt: int
    completion: int


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    """Run it all."""
    programs = SHORT if short else PROGRAMS
    requests = [recorded(program) for program in programs]
    models = {request.body["model"]: MODEL_DIR for request in requests}
    with harness.bulkhead(folder / "b", models) as server:
        for name in models:
            server.warm_up(name)
        answers = {request.program: answered(server.port, request) for request in requests}
    header = ["program", "prompt tokens", "first event, s", "whole, s", "answer tokens"]
    rows = [
        [name, f"{a.prompt:,}", f"{a.first:.1f}", f"{a.whole:.1f}", str(a.completion)]
        for name, a in answers.items()
    ]
    print(harness.table(header, rows))
    report.figures = {
        name: {"prompt": a.prompt, "first": a.first, "whole": a.whole, "completion": a.completion}
        for name, a in answers.items()
    }
    for name, a in answers.items():
        report.bar(not a.fault, f"{name} gets a whole answer{f': {a.fault}' if a.fault else ''}")
    slowest = max(a.whole for a in answers.values())
    report.bar(
        slowest <= LONGEST_SECONDS,
        f"no answer takes more than {LONGEST_SECONDS:.0f} s: {slowest:.1f} s",
        speed=True,
    )


def answered(port: int, request: Recorded) -> Answered:
    """Send it and read its stream to the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_DEADLINE)
    headers = {k: v for k, v in request.headers.items() if k.lower() != "accept-encoding"}
    begun = time.monotonic()
    first, prompt, completion, fault = 0.0, 0, 0, ""
    try:
        connection.request(request.method, request.path, json.dumps(request.body), headers)
        response = connection.getresponse()
        if response.status != 200:
            return Answered(f"{response.status} {response.read()[:200]!r}", 0, 0, 0, 0)
        for event in _events(response):
            first = first or time.monotonic() - begun
            fault = fault or _fault(event)
            prompt, completion = _tokens(event, prompt, completion)
    finally:
        connection.close()
    if not fault and not completion:
        fault = "an empty answer"
    return Answered(fault, first, time.monotonic() - begun, prompt, completion)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The data of the server-sent events, which are JSON objects in every dialect."""
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def _fault(event: dict[str, Any]) -> str:
    """What an event tells of a failure, in any dialect."""
    failed = event.get("error") or event.get("type") in ("error", "response.failed")
    return json.dumps(event)[:200] if failed else ""


def _tokens(event: dict[str, Any], prompt: int, completion: int) -> tuple[int, int]:
    """Those of the prompt and of the answer, as far as told."""
    holders = event, event.get("response") or {}, event.get("message") or {}
    for usage in (holder.get("usage") or {} for holder in holders):
        prompt = usage.get("prompt_tokens") or usage.get("input_tokens") or prompt
        completion = usage.get("completion_tokens") or usage.get("output_tokens") or completion
    return prompt, completion


if __name__ == "__main__":
    harness.run("recorded", (__doc__ or "").partition("\n")[0], bench)
