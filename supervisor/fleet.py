"""The worker processes: spawned, told what to load, listened to, signalled.

The fleet knows processes and nothing of requests; what happens to a process it reports to `Events`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from supervisor import logs
from supervisor.catalog import Catalog
from supervisor.last_words import LastWords
from supervisor.paths import StateDir, slug
from supervisor.process import Child, Launcher, describe_exit
from supervisor.sources import SourceError
from supervisor.watchdog import Watchdog
from supervisor.wire import frames, progress
from supervisor.wire.codec import ProtocolError
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.supervisor")

_REAP_SECONDS = 5.0
"""Between a worker's closed channel and its exit status; a longer gap is a zombie."""
_LOG_PROGRESS_SECONDS = 5.0


class Events(Protocol):
    """What the fleet tells. Each call is about one incarnation, perhaps one that is over."""

    def worker_started(self, model: str, generation: int, child: Child) -> None: ...
    def worker_loading(self, model: str, generation: int, done: int, total: int) -> None: ...
    def worker_ready(self, model: str, generation: int, ready: frames.Ready) -> None: ...
    def worker_progressed(self, model: str, generation: int) -> None:
        """It has made tokens, or the like, since this was told last."""

    def worker_stalled(self, model: str, generation: int, how: str) -> None: ...
    def worker_unloadable(self, model: str, generation: int, reason: str) -> None: ...
    def worker_broken(self, model: str, generation: int, reason: str) -> None: ...
    def worker_dying(self, model: str, generation: int, how: str) -> None: ...
    def worker_exited(self, model: str, generation: int, how: str) -> None: ...


@dataclass(slots=True, eq=False)
class Worker:
    """One incarnation."""

    model: str
    generation: int
    child: Child
    gone: asyncio.Event
    words: LastWords
    record: int
    """Descriptor of its progress record."""
    watchdog: Watchdog
    outputs: int = 0
    """Made so far, by the last look."""
    listening: asyncio.Task[None] | None = None
    channel: FrameStream[frames.FromWorker] | None = None

    @property
    def name(self) -> str:
        return f"{self.model}#{self.generation}"


