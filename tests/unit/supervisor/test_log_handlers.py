"""supervisor.log_handlers: a log goes on whatever others do to its file and its folder."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor import log_handlers
from supervisor.log_handlers import Console, LogFile

ERRORS = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EMFILE]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "logs" / "x.log"


@pytest.fixture
def say(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Logs a line; each looks whether the file is in its place."""
    monkeypatch.setattr(log_handlers, "_LOOK_SECONDS", 0.0)
    path.parent.mkdir(parents=True)
    handler = LogFile(path)

    def say(text: str) -> None:
        handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, text, (), None))

    yield say
    handler.close()


def lines(path: Path) -> list[str]:
    return [line.split("INFO    ")[1] for line in path.read_text().splitlines()]


def remove_file(path: Path) -> None:
    path.unlink()


def move_file(path: Path) -> None:
    path.rename(path.with_name("moved"))


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def remove_state(path: Path) -> None:
    shutil.rmtree(path.parent.parent)


def folder_for_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "do", [remove_file, move_file, remove_folder, move_folder, remove_state, folder_for_link]
)
def test_the_log_goes_on(
    path: Path,
    say: Callable[[str], None],
    do: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    say("before")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    do(path)
    say("after")
    assert lines(path) == ["after"]
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0 or do is not remove_folder
    assert capfd.readouterr().err == ""


def folder_for_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def file_for_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.touch()


def fifo_for_file(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.symlink_to(path.parent.with_name("nowhere"))


def put_back(path: Path) -> None:
    if path.parent.is_dir() and not path.parent.is_symlink():
        path.rmdir() if path.is_dir() else path.unlink()
    else:
        path.parent.unlink()


@pytest.mark.parametrize("do", [folder_for_file, file_for_folder, fifo_for_file, dangling_folder])
def test_lines_are_lost_until_the_place_is_free_again(
    path: Path,
    say: Callable[[str], None],
    do: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    say("before")
    do(path)
    for _ in range(3):
        say("lost")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert str(path) in said
    put_back(path)
    say("after")
    assert lines(path) == ["after"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.__getitem__)
@pytest.mark.parametrize("call", ["open", "rename"])
def test_an_error_is_told_once_and_raises_nothing(
    path: Path,
    say: Callable[[str], None],
    call: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    say("before")
    with monkeypatch.context() as broken:
        if call == "open":
            broken.setattr(log_handlers, "_private", fail)
            path.unlink()
        else:
            broken.setattr(os, "rename", fail)
            broken.setattr(LogFile, "shouldRollover", lambda *_: True)
        say("in trouble")
        say("in trouble")
        said = capfd.readouterr().err
        assert said.count("\n") == (call == "open")  # a file that can't be rotated grows
    say("after")
    assert lines(path)[-1] == "after"
    assert lines(path).count("in trouble") == (0 if call == "open" else 2)
    assert capfd.readouterr().err == ""


def test_a_full_disk_costs_lines_alone(
    path: Path, say: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    path.symlink_to("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full")
    for _ in range(3):
        say("lost")
    assert capfd.readouterr().err.count("\n") == 1
    path.unlink()
    say("after")
    assert lines(path) == ["after"]


def test_a_name_that_is_no_text_is_logged(path: Path, say: Callable[[str], None]) -> None:
    say("caf\udce9")
    say("after")
    assert lines(path) == ["caf\\udce9", "after"]


class Odd:
    def __str__(self) -> str:
        raise KeyError("planted")


@pytest.mark.parametrize(("message", "argument"), [("%d", "secret"), ("%q", 1), ("%s", Odd())])
def test_a_record_that_is_a_bug_costs_itself_alone(
    message: str, argument: object, path: Path, say: Callable[[str], None]
) -> None:
    bad = logging.LogRecord("x", logging.ERROR, "bad.py", 7, message, (argument,), None)
    logger = logging.Logger("x")
    reading, writing = os.pipe()
    console = Console(writing)
    logger.addHandler(LogFile(path))
    logger.addHandler(console)
    say("before")
    logger.handle(bad)
    say("after")
    console.flush()
    os.close(writing)
    with open(reading) as file:
        told = file.read()
    assert told.startswith("ERROR cannot be told: bad.py:7 (")
    written = path.read_text()
    assert told in written
    assert written.count("\n") == 3
    assert "secret" not in written
    logger.handlers[0].close()


# ── a console ────────────────────────────────────────────────────────────────────────────────────


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, "x.py", 1, text, (), None)


def test_a_stderr_that_takes_nothing_stops_nobody_and_gets_what_it_missed() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    console = Console(writing)
    for number in range(log_handlers._CONSOLE_LINES + 100):
        console.handle(record(f"line {number}"))
    console.flush()  # gives up
    with open(reading, "rb") as file:
        file.read(filled)
        console.flush()
        console.handle(record("the last one"))
        while b"the last one" not in (line := file.readline()):
            assert b"line" in line


def test_without_a_thread_a_console_has_what_it_takes_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    console = Console(writing)
    console.handle(record("why it cannot start"))
    console.flush()
    assert b"why it cannot start" in os.read(reading, 1000)
    os.close(reading)
    console.handle(record("nobody reads"))
    os.close(writing)
    console.handle(record("nothing is there"))


@pytest.mark.parametrize("closed", ["reader", "itself"])
def test_a_stderr_that_is_closed_costs_its_lines_alone(
    closed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    console = Console(writing)
    os.close(reading)
    if closed == "itself":
        os.close(writing)
    for _ in range(3):
        console.handle(record("lost"))
    console.flush()
    assert console._thread.is_alive()
    assert capfd.readouterr().err == ""
    if closed == "reader":
        os.close(writing)
