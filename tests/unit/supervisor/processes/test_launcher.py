"""supervisor.processes.launcher and supervisor.processes.child, with real children."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from supervisor.processes import launcher as launcher_module
from supervisor.processes.child import STACKS_SIGNAL
from supervisor.processes.launcher import Child, Launcher, describe_exit, find_ours
from supervisor.wire import progress
from tests.helpers.children import ROOT
from tests.helpers.serving import Deadline

SECONDS = 20
"""What anything here may take before the test fails; nothing waits for it to pass."""


@dataclass
class Nursery:
    """Starts children of `tests.helpers.children` and cleans up after them."""

    folder: Path
    launcher: Launcher
    stack: ExitStack

    def start(
        self,
        *arguments: str,
        channel: bool = False,
        fault_pipe: bool = False,
        progress: bool = False,
        inherit: Sequence[int] = (),
    ) -> Any:
        """A child and the future of its return code."""
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        child = self.launcher.start(
            arguments[0],
            "tests.helpers.children",
            arguments,
            stdout=self.folder / "stdout",
            stderr=self.folder / "stderr",
            environ={"EXTRA": "1"},
            channel=channel,
            fault_pipe=fault_pipe,
            progress=progress,
            inherit=inherit,
            on_exit=ended.set_result,
        )
        self.stack.callback(child.popen.wait)
        self.stack.callback(child.popen.kill)
        if child.channel is not None:
            self.stack.callback(child.channel.close)
            child.channel.settimeout(SECONDS)
        return child, ended

    def run(self, *arguments: str, channel: bool = False) -> int:
        """A child's return code, once it has ended."""

        async def scenario() -> int:
            _, ended = self.start(*arguments, channel=channel)
            return await asyncio.wait_for(ended, SECONDS)

        return asyncio.run(scenario())

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    lifeline, held = os.pipe()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with ExitStack() as stack:
        yield Nursery(tmp_path, Launcher("instance-1", lifeline, environ), stack)
    os.close(held)
    os.close(lifeline)


def open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/dev/fd") if is_open(int(name))}


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "returncode", "words"),
    [
        (("exit", "0"), 0, "exit status 0"),
        (("exit", "3"), 3, "exit status 3"),
        (("raise",), 1, "exit status 1"),
        (("die", str(int(signal.SIGKILL))), -signal.SIGKILL, "SIGKILL"),
        (("die", str(int(signal.SIGABRT))), -signal.SIGABRT, "SIGABRT"),
        (("die", str(int(signal.SIGTERM))), -signal.SIGTERM, "SIGTERM"),
    ],
)
def test_an_end_is_told_with_its_status(
    nursery: Nursery, arguments: tuple[str, ...], returncode: int, words: str
) -> None:
    assert nursery.run(*arguments) == returncode
    assert describe_exit(returncode) == words