class Fleet:
    """All worker processes of this supervisor."""

    def __init__(
        self,
        launcher: Launcher,
        state: StateDir,
        catalog: Catalog,
        events: Events,
        *,
        module: str,
        on_change: Callable[[], None],
        stall_seconds: float,
    ) -> None:
        self._launcher = launcher
        self._state = state
        self._catalog = catalog
        self._events = events
        self._module = module
        self._on_change = on_change
        self._stall_seconds = stall_seconds
        self._workers: dict[tuple[str, int], Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def spawn(self, model: str, generation: int) -> None:
        """Start an incarnation. A failure to start is reported as its exit, later on the loop."""
        loop = asyncio.get_running_loop()
        try:
            folder = self._catalog.locate(model)
        except SourceError as error:
            loop.call_soon(self._unlocatable, model, generation, str(error))
            return
        prefix = f"worker.{slug(model)}"
        stamp = datetime.now().strftime("%Y%m%dT%H%M%S")
        base = f"{prefix}.{stamp}.{generation}"
        key = (model, generation)
        try:
            child = self._launcher.start(
                f"worker {model}#{generation}",
                self._module,
                stdout=self._state.logs / f"{base}.stdout",
                stderr=self._state.logs / f"{base}.stderr",
                environ={**self._environ(), **self._catalog.models[model].env},
                channel=True,
                words=True,
                progress=True,
                on_exit=lambda returncode: self._exited(key, returncode),
            )
        except OSError as error:
            log.error("worker %s#%d cannot be started: %s", model, generation, error)
            how = f"it could not be started: {error.strerror}"
            loop.call_soon(self._events.worker_exited, model, generation, how)
            return
        assert child.words is not None
        assert child.progress is not None
        words = LastWords(
            child.words,
            child.files[1],
            lambda how: self._events.worker_dying(model, generation, how),
        )
        watchdog, gone = Watchdog(self._stall_seconds), asyncio.Event()
        worker = Worker(model, generation, child, gone, words, child.progress, watchdog)
        self._workers[key] = worker
        log.info("worker %s spawned, pid %d, loading %s", worker.name, child.pid, folder)
        self._events.worker_started(model, generation, child)
        load = frames.Load(
            model=model,
            generation=generation,
            path=str(folder),
            socket=str(self._state.worker_socket(model, generation)),
            max_concurrency=self._catalog.concurrency(model),
            context=self._catalog.models[model].context,
        )
        worker.listening = loop.create_task(self._listen(worker, load))
        self._on_change()
        logs.forget_old(self._state.logs, prefix)

    @staticmethod
    def _environ() -> dict[str, str]:
        """What every worker's environment has over ours."""
        environ = {"HF_HUB_OFFLINE": "1"}
        if sys.platform == "linux":
            # On the CPU, MLX fuses operations by running a C++ compiler in the middle of a request:
            # a pause of seconds for all streams, and where /tmp/mlx belongs to another user the
            # end of the worker. Metal compiles at its ease, in memory.
            environ["MLX_DISABLE_COMPILE"] = "1"
        return environ

    def stop(self, model: str, generation: int, *, kill: bool, stacks: bool) -> None:
        """SIGTERM or SIGKILL, the latter after the `stacks` of its threads have been asked for;
        nothing where the process is gone already."""
        worker = self._workers.get((model, generation))
        if worker is None:
            return
        log.info("worker %s is %s", worker.name, "killed" if kill else "told to stop")
        if stacks:
            worker.child.put_down()
        else:
            worker.child.signal(signal.SIGKILL if kill else signal.SIGTERM)

    def look(self, model: str, generation: int, now: float, *, awaited: bool) -> None:
        """See whether a worker moves, and tell; nothing where the process is gone already.
        `awaited`: somebody is in it."""
        worker = self._workers.get((model, generation))
        reading = None if worker is None else self._read(worker)
        if worker is None or reading is None:
            return
        how = worker.watchdog.look(reading, now, awaited=awaited)
        if how is not None:
            self._events.worker_stalled(model, generation, how)

    def _read(self, worker: Worker) -> progress.Reading | None:
        """How far it has come. It is told that there are new outputs."""
        reading = progress.read(worker.record)
        if reading is not None and reading.outputs != worker.outputs:
            worker.outputs = reading.outputs
            self._events.worker_progressed(worker.model, worker.generation)
        return reading

    def shrink(self, model: str, generation: int) -> None:
        """Ask for what is only kept for later; nothing where the process is gone already."""
        worker = self._workers.get((model, generation))
        if worker is not None and worker.channel is not None:
            worker.channel.send(frames.Shrink())

    def _unlocatable(self, model: str, generation: int, reason: str) -> None:
        self._events.worker_unloadable(model, generation, reason)
        self._events.worker_exited(model, generation, "never started")

    def _exited(self, key: tuple[str, int], returncode: int) -> None:
        worker = self._workers.pop(key)
        worker.words.close()
        self._read(worker)  # what it made just before its death
        os.close(worker.record)
        how = describe_exit(returncode)
        self._state.worker_socket(*key).unlink(missing_ok=True)
        worker.gone.set()
        log.info("worker %s, pid %d, ended: %s", worker.name, worker.child.pid, how)
        self._events.worker_exited(*key, how)
        self._on_change()

    async def _listen(self, worker: Worker, load: frames.Load) -> None:
        """Follow one worker's channel until it closes, then see that the process really ends."""
        channel: FrameStream[frames.FromWorker] = FrameStream(frames.FromWorker)
        loop = asyncio.get_running_loop()
        assert worker.child.channel is not None
        await loop.create_connection(lambda: channel, sock=worker.child.channel)
        try:
            worker.channel = channel
            channel.send(load)
            await self._follow(worker, channel)
        except ProtocolError as error:
            self._events.worker_broken(worker.model, worker.generation, f"bad message: {error}")
        try:
            await asyncio.wait_for(worker.gone.wait(), _REAP_SECONDS)
        except TimeoutError:
            reason = "it closed its channel without exiting"
            self._events.worker_broken(worker.model, worker.generation, reason)
        finally:
            channel.close()

    async def _follow(self, worker: Worker, channel: FrameStream[frames.FromWorker]) -> None:
        incarnation = (worker.model, worker.generation)
        said = time.monotonic()
        while (frame := await channel.receive()) is not None:
            match frame:
                case frames.Hello():
                    self._events.worker_loading(*incarnation, 0, 0)
                case frames.Loading(done, total):
                    self._events.worker_loading(*incarnation, done, total)
                    if time.monotonic() - said > _LOG_PROGRESS_SECONDS or done == total:
                        said = time.monotonic()
                        log.info(
                            "worker %s loading: %d of %d MB",
                            worker.name,
                            done // 10**6,
                            total // 10**6,
                        )
                case frames.Ready():
                    log.info(
                        "worker %s ready: %d MB, context %d tokens",
                        worker.name,
                        frame.memory_bytes // 10**6,
                        frame.context,
                    )
                    self._events.worker_ready(*incarnation, frame)
                case frames.LoadFailed(reason):
                    log.error("worker %s cannot load: %s", worker.name, reason)
                    self._events.worker_unloadable(*incarnation, reason)
