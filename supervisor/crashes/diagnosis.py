"""Why a process died and what to do about it, from how it ended and what it said last. Pure.

macOS' own crash reports leave out what Metal printed, which is on stderr alone, just before the
end. `KNOWN_LINES` recognises such lines; `MEANINGS` says what each cause means for the model, for
the requests that were in the process, and for the person who has to deal with it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from supervisor.scheduler.death import Death, Fault


class Cause(enum.StrEnum):
    """Why a process died: the slug that reports, events and messages have in common."""

    GPU_OUT_OF_MEMORY = "gpu_out_of_memory"
    OUT_OF_MEMORY = "out_of_memory"
    OOM_KILLED = "oom_killed"
    KILLED = "killed"
    GPU_TIMEOUT = "gpu_timeout"
    GPU_INTERACTIVITY = "gpu_interactivity"
    GPU_HANG = "gpu_hang"
    GPU_VICTIM = "gpu_victim"
    GPU_BARRED = "gpu_barred"
    GPU_FAULT = "gpu_fault"
    GPU_BUFFERS = "gpu_buffers"
    ARRAY_TOO_LARGE = "array_too_large"
    METAL_ASSERTION = "metal_assertion"
    WRONG_THREAD = "wrong_thread"
    NO_GPU = "no_gpu"
    LOAD_FAILED = "load_failed"
    NOT_AVAILABLE = "not_available"
    UNREACHABLE = "unreachable"
    ENGINE_DIED = "engine_died"
    PYTHON_ERROR = "python_error"
    STALLED = "stalled"
    PROTOCOL = "protocol"
    SEGFAULT = "segfault"
    ABORTED = "aborted"
    TERMINATED = "terminated"
    EXITED = "exited"
    DAMAGED = "damaged_installation"
    FILES_CHANGED = "files_changed"
    NO_SHUTDOWN = "no_shutdown"
    UNKNOWN = "unknown"


class Blame(enum.StrEnum):
    """What the death says about the requests that were in the process."""

    OUTSIDE = "outside"
    """Nothing: whatever killed the process came from elsewhere."""
    SUSPECTS = "suspects"
    """Each of them may have caused it."""
    REQUEST = "request"
    """One of them caused it, and will do so again on any worker: the fault is the request's."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One cause in words. `summary` completes "The worker died (SIGABRT: …)"."""

    summary: str
    advice: str
    permanent: bool = False
    """A new process would die of it again until somebody changes something."""
    memory: bool = False
    """Fewer requests at once would have lived."""
    blame: Blame = Blame.SUSPECTS

    @property
    def fault(self) -> Fault:
        """Whose it may have been, as the scheduler counts it."""
        if self.blame is Blame.OUTSIDE:
            return Fault.OUTSIDE
        return Fault.MEMORY if self.memory else Fault.REQUEST


_LESS = "Lower the model's max_concurrency or context, or memory.budget."
_UPGRADE = "Upgrade mlx and mlx-lm if it repeats."

