"""supervisor.crashes.diagnosis: each known line as it was recorded, and ends without one."""

from __future__ import annotations

import re

import pytest

from supervisor.crashes.diagnosis import KNOWN_LINES, Blame, Cause, Diagnosis, diagnose
from supervisor.crashes.redaction import Redactor
from supervisor.scheduler.death import Fault

METAL = "[METAL] Command buffer execution failed: "
ABORT = f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {METAL}"
CODE = "kIOGPUCommandBufferCallbackError"
METAL_ASSERTION = (
    "-[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion "
    "`Completed handler provided after commit call'"
)
RECORDED = [
    (f"{ABORT}Insufficient Memory (00000008:{CODE}OutOfMemory)", Cause.GPU_OUT_OF_MEMORY),
    (f"RuntimeError: {METAL}Insufficient Memory.", Cause.GPU_OUT_OF_MEMORY),
    (f"{ABORT}Caused GPU Timeout Error (00000002:{CODE}Timeout)", Cause.GPU_TIMEOUT),
    (f"RuntimeError: {METAL}Discarded ({CODE}Timeout)", Cause.GPU_TIMEOUT),
    (
        f"{ABORT}Impacting Interactivity (0000000e:{CODE}ImpactingInteractivity)",
        Cause.GPU_INTERACTIVITY,
    ),
    (f"{ABORT}Caused GPU Hang Error (00000003:{CODE}Hang)", Cause.GPU_HANG),
    (
        f"{ABORT}Discarded (victim of GPU error/recovery) (00000005:{CODE}InnocentVictim)",
        Cause.GPU_VICTIM,
    ),
    (
        f"RuntimeError: {METAL}Ignored (for causing prior/excessive GPU errors) "
        f"(00000004:{CODE}SubmissionsIgnored)",
        Cause.GPU_BARRED,
    ),
    (f"{ABORT}Caused GPU Address Fault Error (0000000b:{CODE}PageFault)", Cause.GPU_FAULT),
    (f"{ABORT}Caused GPU Address Fault Error", Cause.GPU_FAULT),
    (f"{ABORT}Invalid Resource (00000009:{CODE}InvalidResource)", Cause.GPU_FAULT),
    ("RuntimeError: [metal::malloc] Resource limit (499000) exceeded.", Cause.GPU_BUFFERS),
    (
        "RuntimeError: [metal::malloc] Attempting to allocate 48736917632 bytes which is greater "
        "than the maximum allowed buffer size of 30150672384 bytes.",
        Cause.ARRAY_TOO_LARGE,
    ),
    ("RuntimeError: [malloc] Unable to allocate 68719476736 bytes.", Cause.OUT_OF_MEMORY),
    (
        "libc++abi: terminating due to uncaught exception of type std::runtime_error: "
        "[malloc_or_wait] Unable to allocate 13107200 bytes.",
        Cause.OUT_OF_MEMORY,
    ),
    ("terminate called after throwing an instance of 'std::bad_alloc'", Cause.OUT_OF_MEMORY),
    ("MemoryError", Cause.OUT_OF_MEMORY),
    ("RuntimeError: There is no Stream(gpu, 3) in current thread.", Cause.WRONG_THREAD),
    ("RuntimeError: There is no Stream(cpu, 0) in current thread.", Cause.WRONG_THREAD),
    (METAL_ASSERTION, Cause.METAL_ASSERTION),
    (
        "/AppleInternal/Library/MTLDebugCommandBuffer.mm:120: failed assertion "
        "`commit an already committed command buffer'",
        Cause.METAL_ASSERTION,
    ),
    (
        "2026-11-21T18:08:05.123 CRITICAL the generation thread died; the process ends",
        Cause.ENGINE_DIED,
    ),
    ("RuntimeError: [metal::load_device] No Metal device available.", Cause.NO_GPU),
    (
        "RuntimeError: Failed to load the default metallib. library not found library not found",
        Cause.NO_GPU,
    ),
    (
        "bulkhead: this installation of Bulkhead is damaged: the module worker.sink is missing. In "
        "/src/bulkhead, `git status` shows what differs; then run `make clean install`.",
        Cause.DAMAGED,
    ),
    ("bulkhead: this installation of Bulkhead lacks numpy. Install it anew.", Cause.DAMAGED),
    ("bulkhead: this Python cannot import its own module _ssl: it is missing.", Cause.DAMAGED),
]
RECORDED_AT_LOAD = [
    ("ValueError: Model type llama9 not supported.", Cause.LOAD_FAILED),
    ("ValueError: Received 12 parameters not in model: ", Cause.LOAD_FAILED),
    ("ValueError: Missing 2 parameters: ", Cause.LOAD_FAILED),
    ("FileNotFoundError: No safetensors found in /models/coder", Cause.LOAD_FAILED),
    (
        "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached "
        "snapshot folder for the specified revision on the local disk.",
        Cause.NOT_AVAILABLE,
    ),
    (
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.",
        Cause.NOT_AVAILABLE,
    ),
    ("huggingface_hub.errors.GatedRepoError: 403 Client Error.", Cause.NOT_AVAILABLE),
]
NOISE = [
    "/usr/lib/python3.12/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: "
    "There appear to be 1 leaked semaphore objects to clean up at shutdown",
    "BrokenPipeError: [Errno 32] Broken pipe",
]
INFO = "2026-11-21T18:08:05.123 INFO    request req-1: 12 prompt tokens, done, 0.100 s"


