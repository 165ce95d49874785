"""One child process: how it is started, how its end is learned, where its output goes.

Children are started with `subprocess.Popen` from the main thread (on Linux the parent-death signal
fires when the *thread* that forked ends) and run `supervisor.processes.child` first, which sets up
what can only be set up inside the new process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import psutil

from supervisor import bootstrap
from supervisor.processes.child import STACKS_SIGNAL
from supervisor.state.trouble import Trouble
from supervisor.wire import progress as progress_record

_STDERR = 2
_STACKS_SECONDS = 0.3
"""Time to write its stacks for a process that is to be killed; a stopped one never writes them."""

INSTANCE_VARIABLE = "BULKHEAD_INSTANCE"
"""Environment variable by which a later run recognises the children of an earlier one."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running child. `started` is its start time as psutil gives it, which guards its pid."""

    role: str
    pid: int
    started: float
    popen: subprocess.Popen[bytes]
    files: tuple[Path, Path]
    """Where its stdout and stderr go."""
    channel: socket.socket | None
    """Our end of the socketpair that the child inherited."""
    fault_pipe: int | None
    """Our end of the pipe that the child's faulthandler writes to."""
    progress: int | None
    """The child's progress record."""
    home: Path
    """Where the packages are that it runs."""

    def signal(self, number: signal.Signals) -> None:
        """Signal the child; nothing once it has been reaped (Popen then knows its status)."""
        self.popen.send_signal(number)

    def kill_with_stacks(self) -> None:
        """Ask for its threads' stacks, which it writes to stderr if it still can; kill it
        0.3 s later. Returns at once."""
        self.signal(STACKS_SIGNAL)
        loop = asyncio.get_running_loop()
        loop.call_later(_STACKS_SECONDS, self.signal, signal.SIGKILL)


def installed() -> Path:
    """The folder with our packages."""
    return Path(bootstrap.__file__).parents[1]


class Code(Protocol):
    """What a child runs."""

    def home(self) -> Path:
        """The folder with the packages to start it from. May block on files and raise OSError."""

    def is_same(self, home: Path) -> bool:
        """Whether a child that was started from there, and has imported its modules by now, runs
        the code that we do. May block on files."""


