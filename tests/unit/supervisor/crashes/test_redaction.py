"""supervisor.crashes.redaction: nothing of a request survives, what explains a death does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from supervisor.crashes.redaction import HIDDEN, Redacted, Redactor

PROMPT = "my doctor says that I should not tell anybody about this"
LOG = "2026-11-21T18:08:05.123 INFO    loaded in 1.20 s, 900 MB"


def clean(text: str, *, cut: bool = False, secrets: tuple[str, ...] = ()) -> Redacted:
    return Redactor(secrets).redact(text.encode(), cut=cut)


def logged(text: str, *, secrets: tuple[str, ...] = ()) -> str:
    """What is left of a text that a log line has."""
    head = LOG.partition("loaded")[0]
    return clean(head + text, secrets=secrets).text.removeprefix(head)


def traceback(last: str, file: str = "/app/worker/output/transcript.py") -> str:
    return (
        "Traceback (most recent call last):\n"
        f'  File "{file}", line 7, in push\n    raise ValueError(text)\n'
        f"           ^^^^^^^^^^^^^^^^\n{last}\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        "curl -H 'Authorization: Bearer {}'",
        "Authorization: Basic {}",
        "OPENAI_API_KEY={}",
        '{{"api_key": "{}"}}',
        "hf_token = {}",
        "password: {}",
    ],
)
def test_what_is_labelled_as_a_secret_is_hidden(line: str) -> None:
    said = logged(line.format("abc.DEF-123+xyz"))
    assert "DEF" not in said
    assert HIDDEN in said


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abcdEFGH1234_-xyz",
        "hf_abcdefghijklmnop",
        "ghp_abcdefghijklmnop1234",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF",
        "xoxb-1234567890-abc",
    ],
)
def test_what_looks_like_a_key_is_hidden(secret: str) -> None:
    assert logged(f"sent {secret} to it") == f"sent {HIDDEN} to it"


def test_credentials_in_a_url_are_hidden() -> None:
    assert logged("GET https://me:pass@host/x") == f"GET https://{HIDDEN}@host/x"


def test_values_that_are_known_to_be_secret_are_hidden() -> None:
    said = logged("x hunter2hunter2 y hunter2 z", secrets=("hunter2hunter2", "hunter2", ""))
    assert said == f"x {HIDDEN} y hunter2 z"  # too short to be told from other text


@pytest.mark.parametrize("text", ["max_tokens: 16 of 32", "tokenizer: LlamaTokenizer"])
def test_other_words_of_the_log_stay(text: str) -> None:
    assert logged(text) == text


@pytest.mark.parametrize(
    "line",
    [
        LOG,
        "[METAL] Command buffer execution failed: Insufficient Memory.",
        "free(): invalid pointer",
        "*** stack smashing detected ***: terminated",
        "python(71,0x1f0) malloc: *** error for object 0x6: pointer being freed was not allocated",
        "/venv/bin/python3.12: No module named worker.main",
        "  Reason: tried: '/opt/libmlx.dylib' (no such file)",
    ],
)
def test_lines_of_a_known_form_stay(line: str) -> None:
    assert clean(line).text == line


@pytest.mark.parametrize(
    "line",
    [
        PROMPT,
        f"  {PROMPT}",
        f"GPU Timeout: {PROMPT}",
        f"[INST] {PROMPT}",
        f"[user] {PROMPT}",
        f"/v/tokenizer.py:7: UserWarning: {PROMPT}",
        f"mlx.core.ShapeError: {PROMPT}\n{PROMPT}",
        f"  what():  {PROMPT}\n{PROMPT}",
        f"libc++abi: terminating due to uncaught exception of type std::range_error: {PROMPT}",
    ],
)
def test_what_no_form_vouches_for_is_withheld(line: str) -> None:
    said = clean(f"{LOG}\n{line}\n{LOG}\n").text
    assert "doctor" not in said
    assert "withheld" in said
    assert said.startswith(LOG)
    assert said.endswith(LOG)


@pytest.mark.parametrize(
    "line",
    [
        f"cannot use '{PROMPT}' here",
        f'cannot use "{PROMPT}" here',
        f"cannot use `{PROMPT}` here",
        f"cannot use {PROMPT + ' and I won' + chr(39) + 't'!r} here",
        f"cannot use '{PROMPT} and it goes on",
        f"byte index 9 is inside 'é' (bytes 8..10) of `{PROMPT}`",
    ],
)
def test_long_quotes_are_dropped(line: str) -> None:
    said = logged(line)
    assert "doctor" not in said
    assert "characters)" in said


def test_short_quotes_and_assertions_stay() -> None:
    lines = (
        "'NoneType' object has no attribute 'shape'",
        "it doesn't, and won't",
        "-[_MTLCommandBuffer addCompletedHandler:]:1011: failed assertion "
        "`Completed handler provided after commit call'",
    )
    for line in lines:
        assert logged(line) == line
    # Only an assertion of the runtime's is one, not the words in a quote.
    assert "doctor" not in logged(f"not '{PROMPT}: failed assertion'")


@pytest.mark.parametrize(
    "message",
    [PROMPT, f"{PROMPT}\n{PROMPT}\n\n  {PROMPT}", f"1: {PROMPT}\n{LOG[:19]} {PROMPT}"],
)
def test_the_message_of_an_unknown_exception_is_withheld_to_its_end(message: str) -> None:
    said = clean(f"{LOG}\n{traceback(f'app.errors.BadText: {message}')}{LOG}\n")
    assert "doctor" not in said.text
    assert said.text.startswith(f"{LOG}\nTraceback")
    assert said.text.endswith(LOG)
    assert "line 7, in push\n    raise ValueError(text)" in said.text
    first = len(message.partition("\n")[0])
    assert said.exception == f"app.errors.BadText: ({first} characters withheld)"


@pytest.mark.parametrize(
    "last",
    [
        "RuntimeError: [METAL] Command buffer execution failed: Insufficient Memory",
        "ValueError: [broadcast_shapes] Shapes (1,3) and (4,5) cannot be broadcast.",
        "OSError: [Errno 28] No space left on device",
        "AttributeError: 'Model' object has no attribute 'layers'",
        "ModuleNotFoundError: No module named 'mlx'",
        "RuntimeError: There is no Stream(gpu, 3) in current thread.",
        "KeyboardInterrupt",
    ],
)
def test_the_runtime_s_own_exceptions_are_quoted(last: str) -> None:
    said = clean(traceback(last))
    assert said.exception == last
    assert last in said.text


def test_an_exception_of_numeric_code_is_quoted() -> None:
    last = "ValueError: got 3 heads for 8 groups"
    for file in ("/v/site-packages/mlx_lm/models/llama.py", "/v/site-packages/mlx/nn/layers/a.py"):
        assert clean(traceback(last, file)).exception == last
    assert "heads" not in clean(traceback(last, "/v/mlx_lm/tokenizer_utils.py")).exception
    # Nor a folder that is called so.
    for file in ("/home/jo/mlx/.venv/site-packages/transformers/x.py", "/jo/mlx_lm/models/y.py"):
        assert "heads" not in clean(traceback(last, file)).exception
    # The last frame counts: numeric code called something else.
    inner = traceback(last, "/v/site-packages/mlx_lm/models/llama.py").replace(
        "    raise", '  File "/v/jinja2/x.py", line 1, in y\n    raise'
    )
    assert "heads" not in clean(inner).exception


def test_of_a_message_that_begins_as_a_known_one_the_beginning_is_quoted() -> None:
    said = clean(traceback(f"ValueError: Missing 2 parameters: {PROMPT}"))
    assert (
        said.exception
        == f"ValueError: Missing 2 parameters ({len(PROMPT) + 2} characters withheld)"
    )
    message = f"my GPU Timeout of {PROMPT}"
    said = clean(traceback(f"ValueError: {message}"))
    assert said.exception == f"ValueError: ({len(message)} characters withheld)"


def test_the_last_exception_counts_and_noise_is_none() -> None:
    first = traceback("IndexError: list index out of range")
    noise = traceback("BrokenPipeError: [Errno 32] Broken pipe")
    assert clean(first + LOG + "\n" + noise).exception == "IndexError: list index out of range"
    chained = (
        first
        + "\nDuring handling of the above exception, another exception occurred:\n\n"
        + traceback("NameError: name 'x' is not defined")
    )
    said = clean(chained)
    assert said.exception == "NameError: name 'x' is not defined"
    assert "During handling" in said.text
    assert "withheld" not in said.text


def test_an_exception_group_is_withheld() -> None:
    group = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/x.py", line 1, in f\n'
        f"  | ExceptionGroup: {PROMPT} (1 sub-exception)\n"
        "  +-+---------------- 1 ----------------\n"
        f"    | ValueError: {PROMPT}\n"
    )
    assert "doctor" not in clean(traceback("ExceptionGroup: x") + group).text


def test_a_panic_of_rust_is_withheld() -> None:
    panic = (
        "thread '<unnamed>' panicked at src/parser.rs:12:5:\n"
        f"byte index 3 is not a char boundary; it is inside 'é' of {PROMPT}\n{PROMPT}\n"
        "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n"
    )
    said = clean(panic).text
    assert "doctor" not in said
    assert "panicked at src/parser.rs:12:5" in said
    assert "note: run with" in said


def test_a_log_line_of_another_thread_does_not_end_a_traceback() -> None:
    torn = traceback(f"ValueError: {PROMPT}").replace("    raise", f"{LOG}\n    raise")
    said = clean(torn)
    assert "doctor" not in said.text
    assert LOG in said.text


def test_a_cut_beginning_is_withheld_up_to_something_known() -> None:
    text = f"{PROMPT}\n{PROMPT}\n{LOG}\n{LOG}"
    said = clean(text, cut=True).text
    assert "doctor" not in said
    assert said.endswith(f"{LOG}\n{LOG}")
    # A log line's text may go on after the cut.
    assert "loaded" not in clean(f"{LOG[20:]}\n{LOG[20:]}", cut=True).text


def test_stacks_are_told_apart() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys, threading, faulthandler\n"
            "faulthandler.enable(all_threads=False)\n"  # as in a child
            "print('[x] before', file=sys.stderr, flush=True)\n"
            "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
            "faulthandler.dump_traceback()\n"
            "print('[x] between', file=sys.stderr, flush=True)\n"
            "os.abort()",
        ],
        capture_output=True,
        check=False,
    )
    said = Redactor().redact(done.stderr)
    assert said.text.splitlines() == ["[x] before", "[x] between"]
    assert said.stacks.count("in <module>") == 2
    assert said.stacks.count("Thread 0x") == 1
    assert said.stacks.count("Stack (most recent call first):") == 1
    assert "Fatal Python error: Aborted" in said.stacks
    assert said.exception == ""


def test_a_real_traceback_of_python() -> None:
    code = f"def f(x):\n    raise ValueError(x)\nf({PROMPT!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"doctor" in done.stderr
    said = Redactor().redact(done.stderr)
    assert "doctor" not in said.text
    assert said.exception.startswith("ValueError: (")


def test_nothing_can_command_a_terminal() -> None:
    said = clean("[x] \x1b[31mred\x1b[0m\r\x07\x9b5n\x00 a\u2028b\tc\n[x] \x85d").text
    assert said == "[x] red5n ab\tc\n[x] d"


def test_garbage_is_no_obstacle() -> None:
    assert Redactor().redact(b"[x] \xff\xfe\x00\n\xc3(").text == (
        "[x] \ufffd\ufffd\n(1 line withheld: requests may be quoted there)"
    )
    assert clean("") == Redacted("", "", "")
    long = clean("[x] " + "a" * 10_000).text
    assert 2000 < len(long) < 2100


def test_the_reason_in_a_line_of_unknown_form_is_kept() -> None:
    line = (
        b"python[4711:99] Execution was aborted: Insufficient Memory (00000008: my secret prompt)"
    )
    assert Redactor().redact(line).text == "Insufficient Memory (68 characters withheld)"