MEANINGS: Mapping[Cause, Meaning] = {
    Cause.GPU_OUT_OF_MEMORY: Meaning("the GPU ran out of memory", _LESS, memory=True),
    Cause.OUT_OF_MEMORY: Meaning("it ran out of memory", _LESS, memory=True),
    Cause.OOM_KILLED: Meaning(
        "the system was out of memory and killed it",
        f"{_LESS} Look for other programs that take the RAM.",
        memory=True,
    ),
    Cause.KILLED: Meaning(
        "something killed it, most likely the system for want of memory",
        f"Unless somebody did it by hand: {_LESS[0].lower()}{_LESS[1:]}",
        memory=True,
    ),
    Cause.GPU_TIMEOUT: Meaning(
        "the GPU's watchdog ended work that took too long",
        "Send shorter prompts, and keep other heavy work off the GPU.",
    ),
    Cause.GPU_INTERACTIVITY: Meaning(
        "one piece of work kept the GPU from the screen for too long",
        "Send shorter prompts: this is what more than 100,000 tokens lead to. "
        "The model's context bounds them.",
    ),
    Cause.GPU_HANG: Meaning("the GPU hung", "Reboot if it repeats."),
    Cause.GPU_VICTIM: Meaning(
        "the GPU was reset after another process's fault",
        "Retry. If it repeats, find out what else uses the GPU.",
        blame=Blame.OUTSIDE,
    ),
    Cause.GPU_BARRED: Meaning(
        "the GPU's driver barred the process after earlier faults",
        "A new worker is not barred. Reboot if it is.",
    ),
    Cause.GPU_FAULT: Meaning(
        "a GPU kernel used memory that is not its own",
        "This is a bug of mlx with this model: upgrade mlx, or serve another model until then.",
    ),
    Cause.GPU_BUFFERS: Meaning(
        "it had more GPU buffers than there may be", "Upgrade mlx and mlx-lm; send shorter prompts."
    ),
    Cause.ARRAY_TOO_LARGE: Meaning(
        "a request needs one array that is larger than the GPU takes",
        "Shorten the prompt.",
        blame=Blame.REQUEST,
    ),
    Cause.METAL_ASSERTION: Meaning("an assertion in Metal failed", f"Retry. {_UPGRADE}"),
    Cause.WRONG_THREAD: Meaning(
        "these versions of mlx and mlx-lm do not work together",
        "Upgrade both, then load the model again.",
        permanent=True,
    ),
    Cause.NO_GPU: Meaning(
        "Metal is not available to it",
        "Reinstall mlx; on a virtual machine, or without a login, there may be no GPU. "
        "deploy/README.md has a LaunchDaemon.",
        permanent=True,
    ),
    Cause.LOAD_FAILED: Meaning(
        "the model's files cannot be loaded",
        "Upgrade mlx-lm if the architecture is new; else download the files again.",
        permanent=True,
    ),
    Cause.NOT_AVAILABLE: Meaning(
        "the model's files are not here",
        "Get them with `hf download`, for a gated model after `hf auth login`.",
        permanent=True,
    ),
    Cause.UNREACHABLE: Meaning(
        "it could not listen on its socket",
        "See that the state directory is not full and can be written to.",
        blame=Blame.OUTSIDE,
    ),
    Cause.ENGINE_DIED: Meaning(
        "its generation thread died", "Report it with the traceback that is in the worker's log."
    ),
    Cause.PYTHON_ERROR: Meaning(
        "an exception ended it", "Report it with the traceback that is in its log."
    ),
    Cause.STALLED: Meaning(
        "it made no progress", f"The report's stacks say where it stood. {_UPGRADE}"
    ),
    Cause.PROTOCOL: Meaning("it no longer spoke the protocol", "Report it."),
    Cause.SEGFAULT: Meaning("a fault in native code", f"The report's stacks say where. {_UPGRADE}"),
    Cause.ABORTED: Meaning(
        "it aborted without a word", f"The report's stacks say where. {_UPGRADE}"
    ),
    Cause.TERMINATED: Meaning(
        "another program told it to stop",
        "Use `bulkhead unload` instead.",
        blame=Blame.OUTSIDE,
    ),
    Cause.EXITED: Meaning(
        "it exited though nobody had asked it to",
        "Use `bulkhead unload` if that was `kill`; else report it.",
    ),
    Cause.DAMAGED: Meaning(
        "files of Bulkhead, or of the Python under it, are missing or broken",
        "Reinstall it in an environment of its own (`uv tool install --reinstall mlx-bulkhead`), "
        "or run `make clean install` in its checkout.",
        permanent=True,
        blame=Blame.OUTSIDE,
    ),
    Cause.FILES_CHANGED: Meaning(
        "Bulkhead's files changed while it started",
        "It is started again from a copy of the old files. Restart Bulkhead to use the new ones.",
        blame=Blame.OUTSIDE,
    ),
    Cause.NO_SHUTDOWN: Meaning(
        "the last run ended without a shutdown",
        "Something killed the supervisor. Unless somebody did it by hand, it was most likely the "
        "system for want of memory: find out what takes the RAM, or lower memory.budget.",
        blame=Blame.OUTSIDE,
    ),
    Cause.UNKNOWN: Meaning("the cause is not known", "Report it with the crash report."),
}
"""Of a worker's death; of NO_SHUTDOWN, which is the supervisor's alone, without a restart of the
machine."""

_REPORT = "Report it with the crash report."
_LOOK_FOR_RAM = "Find out what takes the RAM; a lower memory.budget leaves more of it to the rest."
_GATEWAY_ADVICE: Mapping[Cause, str] = {
    Cause.OUT_OF_MEMORY: _LOOK_FOR_RAM,
    Cause.OOM_KILLED: _LOOK_FOR_RAM,
    Cause.KILLED: f"Unless somebody did it by hand: {_LOOK_FOR_RAM[0].lower()}{_LOOK_FOR_RAM[1:]}",
    Cause.PYTHON_ERROR: "Report it with the traceback that is in its log.",
    Cause.STALLED: "The report's stacks say where it stood. Report it.",
    Cause.SEGFAULT: "The report's stacks say where. Upgrade uvloop and aiohttp if it repeats.",
    Cause.ABORTED: "The report's stacks say where. Upgrade uvloop and aiohttp if it repeats.",
    Cause.TERMINATED: "Stop the whole server instead, with a signal to the supervisor.",
    Cause.EXITED: (
        "If that was `kill`: stop the whole server instead, with a signal to the supervisor; "
        "else report it."
    ),
    Cause.DAMAGED: MEANINGS[Cause.DAMAGED].advice,
}
"""It has no model, no MLX and no GPU, and nobody unloads it. Models stay loaded when it dies."""
_COUNTER_ADVICE: Mapping[Cause, str] = {
    **_GATEWAY_ADVICE,
    Cause.STALLED: (
        "The report's stacks say where it stood. A chat template that does not end looks like "
        "that: see the model's files; else report it."
    ),
    **dict.fromkeys(
        (Cause.SEGFAULT, Cause.ABORTED),
        "The report's stacks say where. Upgrade transformers and tokenizers if it repeats.",
    ),
}
"""Nor has it; the next count starts another one."""
_HELPERS_ADVICE = {"gateway": _GATEWAY_ADVICE, "counter": _COUNTER_ADVICE}