def test_a_child_runs_where_the_folder_is_gone(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
    folder.rmdir()
    assert nursery.run("describe") == 0
    monkeypatch.chdir(tmp_path)
    assert nursery.run("describe") == 0
    told = [json.loads(line)["folder"] for line in (tmp_path / "stdout").read_text().splitlines()]
    assert told == ["/", str(tmp_path)]


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert describe_exit(-250) == "signal 250"


def test_the_last_words_before_a_kill_are_in_the_files(nursery: Nursery) -> None:
    (nursery.folder / "stderr").write_text("earlier ")
    nursery.run("die", str(int(signal.SIGKILL)))
    assert nursery.stdout == "last words to stdout"
    assert nursery.stderr == "earlier last words to stderr"


def test_a_childs_files_are_its_owners_alone(nursery: Nursery) -> None:
    nursery.run("exit", "0")
    for name in ("stdout", "stderr"):
        assert (nursery.folder / name).stat().st_mode & 0o777 == 0o600


def test_an_abort_leaves_the_stack_of_the_thread_that_failed(nursery: Nursery) -> None:
    """And of no other: a thread that runs on while its frames are read crashes the reading, and
    the abort ends as a SIGSEGV."""
    nursery.run("die", str(int(signal.SIGABRT)))
    assert "Fatal Python error: Aborted" in nursery.stderr
    assert "in last_words" in nursery.stderr
    assert "in _watch" not in nursery.stderr  # the lifeline's thread


def test_stacks_can_be_asked_for_at_any_time(nursery: Nursery) -> None:
    async def scenario() -> None:
        child, ended = nursery.start("echo", channel=True)
        assert child.channel.recv(1) == b"!"
        child.signal(STACKS_SIGNAL)
        deadline = Deadline(SECONDS)
        while "in echo" not in nursery.stderr:
            deadline.check("the stacks")
        child.channel.sendall(b"hello")
        assert child.channel.recv(100) == b"hello"
        child.kill_with_stacks()
        assert await asyncio.wait_for(ended, SECONDS) == -signal.SIGKILL

    asyncio.run(scenario())
    assert nursery.stderr.count("in echo") == 2


def test_a_stopped_child_is_killed_without_its_stacks(nursery: Nursery) -> None:
    async def scenario() -> None:
        child, ended = nursery.start("echo", channel=True)
        assert child.channel.recv(1) == b"!"
        child.signal(signal.SIGSTOP)
        child.kill_with_stacks()
        assert await asyncio.wait_for(ended, SECONDS) == -signal.SIGKILL

    asyncio.run(scenario())
    assert nursery.stderr == ""


def test_an_exception_leaves_its_traceback(nursery: Nursery) -> None:
    nursery.run("raise")
    assert "RuntimeError: planned" in nursery.stderr


def test_the_channel_carries_bytes_and_ends_with_the_child(nursery: Nursery) -> None:
    async def scenario() -> None:
        child, ended = nursery.start("echo", channel=True)
        assert child.channel.recv(1) == b"!"
        child.channel.sendall(b"hello")
        assert child.channel.recv(100) == b"hello"
        child.signal(signal.SIGKILL)
        assert child.channel.recv(1) == b""  # nobody else, and not we, held its end
        assert await asyncio.wait_for(ended, SECONDS) == -signal.SIGKILL
        child.signal(signal.SIGKILL)  # nothing, now that it is reaped

    asyncio.run(scenario())


def test_the_child_learns_that_its_channel_is_closed(nursery: Nursery) -> None:
    async def scenario() -> None:
        child, ended = nursery.start("echo", channel=True)
        assert child.channel.recv(1) == b"!"
        child.channel.close()
        assert await asyncio.wait_for(ended, SECONDS) == 0

    asyncio.run(scenario())


def test_a_child_that_ends_after_the_loop_disturbs_nobody(nursery: Nursery) -> None:
    async def scenario() -> Child:
        child, _ = nursery.start("echo", channel=True)
        return child  # type: ignore[no-any-return]

    child = asyncio.run(scenario())
    (waiter,) = [thread for thread in threading.enumerate() if thread.name == f"wait-{child.pid}"]
    child.popen.kill()
    waiter.join(SECONDS)  # an exception in it would fail this test
    assert not waiter.is_alive()


# ── the birth ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def _terminal() -> Iterator[None]:
    """What a shell gives us and a child must not have: words on stdin, a SIGINT that ends it."""
    reading, writing = os.pipe()
    os.write(writing, b"typed by somebody")
    stdin, handler = os.dup(0), signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(reading, 0)
    yield
    os.dup2(stdin, 0)
    signal.signal(signal.SIGINT, handler)
    for descriptor in (reading, writing, stdin):
        os.close(descriptor)


@pytest.mark.usefixtures("_terminal")
def test_a_child_is_born_as_it_must_be(nursery: Nursery) -> None:
    assert nursery.run("describe", "more", "arguments") == 0
    told = json.loads(nursery.stdout)
    assert told["argv"][1:] == ["describe", "more", "arguments"]
    assert told["core"] == [0, 0]
    assert told["sigint_ignored"]
    assert told["leads_its_group"]
    assert told["instance"] == "instance-1"
    assert told["stdin"] == ""


def test_a_child_inherits_what_it_is_given_and_nothing_else(nursery: Nursery) -> None:
    async def scenario() -> int:
        sibling, _ = nursery.start("echo", channel=True)
        assert sibling.channel.recv(1) == b"!"
        with socket.socket() as listener:
            _, ended = nursery.start("describe", channel=True, inherit=[listener.fileno()])
            assert await asyncio.wait_for(ended, SECONDS) == 0
            return listener.fileno()

    listener = asyncio.run(scenario())
    told = json.loads(nursery.stdout)
    channel = int(told["argv"][told["argv"].index("--channel") + 1])
    expected = {0, 1, 2, nursery.launcher.lifeline, listener, channel}
    assert set(told["descriptors"]) == expected


@pytest.mark.parametrize("broken", ["executable", "descriptors"])
def test_a_start_that_fails_leaks_nothing(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "executable":
        monkeypatch.setattr(sys, "executable", str(nursery.folder / "no-python"))
    else:

        def full() -> NoReturn:
            raise FileNotFoundError  # as good as any other

        monkeypatch.setattr(os, "pipe", full)

    async def scenario() -> None:
        before = open_descriptors()
        with pytest.raises(FileNotFoundError):
            nursery.start("exit", "0", channel=True, fault_pipe=True, progress=True)
        assert open_descriptors() == before

    asyncio.run(scenario())


# ── what cannot be written ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "spoil",
    ["logs is missing", "logs is a file", "logs leads nowhere", "folders for files", "fifos"],
)
def test_a_child_starts_without_log_files(
    nursery: Nursery, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    logs = nursery.folder = nursery.folder / "logs"
    match spoil:
        case "logs is a file":
            logs.touch()
        case "logs leads nowhere":
            logs.symlink_to("/nonexistent/bulkhead")
        case "folders for files" | "fifos":
            logs.mkdir()
            for name in ("stdout", "stderr"):
                (logs / name).mkdir() if spoil != "fifos" else os.mkfifo(logs / name)
    for _ in range(2):
        assert nursery.run("exit", "3") == 3
    if spoil == "logs is missing":
        assert (logs / "stderr").stat().st_mode & 0o777 == 0o600
        assert caplog.messages == []
    else:
        assert len(caplog.messages) == 1
        assert f"start without: {logs / 'stdout'}: " in caplog.messages[0]


def test_one_log_file_that_cannot_be_written_is_told_once(
    nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    (nursery.folder / "stderr").mkdir()
    for _ in range(2):
        assert nursery.run("exit", "3") == 3
    (nursery.folder / "stderr").rmdir()
    assert nursery.run("exit", "3") == 3
    what = "write the log files of processes, which start without"
    assert caplog.messages == [
        f"cannot {what}: {nursery.folder / 'stderr'}: Is a directory",
        f"can again {what}",
    ]


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR],
    ids=errno.errorcode.__getitem__,
)
@pytest.mark.parametrize("what", ["log files", "progress records"])
def test_a_child_starts_without_what_cannot_be_made(
    nursery: Nursery,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    number: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    if what == "log files":
        monkeypatch.setattr(launcher_module, "_open", fail)
    else:
        monkeypatch.setattr(progress, "create", fail)

    async def scenario() -> None:
        for _ in range(2):
            child, ended = nursery.start("describe", progress=True)
            assert await asyncio.wait_for(ended, SECONDS) == 0
            assert (progress.read(child.progress) is None) is (what == "progress records")
            os.close(child.progress)

    asyncio.run(scenario())
    assert len(caplog.messages) == 1
    assert what in caplog.messages[0]


# ── identity ─────────────────────────────────────────────────────────────────────────────────────


def test_a_process_is_ours_by_pid_and_start_and_instance(nursery: Nursery) -> None:
    async def scenario() -> Child:
        child, ended = nursery.start("echo", channel=True)
        assert child.channel.recv(1) == b"!"
        assert find_ours(child.pid, child.started, "instance-1")
        assert not find_ours(child.pid, child.started, "instance-2")
        assert not find_ours(child.pid, child.started - 5, "instance-1")
        assert not find_ours(os.getpid(), child.started, "instance-1")
        child.signal(signal.SIGKILL)
        await asyncio.wait_for(ended, SECONDS)
        return child  # type: ignore[no-any-return]

    child = asyncio.run(scenario())
    assert not find_ours(child.pid, child.started, "instance-1")


# ── no orphans ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("armed", ["everything", "lifeline"])
def test_no_child_outlives_its_supervisor(tmp_path: Path, armed: str) -> None:
    """The pipe `held` is open in the supervisor and in its child: its end is the end of both."""
    watched, held = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.children", "parent", str(held), str(tmp_path), armed],
        pass_fds=[held],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    os.close(held)
    with parent, os.fdopen(watched, "rb") as pipe:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert select.select([pipe], [], [], 0)[0] == []
        parent.kill()
        ended = select.select([pipe], [], [], SECONDS)[0] == [pipe]
        if not ended:
            os.kill(pid, signal.SIGKILL)  # this test leaves nobody behind, whatever it finds
        assert ended
        assert pipe.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's pid is checked on Linux alone")
def test_a_child_whose_parent_is_already_dead_does_not_start() -> None:
    lifeline, held = os.pipe()
    command = [
        sys.executable,
        "-m",
        "supervisor.processes.child",
        str(lifeline),
        "1",
        "2",
        "tests.helpers.children",
    ]
    with open(lifeline, "rb"), open(held, "wb"):
        done = subprocess.run([*command, "exit", "7"], pass_fds=[lifeline], cwd=ROOT, check=False)
    assert done.returncode == 1


def test_child_that_nothing_can_wait_for_is_killed(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves neither a process nor a descriptor behind."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def recorded(*args: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **more))
        return started[-1]

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scenario() -> None:
        before = os.listdir("/dev/fd")
        with pytest.raises(OSError, match="can't start new thread"):
            nursery.start("exit", "0", channel=True, fault_pipe=True, progress=True)
        assert os.listdir("/dev/fd") == before

    monkeypatch.setattr(subprocess, "Popen", recorded)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    asyncio.run(scenario())
    assert [each.returncode for each in started] == [-signal.SIGKILL]