@pytest.mark.parametrize(("line", "cause"), RECORDED)
@pytest.mark.parametrize("loading", [False, True])
def test_a_line_gives_its_cause(line: str, cause: Cause, loading: bool) -> None:
    found = diagnose("SIGABRT", f"{INFO}\n{line}\n{INFO}", loading=loading)
    assert (found.cause, found.line) == (cause, line)
    assert diagnose("SIGABRT", line.upper()).cause == cause


@pytest.mark.parametrize(("line", "cause"), RECORDED_AT_LOAD)
def test_a_failed_load_is_one_while_it_loads(line: str, cause: Cause) -> None:
    assert diagnose("exit status 70", line, loading=True).cause == cause
    assert diagnose("exit status 70", line, loading=False).cause is Cause.UNKNOWN


def test_every_row_has_a_recorded_line() -> None:
    lines = [line for line, _ in (*RECORDED, *RECORDED_AT_LOAD)]
    for row in KNOWN_LINES:
        for pattern in row.pattern.pattern.split("|"):
            if pattern.count("(") == pattern.count(")"):
                assert any(row.pattern.search(line) for line in lines), pattern


@pytest.mark.parametrize("line", [line for line, _ in (*RECORDED, *RECORDED_AT_LOAD)])
def test_cleaning_leaves_what_the_rows_look_for(line: str) -> None:
    said = Redactor().redact(f"Traceback (most recent call last):\n{line}\n".encode())
    loading = line in dict(RECORDED_AT_LOAD)
    known = {**dict(RECORDED), **dict(RECORDED_AT_LOAD)}[line]
    assert diagnose("SIGABRT", said.text, loading=loading).cause == known
    said = Redactor().redact(line.encode())
    assert diagnose("SIGABRT", said.text, loading=loading).cause == known


@pytest.mark.parametrize("line", NOISE)
def test_noise_says_nothing(line: str) -> None:
    assert diagnose("SIGSEGV", line).cause is Cause.SEGFAULT
    before = RECORDED[0][0]
    assert diagnose("SIGABRT", f"{before}\n{line}").cause is Cause.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("SIGKILL", Cause.KILLED),
        ("SIGSEGV", Cause.SEGFAULT),
        ("SIGBUS", Cause.SEGFAULT),
        ("SIGABRT", Cause.ABORTED),
        ("a fatal error", Cause.ABORTED),
        ("SIGTERM", Cause.TERMINATED),
        ("exit status 0", Cause.EXITED),
        ("exit status 71", Cause.UNREACHABLE),
        ("exit status 3", Cause.UNKNOWN),
        ("signal 40", Cause.UNKNOWN),
    ],
)
def test_an_end_without_a_line(how: str, cause: Cause) -> None:
    assert diagnose(how, INFO) == Diagnosis(cause)


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("no token and no prefill progress for 60 s", Cause.STALLED),
        ("the load made no progress for 120 s", Cause.STALLED),
        ("it stalled", Cause.STALLED),
        ("bad message: malformed frame: ValidationError", Cause.PROTOCOL),
        ("it closed its channel without exiting", Cause.PROTOCOL),
        ("Bulkhead's files changed while it started", Cause.FILES_CHANGED),
    ],
)
def test_what_we_killed_ourselves(reason: str, cause: Cause) -> None:
    """A wedge has no line ever; its end by SIGKILL is our own."""
    found = diagnose("SIGKILL", INFO, kill_reason=reason)
    assert (found.cause, found.line, found.meaning.memory) == (cause, reason, False)
    assert diagnose("SIGKILL", RECORDED[0][0], kill_reason=reason).cause is Cause.GPU_OUT_OF_MEMORY


def test_a_kill_is_for_memory_when_the_kernel_says_so() -> None:
    assert diagnose("SIGKILL", oom=True).cause is Cause.OOM_KILLED
    assert diagnose("SIGSEGV", oom=True).cause is Cause.SEGFAULT
    assert diagnose("SIGKILL", oom=True, kill_reason="it stalled").cause is Cause.STALLED


def test_an_exception_without_a_row() -> None:
    found = diagnose("exit status 1", "ValueError: x", "ValueError: x")
    assert (found.cause, found.exception) == (Cause.PYTHON_ERROR, "ValueError: x")
    # The message may be long and is the report's; what clients are told has the type alone.
    assert found.summary == "an exception ended it: ValueError"