class Weight(enum.IntEnum):
    """Which of several lines explains a death: the one of most weight, and of these the last."""

    CONSEQUENCE = 1
    """Follows from a fault that another line tells, if any does."""
    SYMPTOM = 2
    """Follows from a fault of the process itself or of another one that uses the GPU."""
    FAULT = 3


@dataclass(frozen=True, slots=True)
class KnownLine:
    """A line of stderr and its cause. `loading`: it means nothing once the model has served."""

    pattern: re.Pattern[str]
    cause: Cause
    weight: Weight = Weight.FAULT
    loading: bool = False

    @property
    def hints(self) -> tuple[str, ...]:
        """Lower-case words of which every text has one that the pattern finds something in."""
        alternatives = self.pattern.pattern.lower().split("|")
        return tuple(max(re.findall("[a-z_ ]+", each), key=len) for each in alternatives)


def _line(
    pattern: str, cause: Cause, weight: Weight = Weight.FAULT, *, loading: bool = False
) -> KnownLine:
    return KnownLine(re.compile(pattern, re.IGNORECASE), cause, weight, loading)


KNOWN_LINES = (
    _line(
        "kIOGPUCommandBufferCallbackErrorOutOfMemory|Insufficient Memory", Cause.GPU_OUT_OF_MEMORY
    ),
    _line("ErrorTimeout|GPU Timeout", Cause.GPU_TIMEOUT),
    _line("ErrorImpactingInteractivity", Cause.GPU_INTERACTIVITY),
    _line("ErrorHang", Cause.GPU_HANG),
    _line("ErrorInnocentVictim", Cause.GPU_VICTIM, Weight.SYMPTOM),
    _line("SubmissionsIgnored", Cause.GPU_BARRED, Weight.SYMPTOM),
    _line("ErrorPageFault|GPU Address Fault|InvalidResource", Cause.GPU_FAULT),
    _line(r"\[metal::malloc\] Resource limit", Cause.GPU_BUFFERS),
    _line("greater than the maximum allowed buffer size", Cause.ARRAY_TOO_LARGE),
    _line(
        r"\[malloc(_or_wait)?\] Unable to allocate|std::bad_alloc|^MemoryError\b",
        Cause.OUT_OF_MEMORY,
    ),
    _line(r"There is no Stream\((gpu|cpu), \d+\)( in current thread)?", Cause.WRONG_THREAD),
    _line("failed assertion|addCompletedHandler", Cause.METAL_ASSERTION),
    _line("generation thread died", Cause.ENGINE_DIED, Weight.CONSEQUENCE),
    _line("No Metal device available|Failed to load the default metallib|metallib", Cause.NO_GPU),
    _line(
        r"Model type \S+ not supported|Received \d+ parameters not in model|Missing \d+ parameters"
        "|No safetensors found",
        Cause.LOAD_FAILED,
        loading=True,
    ),
    _line(
        "this installation of Bulkhead (is damaged|lacks|has a broken library)"
        "|this Python cannot import",
        Cause.DAMAGED,
    ),
    _line(
        "LocalEntryNotFoundError|RepositoryNotFound|GatedRepo", Cause.NOT_AVAILABLE, loading=True
    ),
)
"""Lines that say why (facts of mlx 0.32 and older; the issues of mlx, mlx-lm and omlx)."""

_HINTS = tuple((known, known.hints) for known in KNOWN_LINES)
"""Looking for words is a hundred times as fast as for patterns, and clients wait for this."""

HARMLESS_EXCEPTIONS = frozenset({"BrokenPipeError"})
"""Exceptions that end no process: a client has left."""

_PUT_DOWN = (
    (re.compile("no (token|progress|prefill)|stalled"), Cause.STALLED),
    (re.compile("files changed while it started"), Cause.FILES_CHANGED),
)
"""In our reason for a kill; any other reason is a broken protocol."""

