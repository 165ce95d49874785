"""All worker processes: spawned, told what to load, listened to, signalled.

The fleet knows processes and nothing of requests. What happens to a process it tells a
`WorkerListener`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from supervisor import background
from supervisor.config.schema import ModelSettings
from supervisor.models.catalog import Catalog
from supervisor.models.sources import SourceError
from supervisor.processes.activity import Activity, Meter
from supervisor.processes.launcher import Child, Launcher
from supervisor.processes.spare import ROLE, Spare
from supervisor.processes.watchdog import Watchdog
from supervisor.processes.worker import Channel, ExitCallbacks, WorkerProcess
from supervisor.state import logs
from supervisor.state.paths import StateDir, slug
from supervisor.state.trouble import Trouble
from supervisor.wire import frames, progress
from supervisor.wire.codec import ProtocolError
from supervisor.wire.listener import places

log = logging.getLogger("bulkhead.supervisor")

_REAP_SECONDS = 5.0
"""Between a worker's closed channel and its exit status; a longer gap is a zombie."""
_LOG_PROGRESS_SECONDS = 5.0
_PASSING = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}
)
"""What a start may lack that comes back: descriptors, threads and processes, memory, disk."""
_RETRY_SECONDS = 1.0
_CHANGED = "Bulkhead's files changed while it started"


class WorkerListener(Protocol):
    """Who is told what happens to workers. Called on the event loop, each time about one
    incarnation, perhaps one that is over."""

    def worker_started(self, model: str, generation: int, child: Child) -> None:
        """Its process exists."""

    def worker_loading(self, model: str, generation: int, done: int, total: int) -> None:
        """Bytes of weights in memory so far; 0 of 0 once it has imported mlx-lm."""

    def worker_ready(self, model: str, generation: int, ready: frames.Ready) -> None: ...
    def worker_progressed(self, model: str, generation: int) -> None:
        """It has made tokens or other output since this was told last."""

    def worker_stalled(self, model: str, generation: int, how: str) -> None: ...
    def worker_told(self, model: str, generation: int, frame: frames.LoanFrame) -> None:
        """It says something of its memory."""

    def worker_unloadable(self, model: str, generation: int, reason: str) -> None:
        """Its model can't be loaded, and could not be by another process either."""

    def worker_broken(self, model: str, generation: int, reason: str) -> None:
        """It broke the protocol."""

    def worker_dying(self, model: str, generation: int, how: str) -> None:
        """A fatal signal has come; `worker_exited` will follow."""

    def worker_exited(self, model: str, generation: int, how: str) -> None:
        """It is reaped, or could not be started. The last that is told of it."""


@dataclass(slots=True, eq=False)
class _Running:
    """One incarnation's process."""

    model: str
    generation: int
    process: WorkerProcess
    watchdog: Watchdog
    meter: Meter = field(default_factory=Meter)
    outputs: int = 0
    """Made so far, by the last check."""
    is_killed: bool = False
    """By `kill_if_still`."""
    listening: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.model}#{self.generation}"

    @property
    def child(self) -> Child:
        return self.process.child


