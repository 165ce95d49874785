"""supervisor.startup: a sentence for a start that fails, and what is said of one that does not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor import startup
from supervisor.state.files import write_atomically
from supervisor.wire.text import reason

STATE = Path("/home/me/.bulkhead")


def error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("problem", "port", "holder", "said"),
    [
        (
            error(errno.EADDRINUSE),
            11435,
            "ollama (pid 7)",
            "address already in use by ollama (pid 7). Stop what listens there, or choose another "
            "with --port.",
        ),
        (
            error(errno.EADDRINUSE),
            11435,
            None,
            "address already in use. Stop what listens there, or choose another with --port.",
        ),
        (
            error(errno.EACCES),
            80,
            None,
            "permission denied: ports below 1024 are the system's. Choose another with --port.",
        ),
        (
            error(errno.EADDRNOTAVAIL),
            11435,
            None,
            f"{reason(error(errno.EADDRNOTAVAIL))}: no interface of this machine has that address. "
            "Choose another with --host and --port.",
        ),
        (
            OSError(-2, "Name or service not known"),
            11435,
            None,
            "name or service not known. Choose another with --host and --port.",
        ),
        (
            UnicodeError("label too long"),
            11435,
            None,
            "that is no name of a host. Choose another with --host and --port.",
        ),
    ],
)
def test_an_address_that_cannot_be_had(
    problem: Exception, port: int, holder: str | None, said: str
) -> None:
    told = startup.cannot_listen(problem, "10.0.0.9", port, holder)
    assert told == f"cannot listen on 10.0.0.9:{port}: {said}"


@pytest.mark.parametrize(
    ("number", "what_to_do"),
    [
        (errno.ENOSPC, "Free some space, or choose another --state-dir."),
        (errno.EACCES, "Make it writable for this user, or choose another --state-dir."),
        (errno.EROFS, "Make it writable for this user, or choose another --state-dir."),
        (errno.EISDIR, "Move that file or folder away, or choose another --state-dir."),
        (errno.EEXIST, "Move that file or folder away, or choose another --state-dir."),
        (errno.ENAMETOOLONG, "Choose a shorter --state-dir."),
    ],
)
def test_a_place_that_cannot_be_used(number: int, what_to_do: str) -> None:
    told = startup.cannot_use(error(number, f"{STATE}/lock"), STATE)
    said = f"{reason(error(number))}. {what_to_do}"
    assert told == f"cannot use the state directory {STATE}: {STATE}/lock: {said}"
    for itself in (error(number), error(number, str(STATE))):
        assert (
            startup.cannot_use(itself, STATE) == f"cannot use the state directory {STATE}: {said}"
        )


def test_a_file_that_cannot_take_its_place_is_told_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "address.json" / "x").mkdir(parents=True)
    with pytest.raises(OSError) as raised:  # noqa: PT011, whichever it is
        write_atomically(tmp_path / "address.json", b"")
    told = startup.cannot_use(raised.value, tmp_path)
    assert f": {tmp_path}/address.json: " in told


def test_too_few_files_are_not_the_directorys_fault() -> None:
    told = startup.cannot_use(error(errno.EMFILE), STATE)
    assert told.startswith("cannot start: too many open files. Allow more open files")


def test_a_long_path_is_shortened() -> None:
    told = startup.cannot_use(error(errno.ENAMETOOLONG, "/x" * 3000), STATE)
    assert len(told) < 400
    assert told.endswith("Choose a shorter --state-dir.")


def test_a_python_for_which_there_is_no_mlx() -> None:
    rosetta = startup.unsuitable([], "", platform="darwin", machine="x86_64")
    assert rosetta is not None
    assert "needs one for Apple silicon" in rosetta
    lacking = startup.unsuitable(["mlx", "mlx_lm"], "Cure.", platform="linux", machine="x86_64")
    assert lacking == "this installation of Bulkhead lacks mlx and mlx_lm. Cure."
    assert startup.unsuitable([], "", platform="darwin", machine="arm64") is None
    assert startup.unsuitable([], "", platform="linux", machine="aarch64") is None


def greeted(models: list[str], **more: object) -> list[str]:
    told = {
        "url": "http://127.0.0.1:11435",
        "budget": 96 * 10**9,
        "physical": 128 * 10**9,
        "config": None,
        "logs": STATE / "logs",
        "first": models[0] if models else "demo",
        "keys": False,
        **more,
    }
    return startup.greeting(models, **told)  # type: ignore[arg-type]


def test_what_is_served_is_told() -> None:
    assert greeted(["demo", "small"]) == [
        "2 models: demo, small",
        "memory for models: 96.0 GB of 128.0 GB",
        "configuration: no file; the defaults and the flags hold",
        f"logs: {STATE}/logs",
        "try: curl http://127.0.0.1:11435/v1/chat/completions -H 'Content-Type: application/json' "
        '-d \'{"model": "demo", "messages": [{"role": "user", "content": "hi"}]}\'',
    ]


def test_many_models_a_file_keys_and_no_limit() -> None:
    names = [f"m{number}" for number in range(20)]
    models, memory, config, _, example = greeted(
        names, budget=None, config=STATE / "bulkhead.toml", keys=True
    )
    assert models == "20 models: m0, m1, m2, m3, m4, m5, m6, m7 and 12 more"
    assert memory == "memory for models: no limit"
    assert config == f"configuration: {STATE}/bulkhead.toml"
    assert "-H 'Authorization: Bearer YOUR-KEY'" in example


def test_a_quote_in_a_name_does_not_end_the_example() -> None:
    assert "it'\\''s" in greeted(["it's"])[-1]
    assert r'{"model": "a\"b\\c", ' in greeted(['a"b\\c'])[-1]


def test_whoever_limits_the_memory_is_told() -> None:
    memory = greeted(["demo"], limit="/sys/fs/cgroup/memory.max")[1]
    assert memory == (
        "memory for models: 96.0 GB of 128.0 GB that /sys/fs/cgroup/memory.max allows"
    )
