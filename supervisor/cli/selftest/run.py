"""The test itself: rounds of traffic with one fault each, and what they show."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from supervisor.cli.selftest.faults import KILLS, WEDGES, Injection, inject
from supervisor.cli.selftest.instance import Instance
from supervisor.cli.selftest.traffic import Stream, Traffic

STREAMS = 8
HUNGRY = 8
"""Streams that begin after the worker can get no more memory."""
_TOKENS_BEFORE = 20
"""Of each stream, on average, before the fault."""

Texts = Mapping[tuple[int, bool], str]
"""What each stream says when there is no fault, by its number and whether it is long."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round has shown. Times in seconds; None = it did not happen."""

    fault: Injection
    requests: int
    whole: int
    recovered: int
    same: int
    """Whole answers with the text that they have without a fault."""
    refused: Counter[str]
    """Typed errors by code."""
    lost: Counter[str]
    """Requests without an end that the contract knows, by what happened to them."""
    detected: float | None
    """From the fault to the moment at which the supervisor had seen it."""
    pause: float | None
    """The longest that a recovered stream had to wait for its next token."""

    @property
    def failures(self) -> list[str]:
        """What is not as it must be, in words. Requests may be refused where memory is short, since
        a worker may run out of it again; on Metal, text after a cut may differ."""
        found = [f"{self.lost.total()} requests were lost"] if self.lost else []
        if self.fault is not Injection.NONE and self.detected is None:
            found.append("the worker did not end of it")
        if self.fault in (*KILLS, *WEDGES):
            if not self.recovered:
                found.append("no request was recovered")
            if self.refused:
                found.append(f"{self.refused.total()} requests were refused")
            if sys.platform != "darwin" and self.same < self.whole:
                found.append(f"{self.whole - self.same} answers have another text")
        return found

    @property
    def is_passed(self) -> bool:
        return not self.failures


def run_rounds(instance: Instance, faults: Sequence[Injection]) -> Iterator[RoundResult]:
    """One round without a fault, then one for each. Raises Unreachable and Refusal."""
    quiet: dict[tuple[int, bool], str] = {}
    for fault in (Injection.NONE, *faults):
        # One that has served keeps memory in its pools.
        pid = instance.worker(fresh=fault is Injection.MEMORY)
        streams = [Stream(number) for number in range(STREAMS)]
        # A worker that gets no more memory lives until it needs some.
        hungry = fault is Injection.MEMORY or (
            fault is Injection.NONE and Injection.MEMORY in faults
        )
        late = [Stream(number, is_long=True) for number in range(HUNGRY)] if hungry else []
        at = _inject_under_load(instance, fault, pid, Traffic(streams), Traffic(late))
        quiet = quiet or {(each.number, each.is_long): each.text for each in [*streams, *late]}
        yield judge(fault, [*streams, *late], quiet, instance.noticed(at), at)


def _inject_under_load(
    instance: Instance, fault: Injection, pid: int, load: Traffic, late: Traffic
) -> float:
    """Inject the fault while the streams run; when that was (`time.monotonic`)."""
    where = instance.client.host, instance.client.port
    load.start(*where)
    while load.runs and load.tokens < STREAMS * _TOKENS_BEFORE:
        time.sleep(0.005)
    at = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        inject(fault, pid)
    late.start(*where)
    load.join()
    late.join()
    return at


def judge(
    fault: Injection, streams: Sequence[Stream], quiet: Texts, detected: float | None, at: float
) -> RoundResult:
    """The result of a round whose fault came at the time `at`; `quiet` are the texts of the round
    without one."""
    whole = [stream for stream in streams if stream.is_whole and not stream.lost]
    recovered = [stream for stream in whole if stream.recoveries]
    return RoundResult(
        fault,
        requests=len(streams),
        whole=len(whole),
        recovered=len(recovered),
        same=sum(stream.text == quiet[stream.number, stream.is_long] for stream in whole),
        refused=Counter(s.code for s in streams if s.code and not s.lost),
        lost=Counter(s.lost for s in streams if s.lost),
        detected=detected,
        pause=max((stream.pause(at) for stream in recovered), default=None),
    )
