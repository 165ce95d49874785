"""What those are told whom the pool cannot serve: messages with the figures behind them."""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.crashes.diagnosis import Blame, Crash
from supervisor.errors import (
    BulkheadError,
    InsufficientMemoryNow,
    MemoryPressure,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    ModelTooLarge,
    ModelUnavailable,
    QueueFull,
    RequestCrashedWorker,
    ShuttingDown,
    WorkerCrashed,
    WorkerStalled,
)
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import DrainCause, Entry

_NAME_SHOWN = 200
"""Characters of an unknown name that a message repeats."""
_PRESSURE_RETRY_SECONDS = 30.0
"""An emergency is over when somebody has given back memory: seldom at once."""


def gigabytes(size: float) -> str:
    """`"1.5 GB"`; below 0.1 GB in MB, since a need of "0.0 GB" explains nothing."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def unnamed() -> ModelNotFound:
    return ModelNotFound(
        "The request names no model, and server.default_model is not set. "
        "GET /v1/models lists what is served here.",
        param="model",
    )


def unknown(requested: str) -> ModelNotFound:
    return ModelNotFound(
        f"The model `{requested[:_NAME_SHOWN]}` does not exist or you do not have "
        "access to it. GET /v1/models lists what is served here.",
        param="model",
    )


def shutting_down() -> ShuttingDown:
    return ShuttingDown("The server is shutting down. Try again once it has restarted.")


def failed(entry: Entry) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"The model `{entry.spec.name}` cannot be loaded here: {entry.reason}", param="model"
    )


def exceeds(entry: Entry, budget: int) -> str:
    """Why a model can never be loaded here, as the rest of a sentence."""
    needed = f"needs {gigabytes(entry.size)} ({entry.size_source})"
    return f"{needed}, and all models together may use {gigabytes(budget)} here"


def too_large(entry: Entry, budget: int) -> ModelTooLarge:
    smaller = "Use a smaller or more quantized model"
    if entry.size_source == "configured":
        smaller = "Lower the model's `memory`"
    return ModelTooLarge(
        f"The model `{entry.spec.name}` {exceeds(entry, budget)}. {smaller}, or raise memory.budget.",
        param="model",
    )


def queue_full(entry: Entry, now: float) -> QueueFull:
    return QueueFull(
        f"The queue of model `{entry.spec.name}` is full: {entry.spec.capacity} requests "
        "are running or waiting. Try again shortly.",
        retry_after=until_a_place(entry, now),
    )


def server_full(entry: Entry, limit: int, now: float) -> QueueFull:
    return QueueFull(
        f"The server is full: {limit} requests are running or waiting (server.max_requests). "
        "Try again shortly.",
        retry_after=until_a_place(entry, now),
    )


def until_a_place(entry: Entry, now: float) -> float:
    """Seconds, 1 to 10, until a place on this model is likely to become free."""
    if entry.state is State.LOADING and entry.load_seconds is not None:
        left = entry.load_seconds - (now - entry.load_started)
        return max(1.0, min(10.0, left + (entry.pace or 0.0)))
    if entry.pace is not None and entry.granted:
        return max(1.0, min(10.0, entry.pace))
    return min(10.0, 1.0 + len(entry.waiting) / 100)


def crashed(entry: Entry, how: str, crash: Crash | None = None) -> WorkerCrashed:
    cause = how
    what_to_do = "Retry, and the model is loaded again."
    if crash is not None:
        found = crash.diagnosis
        cause = f"{how}: {found.summary}"
        if found.permanent or found.blame is Blame.REQUEST:
            what_to_do = found.advice
    if entry.reason and entry.reason != how:
        cause = f"{how}; {entry.reason}"
    phase = "while it loaded" if entry.loaded_at is None else "during this request"
    return WorkerCrashed(
        f"The worker {entry.worker} died ({cause}) {phase}. Other models are not affected. "
        f"{what_to_do}{_report(crash)}",
        retry_after=entry.load_seconds,
    )


def hung(entry: Entry, how: str, crash: Crash | None = None) -> WorkerStalled:
    return WorkerStalled(
        f"The worker {entry.worker} stalled during this request and was killed: {how}. Other "
        f"models are not affected. Retry, and the model is loaded again.{_report(crash)}",
        retry_after=entry.load_seconds,
    )


def _report(crash: Crash | None) -> str:
    """Where to read on, behind a message."""
    return "" if crash is None else f" `bulkhead crashes {crash.id}` has the report."


def unavailable(entry: Entry, now: float) -> ModelUnavailable:
    left = "" if entry.deadline is None else f" in {max(1.0, entry.deadline - now):.0f} s"
    return ModelUnavailable(
        f"The model `{entry.spec.name}` keeps dying and is not loaded at the moment; it is tried "
        f"again{left}, or at once with `bulkhead load {entry.spec.name}`. `bulkhead "
        f"crashes` says what it dies of."
    )


def guilty(entry: Entry) -> RequestCrashedWorker:
    return RequestCrashedWorker(
        f"This request alone has killed the worker of model `{entry.spec.name}` repeatedly, and is "
        "refused for an hour. Change it: a shorter prompt or another model may help."
    )


def stalled(entry: Entry, seconds: float) -> ModelLoading:
    return ModelLoading(
        f"Loading model `{entry.spec.name}` made no progress for "
        f"{seconds:g} s and was stopped. Try again; if it repeats, look at "
        f"`{entry.worker}` in the logs.",
        retry_after=entry.load_seconds,
    )


def cut(entry: Entry) -> BulkheadError:
    """What ends a request that its worker's drain did not wait for."""
    name = entry.spec.name
    match entry.drain_cause:
        case DrainCause.SHUTDOWN:
            return shutting_down()
        case DrainCause.EMERGENCY:
            return emergency(name)
        case DrainCause.BY_HAND:
            return ModelLoading(
                f"The model `{name}` was unloaded by hand during this request. "
                "Retry, and it is loaded again.",
                retry_after=entry.expected_load,
            )
        case DrainCause.EVICTION:
            return InsufficientMemoryNow(
                f"The model `{name}` had to make room for another one that had waited too long, "
                "and this request did not end within memory.drain_seconds. Try again.",
                retry_after=entry.expected_load,
            )


