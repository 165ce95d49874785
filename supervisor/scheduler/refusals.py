"""The errors for requests that the pool cannot serve: messages with the figures behind them."""

from __future__ import annotations

from collections.abc import Iterable

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
from supervisor.scheduler.death import Death
from supervisor.scheduler.lifecycle import HAS_PROCESS, State
from supervisor.scheduler.model import DrainCause, Model
from supervisor.units import gigabytes

_NAME_SHOWN = 200
"""Characters of an unknown name that a message repeats."""
_PRESSURE_RETRY_SECONDS = 30.0
"""An emergency is over when somebody has given back memory: seldom at once."""


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


def failed(model: Model) -> ModelLoadFailed:
    return unreadable(model, model.reason)


def unreadable(model: Model, reason: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"The model `{model.name}` cannot be loaded here: {reason}", param="model"
    )


def no_counter(why: str, seconds: float) -> WorkerCrashed:
    return WorkerCrashed(
        f"The process that counts tokens is not available: {why}. No model is affected. Try again.",
        retry_after=seconds,
    )


def counter_died(how: str, kill_reason: str) -> WorkerCrashed | WorkerStalled:
    kind = WorkerStalled if kill_reason else WorkerCrashed
    fate = f"was killed: {kill_reason}" if kill_reason else f"died ({how})"
    return kind(
        f"The process that counts tokens {fate}. No model is affected. Try again: another one is "
        "started.",
        retry_after=1,
    )


def no_new_counter(figures: str) -> MemoryPressure:
    return MemoryPressure(
        "Tokens are not counted while the machine is out of memory, for the process that does it "
        f"would have to be started: {figures}. Try again once other programs have given some back.",
        retry_after=_PRESSURE_RETRY_SECONDS,
    )


def exceeds(model: Model, budget: int) -> str:
    """Why a model can never be loaded here, as the rest of a sentence."""
    needed = f"needs {gigabytes(model.size)} ({model.size_source})"
    return f"{needed}, and all models together may use {gigabytes(budget)} here"


def too_large(model: Model, budget: int) -> ModelTooLarge:
    smaller = "Use a smaller or more quantized model"
    if model.size_source == "configured":
        smaller = "Lower the model's `memory`"
    return ModelTooLarge(
        f"The model `{model.name}` {exceeds(model, budget)}. {smaller}, or raise memory.budget.",
        param="model",
    )


def queue_full(model: Model, now: float) -> QueueFull:
    return QueueFull(
        f"The queue of model `{model.name}` is full: {model.spec.capacity} requests "
        "are running or waiting. Try again shortly.",
        retry_after=until_a_place(model, now),
    )


def server_full(model: Model, limit: int, now: float) -> QueueFull:
    return QueueFull(
        f"The server is full: {limit} requests are running or waiting (server.max_requests). "
        "Try again shortly.",
        retry_after=until_a_place(model, now),
    )


def until_a_place(model: Model, now: float) -> float:
    """Seconds, 1 to 10, until a place on this model is likely to become free."""
    if model.state is State.LOADING and model.load_seconds is not None:
        left = model.load_seconds - (now - model.current.load_started)
        return max(1.0, min(10.0, left + (model.pace or 0.0)))
    if model.pace is not None and model.granted:
        return max(1.0, min(10.0, model.pace))
    return min(10.0, 1.0 + len(model.waiting) / 100)


def crashed(model: Model, how: str, death: Death | None = None) -> WorkerCrashed:
    worker, cause = model.current, how
    what_to_do = "Retry, and the model is loaded again."
    if death is not None:
        cause = f"{how}: {death.summary}"
        if not death.retry_helps:
            what_to_do = death.advice
    if worker.stop_reason and worker.stop_reason != how:
        cause = f"{how}; {worker.stop_reason}"
    phase = "while it loaded" if worker.loaded_at is None else "during this request"
    return WorkerCrashed(
        f"The worker {worker.name} died ({cause}) {phase}. Other models are not affected. "
        f"{what_to_do}{_report(death)}",
        retry_after=model.load_seconds,
    )


def stalled(model: Model, how: str, death: Death | None = None) -> WorkerStalled:
    return WorkerStalled(
        f"The worker {model.current.name} stalled during this request and was killed: {how}. Other "
        f"models are not affected. Retry, and the model is loaded again.{_report(death)}",
        retry_after=model.load_seconds,
    )


def _report(death: Death | None) -> str:
    """Where to read on, behind a message."""
    return "" if death is None else f" `bulkhead crashes {death.report}` has the report."


