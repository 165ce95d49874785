"""One worker process, as the supervisor holds it: at first perhaps nobody's, later a model's."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.processes.fatal_signal import FatalSignal
from supervisor.processes.launcher import Child, Launcher, describe_exit
from supervisor.wire import frames, progress
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

Channel = FrameStream[frames.FromWorker]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who learns what becomes of the process, on the event loop."""

    dying: Callable[[str], None]
    """A fatal signal has come, such as "SIGABRT"; told at most once."""
    exited: Callable[[str], None]
    """It is reaped; told once. Its progress record can still be read."""


class WorkerProcess:
    """Owns the process's channel, last words and progress record; frees them when it is reaped."""

    def __init__(
        self,
        launcher: Launcher,
        module: str,
        role: str,
        base: Path,
        owner: Owner,
        *,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Start it, with its output in `base`.stdout and `base`.stderr. `environ` is what it gets
        over what every worker has. Raises OSError when it cannot be started."""
        self.owner = owner
        self.gone = asyncio.Event()
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
            words=True,
            progress=True,
            on_exit=self._exited,
        )
        assert self.child.words is not None
        assert self.child.progress is not None
        self._record = self.child.progress
        self._words = FatalSignal(self.child.words, stderr, lambda how: self.owner.dying(how))

    async def connect(self) -> Channel:
        """The channel, which has one reader at a time."""
        if self.channel is None:
            assert self.child.channel is not None
            channel: Channel = FrameStream(frames.FromWorker)
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: channel, sock=self.child.channel)
            self.channel = channel
        return self.channel

    def reading(self) -> progress.Reading | None:
        """How far it has come."""
        return progress.read(self._record)

    def hand_over(self, owner: Owner, role: str, base: Path) -> None:
        """From now on it is `owner`'s and its files have the names that they would have had from
        the start: it keeps writing through its descriptors."""
        self.owner = owner
        files = _files(base)
        try:
            for old, new in zip(self.child.files, files, strict=True):
                old.rename(new)
        except OSError as error:
            log.error("the spare's log files keep their names: %s", error.strerror)
            files = self.child.files
        self.child = replace(self.child, role=role, files=files)
        self._words.stderr = files[1]

    def _exited(self, returncode: int) -> None:
        self._words.close()
        try:
            self.owner.exited(describe_exit(returncode))
        finally:
            os.close(self._record)
            self.gone.set()


def _files(base: Path) -> tuple[Path, Path]:
    return base.with_name(f"{base.name}.stdout"), base.with_name(f"{base.name}.stderr")


def _environ() -> dict[str, str]:
    """What every worker's environment has over ours."""
    environ = {"HF_HUB_OFFLINE": "1"}
    if sys.platform == "linux":
        # On the CPU, MLX fuses operations by running a C++ compiler in the middle of a request:
        # a pause of seconds for all streams, and where /tmp/mlx belongs to another user the
        # end of the worker. Metal compiles at its ease, in memory.
        environ["MLX_DISABLE_COMPILE"] = "1"
    return environ
