"""One worker process: its channel, its progress record, its log files."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.background import guarded
from supervisor.processes.fatal_signal import FatalSignalReader
from supervisor.processes.launcher import Child, Launcher, describe_exit
from supervisor.wire import frames, progress
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

Channel = FrameStream[frames.FromWorker]


@dataclass(frozen=True, slots=True)
class ExitCallbacks:
    """Called on the event loop."""

    on_fatal_signal: Callable[[str], None]
    """A fatal signal has come, such as "SIGABRT"; at most once, and before `on_exit`."""
    on_exit: Callable[[str], None]
    """The process is reaped: a signal's name or "exit status 3"; once. Its progress record can
    still be read."""


class WorkerProcess:
    """A running worker. Its fault pipe and progress record are closed when it is reaped."""

    def __init__(
        self,
        launcher: Launcher,
        module: str,
        role: str,
        base: Path,
        callbacks: ExitCallbacks,
        *,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with its output in `base`.stdout and `base`.stderr. `environ` is added to the
        environment that every worker has. Raises OSError when it cannot be started."""
        self.callbacks = callbacks
        self._code = launcher.code
        self.gone = asyncio.Event()
        """Set when it is reaped."""
        self.channel: Channel | None = None
        stdout, stderr = _files(base)
        self.child: Child = launcher.start(
            role,
            module,
            arguments,
            stdout=stdout,
            stderr=stderr,
            environ={**_environ(), **(environ or {})},
            channel=True,
            fault_pipe=True,
            progress=True,
            on_exit=self._exited,
        )
        assert self.child.fault_pipe is not None
        assert self.child.progress is not None
        self._record = self.child.progress
        self._faults: FatalSignalReader | None = None
        try:
            self._faults = FatalSignalReader(
                self.child.fault_pipe, stderr, lambda how: self.callbacks.on_fatal_signal(how)
            )
        except Exception as error:
            self._abandon()
            raise OSError(errno.EIO, f"its fault pipe cannot be read: {error}") from error

    def _abandon(self) -> None:
        """Kill it; nobody is told, since its caller has never had it."""
        self.callbacks = ExitCallbacks(lambda _: None, lambda _: None)
        self.child.signal(signal.SIGKILL)
        assert self.child.fault_pipe is not None
        os.close(self.child.fault_pipe)
        if self.child.channel is not None:
            self.child.channel.close()

    async def connect(self) -> Channel:
        """The channel, always the same one. It has one reader at a time."""
        if self.channel is None:
            assert self.child.channel is not None
            channel: Channel = FrameStream(frames.FromWorker)
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: channel, sock=self.child.channel)
            self.channel = channel
        return self.channel

    def runs_our_code(self) -> bool:
        """Whether its modules are those that we run; to be asked once it has imported them. Blocks
        on files for 2 ms, see `OwnCode.is_same`."""
        return self._code.is_same(self.child.home)

    def reading(self) -> progress.Reading | None:
        """What its progress record says; None when it can't be read."""
        return progress.read(self._record)

    def reassign(self, callbacks: ExitCallbacks, role: str, base: Path) -> None:
        """Give it other callbacks, another role and other names for its files, to which it keeps
        writing through its descriptors."""
        self.callbacks = callbacks
        stdout, stderr = map(_rename, self.child.files, _files(base))
        files = stdout, stderr
        self.child = replace(self.child, role=role, files=files)
        if self._faults is not None:
            self._faults.stderr = files[1]

    def _exited(self, returncode: int) -> None:
        # Whatever else fails, its end is told.
        try:
            if self._faults is not None:
                self._faults.close()
        except OSError as error:
            log.error("the fault pipe of pid %d is not closed: %s", self.child.pid, error)
        finally:
            try:
                self.callbacks.on_exit(describe_exit(returncode))
            finally:
                self.gone.set()
                guarded(os.close, self._record)


def _rename(old: Path, new: Path) -> Path:
    """What the file is called then."""
    try:
        return old.rename(new)
    except OSError as error:
        log.warning("the spare's log file %s keeps its name: %s", old.name, error.strerror)
        return old


def _files(base: Path) -> tuple[Path, Path]:
    return base.with_name(f"{base.name}.stdout"), base.with_name(f"{base.name}.stderr")


def _environ() -> dict[str, str]:
    """What every worker's environment has in addition to ours."""
    environ = {"HF_HUB_OFFLINE": "1"}
    if sys.platform == "linux":
        # On the CPU, MLX fuses operations by running a C++ compiler in the middle of a request:
        # a pause of seconds for all streams, and where /tmp/mlx belongs to another user the
        # end of the worker. Metal compiles at its ease, in memory.
        environ["MLX_DISABLE_COMPILE"] = "1"
    return environ