def test_the_last_line_of_the_weightiest_wins() -> None:
    memory, timeout = RECORDED[0][0], RECORDED[2][0]
    assert diagnose("SIGABRT", f"{memory}\n{INFO}\n{timeout}").cause is Cause.GPU_TIMEOUT
    assert diagnose("SIGABRT", f"{timeout}\n{INFO}\n{memory}").cause is Cause.GPU_OUT_OF_MEMORY


def test_what_follows_from_a_fault_does_not_hide_it() -> None:
    """The process's own fault makes the driver discard and ignore the rest of its work, and ends
    the generation thread."""
    victim, barred, died = (
        next(line for line, each in RECORDED if each is cause)
        for cause in (Cause.GPU_VICTIM, Cause.GPU_BARRED, Cause.ENGINE_DIED)
    )
    fault = RECORDED[0][0]
    said = "\n".join((fault, victim, barred, died))
    assert diagnose("exit status 70", said).cause is Cause.GPU_OUT_OF_MEMORY
    said = "\n".join((victim, barred, died))
    assert diagnose("exit status 70", said).cause is Cause.GPU_BARRED
    found = diagnose("exit status 70", died, "KeyError: 'x'")
    assert found.cause is Cause.ENGINE_DIED
    assert found.summary == "its generation thread died: KeyError"


def test_what_was_survived_long_ago_is_no_cause() -> None:
    said = RECORDED[0][0] + f"\n{INFO}" * 1000
    assert diagnose("SIGKILL", said).cause is Cause.KILLED


@pytest.mark.parametrize(
    ("how", "said", "fault", "permanent"),
    [
        ("SIGABRT", RECORDED[0][0], Fault.MEMORY, False),
        (
            "SIGABRT",
            "RuntimeError: [malloc] Unable to allocate 68719476736 bytes.",
            Fault.MEMORY,
            False,
        ),
        # Nobody but the system kills like this, and it does so for want of memory.
        ("SIGKILL", "", Fault.MEMORY, False),
        ("SIGABRT", f"{ABORT}Discarded (00000005:{CODE}InnocentVictim)", Fault.OUTSIDE, False),
        ("SIGTERM", "", Fault.OUTSIDE, False),
        ("exit status 71", "", Fault.OUTSIDE, False),
        ("SIGSEGV", "", Fault.REQUEST, False),
        ("SIGABRT", f"{ABORT}Caused GPU Timeout Error", Fault.REQUEST, False),
        ("exit status 70", "ValueError: Model type llama9 not supported.", Fault.REQUEST, True),
        ("exit status 70", "huggingface_hub.errors.GatedRepoError: 403", Fault.REQUEST, True),
        ("exit status 70", "[metal::load_device] No Metal device available.", Fault.REQUEST, True),
        ("exit status 70", "There is no Stream(gpu, 3) in current thread.", Fault.REQUEST, True),
    ],
)
def test_what_follows_from_a_death(how: str, said: str, fault: Fault, permanent: bool) -> None:
    """Who is suspected, whether fewer requests run at once, whether the model is tried again."""
    found = diagnose(how, said, loading=permanent)
    assert (found.meaning.fault, found.meaning.permanent) == (fault, permanent)
    assert found.meaning.memory is (fault is Fault.MEMORY)


def test_an_array_that_no_gpu_takes_is_its_request_s_fault() -> None:
    line = "[metal::malloc] 4 bytes which is greater than the maximum allowed buffer size of 3."
    assert diagnose("SIGABRT", line).meaning.blame is Blame.REQUEST


@pytest.mark.parametrize("cause", Cause)
def test_advice_agrees_with_what_is_done_about_it(cause: Cause) -> None:
    found = Diagnosis(cause)
    # The limit that the supervisor lowers by itself is the one that a person is told to lower.
    assert ("max_concurrency" in found.meaning.advice) is found.meaning.memory
    if found.meaning.blame is Blame.REQUEST:
        assert "prompt" in found.meaning.advice
    if found.meaning.permanent:
        assert re.search("Upgrade|Reinstall|Get them", found.meaning.advice)
    assert found.meaning.advice.endswith(".")
    assert not found.summary.endswith(".")


@pytest.mark.parametrize("cause", Cause)
def test_a_gateway_is_not_advised_about_models_and_the_gpu(cause: Cause) -> None:
    advice = Diagnosis(cause).advice("gateway")
    assert not re.search(r"\bmlx\b(?!-bulkhead)|mlx-lm|GPU|prompt|model's|unload|the model", advice)
    assert advice.endswith(".")
    assert Diagnosis(cause).advice("worker") == Diagnosis(cause).meaning.advice


@pytest.mark.parametrize(
    ("how", "cause"), [("SIGSEGV", Cause.SEGFAULT), ("exit status 0", Cause.EXITED)]
)
def test_what_ended_by_itself_did_not_die_of_our_reason_to_kill_it(how: str, cause: Cause) -> None:
    assert diagnose(how, INFO, kill_reason="bad message: torn").cause is cause