class InstalledCode:
    """The installation, which does not change."""

    def home(self) -> Path:
        return installed()

    def is_same(self, home: Path) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Launcher:
    """What all children of one supervisor share."""

    instance: str
    lifeline: int
    """Read end of a pipe whose write end only the supervisor holds: EOF = the supervisor died."""
    environ: Mapping[str, str]
    code: Code = field(default_factory=InstalledCode)
    _output: Trouble = field(
        default_factory=lambda: Trouble("write the log files of processes, which start without")
    )
    _records: Trouble = field(
        default_factory=lambda: Trouble(
            "make the progress records of processes, whose stalls are not noticed then"
        )
    )

    def start(
        self,
        role: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        stdout: Path,
        stderr: Path,
        on_exit: Callable[[int], None],
        environ: Mapping[str, str] | None = None,
        channel: bool = False,
        fault_pipe: bool = False,
        progress: bool = False,
        inherit: Sequence[int] = (),
    ) -> Child:
        """Run MODULE with ARGUMENTS in a Python process, in a process group of its own.

        With `channel` the child finds one end of a socketpair as file descriptor `--channel`; with
        `fault_pipe` its faulthandler writes to a pipe instead of stderr; with `progress` it finds
        its progress record as `--progress`. Our ends are in the result and belong to the caller.
        `inherit` are further descriptors that the child keeps, under their numbers. `on_exit` is
        called once, on the running event loop, with the return code as subprocess gives it
        (negative = signal). Where a log file or the progress record cannot be written the child
        starts without it. Raises OSError when the process cannot be started.
        """
        loop = asyncio.get_running_loop()
        with ExitStack() as theirs, ExitStack() as ours:
            out, err = (theirs.enter_context(each) for each in self._open_output(stdout, stderr))
            fds = [self.lifeline, *inherit]
            our_end: socket.socket | None = None
            if channel:
                our_end, their_end = socket.socketpair()
                theirs.enter_context(their_end)
                ours.enter_context(our_end)
                fds.append(their_end.fileno())
                arguments = (*arguments, "--channel", str(their_end.fileno()))
            faults_in: int | None = None
            faults_out = _STDERR
            if fault_pipe:
                faults_in, faults_out = os.pipe()
                # A supervisor that is stopped must not keep a dying child alive.
                os.set_blocking(faults_out, False)
                theirs.callback(os.close, faults_out)
                ours.callback(os.close, faults_in)
                fds.append(faults_out)
            record: int | None = None
            if progress:
                record = self._create_record()
                ours.callback(os.close, record)
                fds.append(record)
                arguments = (*arguments, "--progress", str(record))
            home = self.code.home()
            popen = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # what lies in the working directory is none of its modules
                    str(home / "supervisor" / "bootstrap.py"),
                    "supervisor.processes.child",
                    str(self.lifeline),
                    str(os.getpid()),
                    str(faults_out),
                    module,
                    *arguments,
                ],
                cwd=_working_directory(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=fds,
                process_group=0,
                env={**self.environ, **(environ or {}), INSTANCE_VARIABLE: self.instance},
            )
            try:
                started, files = start_time(popen.pid), (stdout, stderr)
                child = Child(
                    role, popen.pid, started, popen, files, our_end, faults_in, record, home
                )
                threading.Thread(
                    target=_report_exit,
                    args=(popen, loop, on_exit),
                    name=f"wait-{popen.pid}",
                    daemon=True,
                ).start()
            except Exception as error:  # such as RuntimeError: can't start new thread
                popen.kill()
                popen.wait()
                raise OSError(errno.EAGAIN, f"nothing can wait for it: {error}") from error
            ours.pop_all()  # it runs, and its end will be told: our ends stay open
        return child

    def _create_record(self) -> int:
        """A progress record; where none can be made, something that reads as none. Raises
        OSError."""
        try:
            record = progress_record.create()
        except OSError as error:
            record = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._records.failed(error)
        else:
            self._records.worked()
        return record

    def _open_output(self, *paths: Path) -> list[IO[bytes]]:
        """The child writes to the files itself, so that its last bytes survive any death. Raises
        OSError when nothing can be opened at all."""
        files: list[IO[bytes]] = []
        failed = False
        with ExitStack() as opened:
            for path in paths:
                try:
                    file = _append(path)
                except OSError as error:
                    failed = True
                    file = open(os.devnull, "ab")  # noqa: SIM115, the caller closes it
                    self._output.failed(error, path)
                files.append(opened.enter_context(file))
            opened.pop_all()
        if not failed:
            self._output.worked()
        return files


def _working_directory() -> str | None:
    """Where a child runs, None = where we do. Python imports little in a folder that is gone."""
    try:
        os.getcwd()
    except OSError:
        return "/"
    return None


def describe_exit(returncode: int) -> str:
    """How a process ended, in words: "SIGABRT" or "exit status 3"."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def find_ours(pid: int, started: float, instance: str) -> psutil.Process | None:
    """The process `pid`, if it is still the one that `instance` started at `started`.

    All three must match: pids are reused, and another instance's children are not ours to touch.
    """
    try:
        process = psutil.Process(pid)
        same_start = abs(process.create_time() - started) < 0.5
        same_instance = process.environ().get(INSTANCE_VARIABLE) == instance
        return process if same_start and same_instance else None
    except (psutil.Error, OSError):
        return None


def _report_exit(
    popen: subprocess.Popen[bytes],
    loop: asyncio.AbstractEventLoop,
    on_exit: Callable[[int], None],
) -> None:
    """Block in waitpid: the same code on every platform, and no delay after the death."""
    returncode = popen.wait()
    try:
        loop.call_soon_threadsafe(on_exit, returncode)
    except RuntimeError:
        return  # the loop is closed: the supervisor has ended


def _append(path: Path) -> IO[bytes]:
    """The folder is made if it is missing. Raises OSError."""
    try:
        return _open(path)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return _open(path)


def _open(path: Path) -> IO[bytes]:
    # A FIFO in its place would stop us until somebody reads it.
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o600))


def start_time(pid: int) -> float:
    """When the process began, epoch seconds; 0 = there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, OSError):
        return 0.0  # dead already; a record that matches nothing
