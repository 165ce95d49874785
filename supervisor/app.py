"""The supervisor process: the shell around `pool`. It hands events in and carries out effects.

Everything runs on one thread and one event loop, so an event and its effects are never interleaved
with another's. All of them go through `Supervisor.handle`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import msgspec

from supervisor import build
from supervisor.api import health
from supervisor.api.control import Control
from supervisor.api.events import EventFeed
from supervisor.config.settings import Config
from supervisor.crashes.collector import CrashCollector, secret_values
from supervisor.crashes.os_evidence import SystemEvidence
from supervisor.machine.monitor import Monitor
from supervisor.machine.readers import MemoryReader
from supervisor.models.catalog import Catalog
from supervisor.models.sizing import Sizing
from supervisor.processes import orphans
from supervisor.processes.fleet import Fleet
from supervisor.processes.gateway import GatewayProcess
from supervisor.processes.launcher import Child, Launcher
from supervisor.processes.spare import is_calm
from supervisor.processes.watchdog import CHECK_SECONDS
from supervisor.scheduler.death import Death
from supervisor.scheduler.effects import (
    Effect,
    EndLease,
    Grant,
    Interrupt,
    Loaded,
    LogLine,
    QuarantineRequest,
    Refuse,
    RememberLimit,
    Shrink,
    Spawn,
    Stop,
    Unpause,
)
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.state import logs
from supervisor.state.paths import StateDir
from supervisor.state.quarantine import Quarantine
from supervisor.wire import frames
from supervisor.wire.stream import listen

log = logging.getLogger("bulkhead.supervisor")

GATEWAY_MODULE = "gateway.main"
WORKER_MODULE = "worker.main"
_UPKEEP_SECONDS = 10.0
_EXIT_SECONDS = 30.0
"""How long an exit after a bug may take: the gateway alone may need ten."""

P = ParamSpec("P")
T = TypeVar("T")


class Supervisor:
    """Owns the pool, the listening socket and every child of one instance.

    `pool` has every model and none loaded, with the sizes that `sizing` knows; `reader` reads the
    machine's memory. `worker_module` is what worker processes run: the seam at which tests put the
    real worker server around an engine that follows a script.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        state: StateDir,
        listener: socket.socket,
        *,
        pool: Pool,
        sizing: Sizing,
        reader: MemoryReader,
        version: str,
        worker_module: str = WORKER_MODULE,
    ) -> None:
        self._catalog = catalog
        self._state = state
        self._version = version
        self._reader = reader
        self._sizing = sizing
        self._pool = pool
        self._quarantine = Quarantine.load(state.quarantine)
        self._pool.recovery.blame.restore(self._quarantine.guilty())
        self._feed = EventFeed()
        self._monitor = Monitor(
            self._pool.models,
            self._pool.state.ledger.awaits_memory,
            self,
            self._reader,
            build.thresholds(config.memory),
            watches_release=self._pool.state.rules.release is ReleaseRule.WHEN_SEEN,
        )
        self._collector = CrashCollector(
            self._pool.models,
            state.crashes,
            self._reader,
            SystemEvidence(),
            version=version,
            secrets=secret_values(os.environ, *(m.env for m in catalog.models.values())),
        )
        self._instance = secrets.token_hex(8)
        self._lifeline, self._held = os.pipe()  # both CLOEXEC: children get the read end by name
        launcher = Launcher(self._instance, self._lifeline, os.environ)
        self._fleet = Fleet(
            launcher,
            state,
            catalog,
            self,
            module=worker_module,
            on_change=self._record,
            stall_seconds=config.recovery.stall_seconds,
        )
        self._gateway = GatewayProcess(
            launcher,
            state,
            listener,
            msgspec.json.encode(config.server),
            GATEWAY_MODULE,
            self._record,
            lambda *death: self._note(self._collector.gateway_died, *death),
            stall_seconds=config.recovery.stall_seconds,
        )
        self._control = Control(self._pool, self._pool.state, self._feed, state, self)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failed = asyncio.Event()
        """The pool has raised, see `handle`."""

    async def run(self, announce: str) -> int:
        """Serve until SIGTERM or SIGINT; print `announce` once requests are accepted.

        Returns the exit status: 0 after a drain, 1 when the gateway never came up, or when a bug
        leaves nothing else to do than to be started again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._asked_to_stop)
        listening = await listen(str(self._state.control), frames.ToSupervisor, self._control.serve)
        upkeep = loop.create_task(self._upkeep())
        await self._collector.reports.load_last()
        watch = loop.create_task(self._monitor.run())
        patrol = loop.create_task(self._patrol())
        gateway = self._gateway
        try:
            gateway.start()
            await _first(gateway.serving, gateway.gave_up, self._stop, self._failed)
            if gateway.serving.is_set() and not self._stop.is_set():
                self._start_serving(announce)
            await _first(self._stop, gateway.gave_up, self._failed)
            if gateway.gave_up.is_set():
                log.error("the gateway cannot start; its stderr is in %s", self._state.logs)
        finally:
            await self._end_workers()
            self._record_use_counts()
            self._feed.close()  # or the gateway would wait for those who watch
            await gateway.stop()
            await self._fleet.spare.ended()
            await self._collector.reports.close()
            upkeep.cancel()
            watch.cancel()
            patrol.cancel()
            listening.close()
            for path in (self._state.control, self._state.children):
                path.unlink(missing_ok=True)
            os.close(self._held)
            os.close(self._lifeline)
            log.info("stopped")
        return 1 if gateway.gave_up.is_set() or self._failed.is_set() else 0

    def _start_serving(self, announce: str) -> None:
        print(announce, flush=True)
        log.info("%s", announce)
        for name, model in self._catalog.models.items():
            if model.preload:
                self.handle(self._pool.preload, name, time.monotonic())
        if self._pool.state.ledger.reserved:
            self._fleet.spare.enable()

    async def _end_workers(self) -> None:
        """Return when all workers are drained and gone. If the pool has failed they are killed."""
        if not self._pool.state.shutting_down and not self._failed.is_set():
            self._asked_to_stop()
        await _first(self._stopped, self._failed)
        if self._failed.is_set():
            self._fleet.spare.disable()
            self._control.close()
            await self._fleet.kill_all()

    def _asked_to_stop(self) -> None:
        if self._pool.state.shutting_down:
            log.info("asked to stop again: what still runs is cut")
        else:
            running = sum(len(each.granted) for each in self._pool.models.values())
            log.info(
                "asked to stop: %d running requests may take %g s to end; another signal cuts them",
                running,
                self._pool.state.limits.drain,
            )
        self._stop.set()
        self._fleet.spare.disable()
        self.handle(self._pool.shutdown, time.monotonic())

    # ── events and effects ───────────────────────────────────────────────────────────────────────

    def handle(
        self, event: Callable[P, Iterable[Effect] | None], *args: P.args, **more: P.kwargs
    ) -> None:
        """One event of the pool: have it decide, carry out the effects in order, and see to what
        comes next. The one place where exceptions of both end.

        After one of the pool's own its state may be half-changed, and nothing that follows could be
        trusted: the supervisor exits, and is started again. One of an effect is made up for, and
        the others are carried out all the same.
        """
        if self._failed.is_set():
            return
        try:
            for effect in event(*args, **more) or ():
                try:
                    self._carry_out(effect)
                except Exception:
                    log.exception("%s: not carried out: %s", _name(event), effect)
                    self._make_up_for(effect)
            self._note(self._feed.tell_states, self._pool.models.values())
            self._rearm()
        except Exception:
            log.critical("%s: a bug; the supervisor exits", _name(event), exc_info=True)
            self._failed.set()
            # Whatever hangs on the way out: without us the children end, and we are started again.
            asyncio.get_running_loop().call_later(_EXIT_SECONDS, os._exit, 1)
        if self._pool.state.shutting_down and self._pool.state.stopped:
            self._stopped.set()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Spawn(model, generation):
                self._fleet.spawn(model, generation)
            case Stop(model, generation, kill, stacks):
                self._fleet.stop(model, generation, kill=kill, stacks=stacks)
            case Shrink(model, generation):
                self._fleet.shrink(model, generation)
            case Grant() | Unpause() | Refuse() | EndLease() | Interrupt() | Loaded():
                self._note(self._collector.record_effect, effect)
                self._control.tell(effect)
            case QuarantineRequest(model, request_id):
                log.error("%s alone kills the worker of %s: refused", request_id, model)
                self._quarantine.save(self._pool.recovery.blame.quarantined(time.monotonic()))
            case RememberLimit(model, limit):
                self._sizing.save_limit(model, limit, time.time() - time.monotonic())
            case LogLine(text, level):
                log.log(level, "%s", text)
                self._feed.tell("decision", text=text)

    def _make_up_for(self, effect: Effect) -> None:
        """The effect has raised, and what the pool expects of it must come about all the same. What
        was only to be written down needs nothing."""
        match effect:
            case Spawn(model, generation):
                # Half started, it is killed, and its exit is told as always.
                if not self._fleet.stop(model, generation, kill=True, stacks=False):
                    loop, how = asyncio.get_running_loop(), "it could not be started"
                    loop.call_soon(self.worker_exited, model, generation, how)
            case Stop(model, generation):
                self._fleet.stop(model, generation, kill=True, stacks=False)
            case Grant() | Unpause() | Refuse() | EndLease() | Interrupt() | Loaded():
                self._control.drop(effect.lease)

    def _note(self, record: Callable[P, T], *args: P.args, **more: P.kwargs) -> T | None:
        """For what is recorded or told to people: an exception is logged, and changes nothing."""
        try:
            return record(*args, **more)
        except Exception:
            log.exception("%s has failed", _name(record))
            return None

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._pool.next_deadline()
        loop = asyncio.get_running_loop()
        # The loop's clock is time.monotonic on every platform we run on.
        self._timer = None if due is None else loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self.handle(self._pool.tick, time.monotonic())

    # ── events of the fleet ──────────────────────────────────────────────────────────────────────

    def worker_started(self, model: str, generation: int, child: Child) -> None:
        self._note(self._collector.worker_started, model, generation, child)
        self.handle(self._pool.started, model, generation, child.pid)

    def worker_loading(self, model: str, generation: int, done: int, total: int) -> None:
        self.handle(self._pool.loading, model, generation, time.monotonic())
        if total:
            self._feed.tell(
                "loading", model=model, generation=generation, done_bytes=done, total_bytes=total
            )

    def worker_ready(self, model: str, generation: int, ready: frames.Ready) -> None:
        now, loaded = time.monotonic(), self._pool.models[model]
        pid = None if loaded.worker is None else loaded.worker.pid
        # What MLX holds leaves out the interpreter and its libraries.
        seen = None if pid is None else self._reader.footprint(pid)
        size = max(ready.memory_bytes, seen or 0)
        self.handle(self._pool.ready, model, generation, size, ready.context, now)
        worker, seconds = loaded.worker, loaded.load_seconds
        measured = worker is not None and worker.key == (model, generation)
        if worker is not None and measured and worker.loaded_at == now and seconds is not None:
            self._sizing.save_load(model, size, seconds)

    def worker_unloadable(self, model: str, generation: int, reason: str) -> None:
        self.handle(self._pool.load_failed, model, generation, reason, time.monotonic())

    def worker_broken(self, model: str, generation: int, reason: str) -> None:
        log.error("worker %s#%d must go: %s", model, generation, reason)
        self.handle(self._pool.broken, model, generation, reason, time.monotonic())

    def worker_progressed(self, model: str, generation: int) -> None:
        self.handle(self._pool.progress, model, generation)

    def worker_stalled(self, model: str, generation: int, how: str) -> None:
        self._log_death(model, generation, f"has stalled and is killed ({how})")
        death = self._diagnose(model, generation, "SIGKILL", kill_reason=f"it stalled: {how}")
        now = time.monotonic()
        self.handle(self._pool.stalled, model, generation, how, now, death)

    def worker_dying(self, model: str, generation: int, how: str) -> None:
        death = self._diagnose(model, generation, how)
        self._log_death(model, generation, f"died ({how})")
        self.handle(self._pool.dying, model, generation, how, time.monotonic(), death)

    def worker_exited(self, model: str, generation: int, how: str) -> None:
        death = self._diagnose(model, generation, how)
        self._log_death(model, generation, f"died ({how})")
        self.handle(self._pool.exited, model, generation, how, time.monotonic(), death)
        self._note(self._collector.report, model, generation, how)
        if death is not None:
            details = {"id": death.report, "cause": death.cause}
            self._feed.tell("crash", model=model, generation=generation, **details)

    def _diagnose(
        self, model: str, generation: int, how: str, *, kill_reason: str = ""
    ) -> Death | None:
        """What is known of a worker's end. None when it was asked for, or we kill them all."""
        if self._failed.is_set():
            return None
        return self._note(self._collector.diagnose, model, generation, how, kill_reason=kill_reason)

    # ── the machine's memory ─────────────────────────────────────────────────────────────────────

    def memory_pressure(self, level: Level, figures: str) -> None:
        self._note(self._collector.sample_memory, self._monitor.machine)
        if level >= Level.HIGH:
            self._fleet.spare.drop("memory is short")
        self.handle(self._pool.pressure, level, figures, time.monotonic())

    def memory_footprint(self, model: str, generation: int, size: int) -> None:
        self.handle(self._pool.footprint, model, generation, size)

    def memory_unattributed(self, size: int) -> None:
        self.handle(self._pool.memory_seen, size, time.monotonic())

    def _log_death(self, model: str, generation: int, fate: str) -> None:
        """Name those who were in a worker that ends unasked."""
        dead = self._pool.models[model]
        unasked = dead.state in (State.LOADING, State.READY, State.DRAINING)
        if unasked and dead.generation == generation:
            inside = dead.waiting if dead.state is State.LOADING else dead.granted
            lost = [lease.request_id for lease in inside.values()]
            named = f": {', '.join(lost)}" if lost else ""
            name = dead.current.name
            log.error("worker %s %s with %d requests in it%s", name, fate, len(lost), named)

    # ── for the control socket ───────────────────────────────────────────────────────────────────

    def before_load(self, model: str) -> None:
        state = self._pool.models[model].state
        if state not in (State.COLD, State.FAILED) or not self._sizing.has_changed(model):
            return
        if state is State.FAILED:
            log.info("the files of model %s have changed; it may be loaded again", model)
            self.handle(self._pool.changed, model)
        need, now = self._sizing.need(model), time.monotonic()
        self.handle(self._pool.estimated, model, need.estimate, need.headroom, now)

    def keyed(self, digest: bytes) -> bytes:
        return self._quarantine.keyed(digest)

    def gateway_serves(self) -> None:
        self._gateway.accepts_requests()

    def health(self) -> bytes:
        return health.render_health(
            self._pool.state,
            {name: model.source for name, model in self._catalog.models.items()},
            self._monitor.machine,
            self._fleet.spare.state,
            time.time() - time.monotonic(),
            self._version,
            self._collector.reports.last,
        )

    def returned(self, lease: int, position: int, prompt_tokens: int) -> None:
        self._note(self._collector.returned, lease, position, prompt_tokens)

    def left(self, lease: int) -> None:
        self._note(self._collector.left, lease)

    async def crashes(self, name: str) -> bytes:
        return await self._collector.reports.read_json(name)

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────

    def _children(self) -> list[Child]:
        gateway = self._gateway.child
        return [*self._fleet.children, *([gateway] if gateway else [])]

    def _record(self) -> None:
        try:
            orphans.record(self._state, self._instance, self._children())
        except OSError as error:
            # A full disk must not stand between a death and what follows from it.
            log.error("cannot record the running processes: %s", error)

    async def _patrol(self) -> None:
        """See that every child moves that serves, and that there is a spare. A load has a deadline
        of its own."""
        while True:
            try:
                now = time.monotonic()
                self._gateway.check(now)
                for name, model in self._pool.models.items():
                    if model.state in (State.READY, State.DRAINING):
                        awaited = bool(model.granted)
                        self._fleet.check(name, model.generation, now, awaited=awaited)
                calm = is_calm(self._pool.models.values(), self._pool.state.level)
                self._fleet.spare.maintain(now, calm=calm)
            except Exception:
                # A bug of ours in one look must not leave them unwatched for good.
                log.exception("the children could not be looked at")
            await asyncio.sleep(CHECK_SECONDS)

    def _record_use_counts(self) -> None:
        counts = {name: model.use_count for name, model in self._pool.models.items()}
        self._note(self._sizing.save_use_counts, counts)

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            self._record_use_counts()
            files = [path for child in self._children() for path in child.files]
            self._note(logs.cut_to_tail, files)


def _name(function: Callable[..., object]) -> str:
    """For the log."""
    return getattr(function, "__qualname__", repr(function))


async def _first(*events: asyncio.Event) -> None:
    """Return when any of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