_ENDS = (
    (re.compile("SIGKILL"), Cause.KILLED),
    (re.compile("SIGSEGV|SIGBUS"), Cause.SEGFAULT),
    (re.compile("SIGABRT|SIGTRAP|SIGILL|SIGFPE|a fatal error"), Cause.ABORTED),
    (re.compile("SIGTERM|SIGINT|SIGHUP|SIGQUIT"), Cause.TERMINATED),
    (re.compile("exit status 0"), Cause.EXITED),
    (re.compile("exit status 71"), Cause.UNREACHABLE),
)
"""Of a process that printed nothing about it, by how it ended. 71 is `worker.server`'s."""

_LINE_MAX = 300
_SEARCHED = 16 * 2**10
"""Characters at the end of stderr in which a cause is looked for: a worker that lives for weeks may
have survived what it wrote before."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a process died. Everything in it may be shown."""

    cause: Cause
    line: str = ""
    """The line of stderr, or our reason for the kill, that gave the cause."""
    exception: str = ""
    """The last exception of Python on stderr, of which `line` may be the end."""

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.cause]

    @property
    def summary(self) -> str:
        """For "The worker died (SIGABRT: …)". Fixed words and the name of an exception's type."""
        told = self.meaning.summary
        if self.cause in (Cause.ENGINE_DIED, Cause.PYTHON_ERROR) and self.exception:
            return f"{told}: {self.exception.partition(':')[0]}"
        return told

    def advice(self, process: str) -> str:
        """What to do about it, where it was a "worker", the "gateway" or the "counter"."""
        advice = _HELPERS_ADVICE.get(process)
        return self.meaning.advice if advice is None else advice.get(self.cause, _REPORT)

    def death(self, report: str) -> Death:
        """What the scheduler is told of it; `report` is the id of the crash report."""
        meaning = self.meaning
        return Death(
            report,
            self.summary,
            meaning.advice,
            meaning.fault,
            permanent=meaning.permanent,
            retry_helps=not meaning.permanent and meaning.blame is not Blame.REQUEST,
            unexplained=self.cause is Cause.KILLED,
            cause=self.cause.value,
        )


def diagnose(
    how: str,
    stderr: str = "",
    exception: str = "",
    *,
    loading: bool = False,
    kill_reason: str = "",
    oom: bool = False,
) -> Diagnosis:
    """The diagnosis of a process that ended by `how`: a signal's name or "exit status N".

    `stderr` is the end of what it wrote and `exception` the last one in it, both as `redaction`
    leaves them; `loading`: before it served; `kill_reason` is why we killed it, if we did; `oom`:
    the kernel says that it killed for want of memory.
    """
    found = _explain(stderr, loading=loading)
    if found is not None:
        return Diagnosis(found.cause, found.line, exception)
    if kill_reason and how == "SIGKILL":  # else it has ended by itself before
        told = (cause for pattern, cause in _PUT_DOWN if pattern.search(kill_reason))
        cause = next(told, Cause.PROTOCOL)
        return Diagnosis(cause, kill_reason[:_LINE_MAX], exception)
    ends = [cause for pattern, cause in _ENDS if pattern.fullmatch(how)]
    cause = ends[0] if ends else Cause.PYTHON_ERROR if exception else Cause.UNKNOWN
    if oom and cause is Cause.KILLED:
        cause = Cause.OOM_KILLED
    return Diagnosis(cause, exception=exception)


def known_part(text: str, *, anywhere: bool = False) -> str:
    """What a known line matches at the beginning of this text, or `anywhere` in it: the runtime's
    own words, and not a request's. "" = nothing."""
    matches = (
        known.pattern.search(text) if anywhere else known.pattern.match(text)
        for known in _hinted_at(text)
    )
    return max((found[0] for found in matches if found), key=len, default="")


def _hinted_at(text: str) -> list[KnownLine]:
    """The known lines that may match something in this text."""
    lowered = text.lower()
    return [known for known, hints in _HINTS if any(hint in lowered for hint in hints)]


def _explain(stderr: str, *, loading: bool) -> Diagnosis | None:
    """By the known line of most weight, and of several the last."""
    stderr = stderr[-_SEARCHED:]
    candidates = [known for known in _hinted_at(stderr) if loading or not known.loading]
    best: tuple[Weight, Diagnosis] | None = None
    for line in reversed(stderr.splitlines() if candidates else ()):
        for known in candidates:
            heavier = best is None or known.weight > best[0]
            if heavier and known.pattern.search(line):
                best = (known.weight, Diagnosis(known.cause, line.strip()[:_LINE_MAX]))
        if best is not None and best[0] is Weight.FAULT:
            break
    return best[1] if best is not None else None
