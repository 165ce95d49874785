"""A crash report as it is kept in a file, sent over the wire and shown.

Of a request it holds ids and counts, never text.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ID = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}"
"""What an id looks like: UTC and a random part. Nothing else may become a file's name."""

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""ISO 8601, with zone."""


class CrashStruct(msgspec.Struct, frozen=True, kw_only=True):
    """Base. Members that a later version adds are no obstacle to reading."""


class InFlight(CrashStruct, frozen=True, kw_only=True):
    """A request that was in the process. None where the gateway has not told."""

    request_id: str
    prompt_tokens: Count | None = None
    emitted_tokens: Count | None = None


class Outcome(CrashStruct, frozen=True, kw_only=True):
    """What became of a request that was in the process, such as "its client left"."""

    request_id: str
    outcome: str


class Sample(CrashStruct, frozen=True, kw_only=True):
    """The process's memory, `seconds` before the death."""

    seconds: float
    bytes: Count


class MachineSample(CrashStruct, frozen=True, kw_only=True):
    """The machine's memory, `seconds` before the death. None where it could not be read."""

    seconds: float
    used_bytes: Count | None
    swap_bytes: Count | None


class LoadedModel(CrashStruct, frozen=True, kw_only=True):
    """A model that had a process at that moment, and the bytes that it held."""

    name: str
    generation: Count
    state: str
    memory_bytes: Count
    in_flight: Count
    queued: Count


class CrashBrief(CrashStruct, frozen=True, kw_only=True):
    """What a list shows of a report."""

    id: Annotated[str, Meta(pattern=f"^{ID}$")]
    time: Time
    process: Literal["worker", "gateway", "counter", "supervisor"]
    model: str | None
    """None = not a worker."""
    generation: Count | None
    how: str
    """A signal's name, "exit status N" or, of a supervisor, "unknown"."""
    cause: str
    """One of docs/operations.md's table."""
    summary: str
    advice: str


class CrashReport(CrashBrief, frozen=True, kw_only=True):
    """All that is known about a death."""

    version: int = 1
    """Of this form."""
    pid: int
    phase: str
    """The worker's state when the news came, "serving" for a gateway or a counter."""
    signal: str | None
    exit_code: int | None
    permanent: bool
    """A new process would die of it again until somebody changes something."""
    memory: bool
    """The process would have lived with fewer requests at once."""
    blame: str
    """"outside", "suspects" or "request"."""
    put_down: str | None
    """Why Bulkhead killed it, if it did. The name is part of the report's public form."""
    line: str | None
    """The line of stderr that gave the cause."""
    exception: str | None
    uptime_seconds: float
    in_flight: Count
    requests: list[InFlight]
    """The first 256 of those in flight."""
    recovery: list[Outcome]
    models: list[LoadedModel]
    machine: list[MachineSample]
    footprint: list[Sample]
    """The process's own memory."""
    oom_record: str | None
    """What Linux' kernel says about a kill for want of memory."""
    ips: str | None
    """Path of macOS' own report, which may come seconds later."""
    stderr_file: str
    stderr: str
    """Its last 64 KB, without keys and without what may quote a request."""
    stacks: str
    """What Python's faulthandler wrote: where the thread stood that failed, or each thread of a
    process that hung."""
    versions: dict[str, str]


class CrashList(CrashStruct, frozen=True, kw_only=True):
    """Newest first."""

    crashes: list[CrashBrief]