def emergency(name: str) -> MemoryPressure:
    return MemoryPressure(
        f"The machine is out of memory, so the model `{name}` was unloaded. "
        "Try again once other programs have given some back.",
        retry_after=_PRESSURE_RETRY_SECONDS,
    )


def no_new_loads(entry: Entry, figures: str) -> MemoryPressure:
    return MemoryPressure(
        f"The model `{entry.spec.name}` is not loaded while the machine is short of memory: "
        f"{figures}. Try again once other programs have given some back.",
        retry_after=_PRESSURE_RETRY_SECONDS,
    )


REBOOT = "reboot needed: memory of workers that have ended did not come back"
"""What is advised while memory is stranded."""


def no_room(
    entry: Entry, others: Iterable[Entry], free: float, stranded: int
) -> InsufficientMemoryNow:
    held = ", ".join(
        f"{other.worker} ({other.state}{', pinned' if other.pinned else ''})"
        for other in others
        if other.state in HAS_PROCESS
    )
    return InsufficientMemoryNow(
        f"There was no room for model `{entry.spec.name}`, which needs {gigabytes(entry.size)}; "
        f"{gigabytes(max(0.0, free))} are free. Loaded: {held or 'nothing'}. "
        + (f"{gigabytes(stranded)}: {REBOOT}." if stranded else "Try again."),
        retry_after=entry.expected_load,
    )


def no_place(entry: Entry, now: float) -> QueueFull:
    return QueueFull(
        f"All {len(entry.granted)} places of model `{entry.spec.name}` stayed taken. "
        "Try again shortly.",
        retry_after=until_a_place(entry, now),
    )


def gate_closed(entry: Entry, loading: str) -> ModelLoading:
    return ModelLoading(
        f"The model `{entry.spec.name}` had to wait for the load of `{loading}` "
        '(memory.load_gate is "exclusive"). Try again.',
        retry_after=entry.load_seconds,
    )


def still_loading(entry: Entry, now: float) -> ModelLoading:
    loading = entry.state is State.LOADING
    elapsed = now - entry.load_started if loading else 0.0
    left = None if entry.load_seconds is None else entry.load_seconds - elapsed
    since = f"still loading after {elapsed:.0f} s" if loading else "about to be loaded again"
    return ModelLoading(
        f"The model `{entry.spec.name}` is {since}. The load goes on; try again.",
        retry_after=left,
    )


def too_many_watchers() -> QueueFull:
    return QueueFull("Too many clients watch the events already.", retry_after=10)