class Fleet:
    """All worker processes of this supervisor, `spare` included, which is off until enabled.

    `module` is what a worker runs; `on_change` is called when there is a process more or less.
    `locate` tells a model's folder without touching the disk, or raises SourceError; without it the
    catalog looks. `allowance` tells what its next worker may hold. With `prefill_gate` workers wait
    for each other with heavy prefills.
    """

    def __init__(
        self,
        launcher: Launcher,
        state: StateDir,
        catalog: Catalog,
        listener: WorkerListener,
        *,
        module: str,
        on_change: Callable[[], None],
        stall_seconds: float,
        prefill_gate: bool = False,
        locate: Callable[[str], Path] | None = None,
        allowance: Callable[[str], frames.Allowance] = lambda model: frames.Allowance(),
    ) -> None:
        self._locate = locate
        self._allowance = allowance
        self._state = state
        self._catalog = catalog
        self._listener = listener
        self._start = partial(WorkerProcess, launcher, module)
        self._on_change = on_change
        self._stall_seconds = stall_seconds
        self._prefill_gate = prefill_gate
        self._workers: dict[tuple[str, int], _Running] = {}
        self._waiting: dict[tuple[str, int], asyncio.TimerHandle] = {}
        """Incarnations that could not be started yet, until the next attempt."""
        self._trouble = Trouble("start a worker")
        self.spare = Spare(self._start_spare, on_change)

    @property
    def children(self) -> Iterator[Child]:
        yield from [worker.child for worker in self._workers.values()]
        if self.spare.process is not None:
            yield self.spare.process.child

    def spawn(self, model: str, generation: int) -> None:
        """Start an incarnation and have it load its model. A failure is told as its exit, on the
        loop's next turn. But what the machine lacks for the moment is no failure: it is tried again
        until it works or the incarnation is stopped, which whoever waits for the load does."""
        loop = asyncio.get_running_loop()
        try:
            folder = (self._locate or self._catalog.locate)(model)
        except SourceError as error:
            loop.call_soon(self._unlocatable, model, generation, str(error))
            return
        prefix = f"worker.{slug(model)}"
        try:
            process = self._process(
                f"worker {model}#{generation}",
                self._state.logs / f"{logs.stamped(prefix)}.{generation}",
                ExitCallbacks(
                    partial(self._listener.worker_dying, model, generation),
                    partial(self._exited, (model, generation)),
                ),
                self._catalog.models[model],
            )
        except OSError as error:
            if error.errno in _PASSING:
                self._trouble.failed(error)
                again = loop.call_later(_RETRY_SECONDS, self._spawn_again, model, generation)
                self._waiting[model, generation] = again
                return
            log.error("worker %s#%d cannot be started: %s", model, generation, error)
            how = f"it could not be started: {error.strerror}"
            loop.call_soon(self._listener.worker_exited, model, generation, how)
            return
        self._trouble.worked()
        worker = _Running(model, generation, process, Watchdog(self._stall_seconds))
        self._workers[model, generation] = worker
        how = "spawned" if process.channel is None else "is the spare"
        log.info("worker %s %s, pid %d, loading %s", worker.name, how, worker.child.pid, folder)
        self._listener.worker_started(model, generation, worker.child)
        load = frames.Load(
            model=model,
            generation=generation,
            path=str(folder),
            socket=str(self._state.worker_socket(model, generation)),
            max_concurrency=self._catalog.concurrency(model),
            context=self._catalog.models[model].context,
            prefill_gate=self._prefill_gate,
            allowance=self._allowance(model),
        )
        worker.listening = background.start(self._listen(worker, load))
        self._on_change()
        logs.remove_old(self._state.logs, prefix, self._files())

    def _spawn_again(self, model: str, generation: int) -> None:
        del self._waiting[model, generation]
        try:
            self.spawn(model, generation)
        except Exception:
            log.exception("worker %s#%d cannot be started", model, generation)
            # Half started, it is killed, and its exit is told as always.
            if not self.stop(model, generation, kill=True, stacks=False):
                self._listener.worker_exited(model, generation, "it could not be started")

    def _process(
        self, role: str, base: Path, callbacks: ExitCallbacks, model: ModelSettings
    ) -> WorkerProcess:
        """The spare, if there is one and the model has no environment of its own; else a new one.
        Raises OSError."""
        spare = None if model.env or model.python else self.spare.take()
        if spare is None:
            return self._start(role, base, callbacks, environ=model.env)
        spare.reassign(callbacks, role, base)
        return spare

    def _start_spare(self, callbacks: ExitCallbacks) -> WorkerProcess:
        base = self._state.logs / logs.stamped(ROLE)
        process = self._start(ROLE, base, callbacks, arguments=["--spare"])
        logs.remove_old(self._state.logs, ROLE, {*self._files(), *process.child.files})
        return process

    def _files(self) -> set[Path]:
        """Of those that live."""
        return {path for child in self.children for path in child.files}

    def stop(self, model: str, generation: int, *, kill: bool, stacks: bool) -> bool:
        """Send SIGTERM, or with `kill` SIGKILL, which with `stacks` comes once the process could
        write its threads' stacks. Returns whether there is such a process."""
        waiting = self._waiting.pop((model, generation), None)
        if waiting is not None:
            waiting.cancel()
            how, loop = "it could not be started", asyncio.get_running_loop()
            loop.call_soon(self._listener.worker_exited, model, generation, how)
            return True
        worker = self._workers.get((model, generation))
        if worker is None:
            return False
        log.info("worker %s is %s", worker.name, "killed" if kill else "told to stop")
        if stacks:
            worker.child.kill_with_stacks()
        else:
            worker.child.signal(signal.SIGKILL if kill else signal.SIGTERM)
        return True

    async def kill_all(self) -> None:
        """Kill every worker, and return when all are reaped, or after 5 s."""
        ends = [asyncio.ensure_future(each.process.gone.wait()) for each in self._workers.values()]
        for worker in self._workers.values():
            worker.child.signal(signal.SIGKILL)
        if ends:
            await asyncio.wait(ends, timeout=_REAP_SECONDS)

    def check(self, model: str, generation: int, now: float, *, awaited: bool) -> None:
        """Tell whether a worker has made output, and whether it has stalled. Does nothing where the
        process is gone already. `now` in monotonic seconds; `awaited`: it has requests."""
        worker = self._workers.get((model, generation))
        reading = None if worker is None else self._read(worker)
        if worker is None or reading is None:
            return
        worker.meter.feed(reading, now, awaited=awaited)
        how = worker.watchdog.check(reading, now, awaited=awaited)
        if how is not None:
            self._listener.worker_stalled(model, generation, how)

    def kill_if_still(self, model: str, generation: int, now: float, seconds: float) -> None:
        """Kill a worker that is to end where nothing in it has moved for so long. In place of
        `check`, and as often."""
        worker = self._workers.get((model, generation))
        reading = None if worker is None else worker.process.reading()
        if worker is None or worker.is_killed or reading is None:
            return
        stands = worker.watchdog.stands(reading, now)
        if stands > seconds:
            worker.is_killed = True
            log.warning("worker %s has not moved for %.1f s and is killed", worker.name, stands)
            worker.child.signal(signal.SIGKILL)

    def activity(self, model: str, generation: int) -> Activity:
        """What a worker did by the last check; nothing where there is no such process."""
        worker = self._workers.get((model, generation))
        if worker is None:
            return Activity()
        return worker.meter.activity(worker.watchdog.standstill)

    def _read(self, worker: _Running) -> progress.Reading | None:
        """Its progress record. Tells that there is new output."""
        reading = worker.process.reading()
        if reading is not None and reading.outputs != worker.outputs:
            worker.outputs = reading.outputs
            self._listener.worker_progressed(worker.model, worker.generation)
        return reading

    def tell(self, model: str, generation: int, frame: frames.ToWorker) -> None:
        """Say something to a ready worker. Does nothing where the process is gone already."""
        worker = self._workers.get((model, generation))
        if worker is not None and worker.process.channel is not None:
            worker.process.channel.send(frame)

    def _unlocatable(self, model: str, generation: int, reason: str) -> None:
        self._listener.worker_unloadable(model, generation, reason)
        self._listener.worker_exited(model, generation, "never started")

    def _exited(self, key: tuple[str, int], how: str) -> None:
        worker = self._workers.pop(key, None)
        try:
            if worker is not None:
                log.info("worker %s, pid %d, ended: %s", worker.name, worker.child.pid, how)
                self._read(worker)  # the output just before its death
            self._remove_socket(*key)
        finally:  # whatever else fails, its end is told
            self._listener.worker_exited(*key, how)
            self._on_change()

    def _remove_socket(self, model: str, generation: int) -> None:
        """At whichever place it was. One that is left hurts nobody: no other has its name, and the
        next start removes it."""
        for place in places(str(self._state.worker_socket(model, generation))):
            try:
                os.unlink(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                why = error.strerror
                log.warning(
                    "the socket of worker %s#%d cannot be removed: %s", model, generation, why
                )

    async def _listen(self, worker: _Running, load: frames.Load) -> None:
        """Follow one worker's channel until it closes, then wait for the process to end."""
        try:
            channel = await worker.process.connect()
        except OSError as error:
            log.error("the channel of worker %s cannot be used: %s", worker.name, error)
            worker.child.signal(signal.SIGKILL)  # its exit is told as always
            return
        try:
            channel.send(load)
            await self._follow(worker, channel)
        except ProtocolError as error:
            self._listener.worker_broken(worker.model, worker.generation, f"bad message: {error}")
        try:
            await asyncio.wait_for(worker.process.gone.wait(), _REAP_SECONDS)
        except TimeoutError:
            reason = "it closed its channel without exiting"
            self._listener.worker_broken(worker.model, worker.generation, reason)
        finally:
            channel.close()

    async def _follow(self, worker: _Running, channel: Channel) -> None:
        incarnation = (worker.model, worker.generation)
        logged_at = time.monotonic()
        while (frame := await channel.receive()) is not None:
            match frame:
                case frames.Hello() if not worker.process.runs_our_code():
                    self._listener.worker_broken(*incarnation, _CHANGED)
                case frames.Hello():
                    self._listener.worker_loading(*incarnation, 0, 0)
                case frames.Loading(done, total):
                    self._listener.worker_loading(*incarnation, done, total)
                    if time.monotonic() - logged_at > _LOG_PROGRESS_SECONDS or done == total:
                        logged_at = time.monotonic()
                        log.info(
                            "worker %s loading: %d of %d MB",
                            worker.name,
                            done // 10**6,
                            total // 10**6,
                        )
                case frames.Ready():
                    log.info(
                        "worker %s ready: MLX holds %d MB, context %d tokens",
                        worker.name,
                        frame.memory_bytes // 10**6,
                        frame.context,
                    )
                    self._listener.worker_ready(*incarnation, frame)
                case frames.Needs() | frames.Repaid() | frames.WantsPrefill():
                    self._listener.worker_told(*incarnation, frame)
                case frames.LoadFailed(reason):
                    log.error("worker %s cannot load: %s", worker.name, reason)
                    self._listener.worker_unloadable(*incarnation, reason)