def unavailable(model: Model, now: float) -> ModelUnavailable:
    left = "" if model.deadline is None else f" in {max(1.0, model.deadline - now):.0f} s"
    return ModelUnavailable(
        f"The model `{model.name}` keeps dying and is not loaded at the moment; it is tried "
        f"again{left}, or at once with `bulkhead load {model.name}`. `bulkhead "
        f"crashes` says what it dies of."
    )


def quarantined(model: Model) -> RequestCrashedWorker:
    return RequestCrashedWorker(
        f"This request alone has killed the worker of model `{model.name}` repeatedly, and is "
        "refused for an hour. Change it: a shorter prompt or another model may help."
    )


def load_stalled(model: Model, seconds: float) -> ModelLoading:
    return ModelLoading(
        f"Loading model `{model.name}` made no progress for "
        f"{seconds:g} s and was stopped. Try again; if it repeats, look at "
        f"`{model.current.name}` in the logs.",
        retry_after=model.load_seconds,
    )


def cut_off(model: Model) -> BulkheadError:
    """What ends a request that its worker's drain did not wait for."""
    name = model.name
    match model.current.drain_cause:
        case DrainCause.SHUTDOWN:
            return shutting_down()
        case DrainCause.EMERGENCY:
            return MemoryPressure(
                f"The machine is out of memory, so the model `{name}` was unloaded. "
                "Try again once other programs have given some back.",
                retry_after=_PRESSURE_RETRY_SECONDS,
            )
        case DrainCause.BY_HAND:
            return ModelLoading(
                f"The model `{name}` was unloaded by hand during this request. "
                "Retry, and it is loaded again.",
                retry_after=model.expected_load,
            )
        case DrainCause.OUTGROWN:
            return InsufficientMemoryNow(
                f"The worker of model `{name}` held more memory than it may and had to be loaded "
                "anew. Try again.",
                retry_after=model.expected_load,
            )
        case DrainCause.OUT_OF_REACH:
            return InsufficientMemoryNow(
                f"A request to model `{name}` needed more memory than can be had beside the models "
                "that are pinned, and its worker had to be loaded anew. Try again; a prompt that "
                "is too large is refused then.",
                retry_after=model.expected_load,
            )
        case DrainCause.EVICTION:
            return InsufficientMemoryNow(
                f"The model `{name}` had to make room for another one that had waited too long, "
                "and this request did not end within memory.drain_seconds. Try again.",
                retry_after=model.expected_load,
            )


def no_new_loads(model: Model, figures: str) -> MemoryPressure:
    return MemoryPressure(
        f"The model `{model.name}` is not loaded while the machine is short of memory: "
        f"{figures}. Try again once other programs have given some back.",
        retry_after=_PRESSURE_RETRY_SECONDS,
    )


REBOOT = "reboot needed: memory of workers that have ended did not come back"
"""What is advised while memory is stranded."""


def no_room(
    model: Model, others: Iterable[Model], free: float, stranded: int
) -> InsufficientMemoryNow:
    held = ", ".join(
        f"{other.current.name} ({other.state}{', pinned' if other.pinned else ''})"
        for other in others
        if other.state in HAS_PROCESS
    )
    return InsufficientMemoryNow(
        f"There was no room for model `{model.name}`, which needs {gigabytes(model.size)}; "
        f"{gigabytes(max(0.0, free))} are free. Loaded: {held or 'nothing'}. "
        + (f"{gigabytes(stranded)}: {REBOOT}." if stranded else "Try again."),
        retry_after=model.expected_load,
    )


def no_place(model: Model, now: float) -> QueueFull:
    return QueueFull(
        f"All {model.in_flight} places of model `{model.name}` stayed taken. Try again shortly.",
        retry_after=until_a_place(model, now),
    )


def others_return(model: Model) -> QueueFull:
    waiting = sum(lease.error is not None for lease in model.waiting.values())
    back = waiting + len(model.returning) + model.on_probation
    return QueueFull(
        f"{back} requests that were interrupted go on before new ones of model `{model.name}` "
        "begin. Try again shortly.",
        retry_after=model.load_seconds,
    )


def gate_closed(model: Model, loading: str) -> ModelLoading:
    return ModelLoading(
        f"The model `{model.name}` had to wait for the load of `{loading}` "
        '(memory.load_gate is "exclusive"). Try again.',
        retry_after=model.load_seconds,
    )


def still_loading(model: Model, now: float) -> ModelLoading:
    loading = model.state is State.LOADING
    elapsed = now - model.current.load_started if loading else 0.0
    left = None if model.load_seconds is None else model.load_seconds - elapsed
    since = f"still loading after {elapsed:.0f} s" if loading else "about to be loaded again"
    return ModelLoading(
        f"The model `{model.name}` is {since}. The load goes on; try again.",
        retry_after=left,
    )


def too_many_watchers() -> QueueFull:
    return QueueFull("Too many clients watch the events already.", retry_after=10)
