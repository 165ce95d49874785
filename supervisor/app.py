"""The supervisor process: the shell around `pool`. It posts events and performs their effects.

Everything runs on one thread and one event loop, so an event and its effects are never interleaved
with another's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable

import msgspec

from supervisor import build
from supervisor.api import health
from supervisor.api.control import Control
from supervisor.api.events import EventFeed
from supervisor.config.settings import Config
from supervisor.crashes.collector import CrashCollector, secret_values
from supervisor.crashes.os_evidence import Evidence, SystemEvidence
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


class Supervisor:
    """Owns the pool, the listening socket and every child of one instance.

    `pool` has every model and none loaded, with the sizes that `sizing` knows; `reader` reads the
    machine's memory, and `evidence` what the system knows of a death. `worker_module` is what worker processes run: the seam at which tests put the
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
        evidence: Evidence | None = None,
    ) -> None:
        self._catalog = catalog
        self._state = state
        self._version = version
        self._reader = reader
        self._sizing = sizing
        self._pool = pool
        self._quarantine = Quarantine.load(state.quarantine)
        self._pool.docket.restore(self._quarantine.guilty())
        self._feed = EventFeed()
        self._watch = Monitor(
            self._pool.entries,
            self._pool.ledger,
            self,
            self._reader,
            build.thresholds(config.memory),
            watches_release=self._pool.rules.release is ReleaseRule.WHEN_SEEN,
        )
        self._coroner = CrashCollector(
            self._pool.entries,
            state.crashes,
            self._reader,
            evidence or SystemEvidence(),
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
        self._gatekeeper = GatewayProcess(
            launcher,
            state,
            listener,
            msgspec.json.encode(config.server),
            GATEWAY_MODULE,
            self._record,
            self._coroner.gateway_died,
            stall_seconds=config.recovery.stall_seconds,
        )
        self._control = Control(self._pool, self._feed, state, self)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self, announce: str) -> int:
        """Serve until SIGTERM or SIGINT; print `announce` once requests are accepted.

        Returns the exit status: 0 after a drain, 1 when the gateway never came up.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                loop.add_signal_handler(number, self._asked_to_stop)
        listening = await listen(str(self._state.control), frames.ToSupervisor, self._control.serve)
        upkeep = loop.create_task(self._upkeep())
        await self._coroner.reports.load_last()
        watch = loop.create_task(self._watch.run())
        patrol = loop.create_task(self._patrol())
        try:
            self._gatekeeper.start()
            await _first(self._gatekeeper.serving, self._gatekeeper.gave_up, self._stop)
            if self._gatekeeper.serving.is_set() and not self._stop.is_set():
                print(announce, flush=True)
                log.info("%s", announce)
                for name, model in self._catalog.models.items():
                    if model.preload:
                        self.perform(self._pool.preload(name, time.monotonic()))
                if self._pool.ledger.reserved:
                    self._fleet.spare.enable()
            await _first(self._stop, self._gatekeeper.gave_up)
            if self._gatekeeper.gave_up.is_set():
                log.error("the gateway cannot start; its stderr is in %s", self._state.logs)
                return 1
            return 0
        finally:
            if not self._pool.shutting_down:
                self._asked_to_stop()
            await self._stopped.wait()
            self._count_uses()
            self._feed.close()  # or the gateway would wait for those who watch
            await self._gatekeeper.stop()
            await self._fleet.spare.ended()
            await self._coroner.reports.close()
            upkeep.cancel()
            watch.cancel()
            patrol.cancel()
            listening.close()
            for path in (self._state.control, self._state.children):
                path.unlink(missing_ok=True)
            os.close(self._held)
            os.close(self._lifeline)
            log.info("stopped")

    def _asked_to_stop(self) -> None:
        if self._pool.shutting_down:
            log.info("asked to stop again: what still runs is cut")
        else:
            running = sum(len(entry.granted) for entry in self._pool.entries.values())
            log.info(
                "asked to stop: %d running requests may take %g s to end; another signal cuts them",
                running,
                self._pool.limits.drain,
            )
        self._stop.set()
        self._fleet.spare.disable()
        self.perform(self._pool.shutdown(time.monotonic()))

    # ── effects ──────────────────────────────────────────────────────────────────────────────────

    def perform(self, effects: Iterable[Effect]) -> None:
        """Carry out what was decided, in order, and see to what comes next."""
        for effect in effects:
            match effect:
                case Spawn(model, generation):
                    self._fleet.spawn(model, generation)
                case Stop(model, generation, kill, stacks):
                    self._fleet.stop(model, generation, kill=kill, stacks=stacks)
                case Shrink(model, generation):
                    self._fleet.shrink(model, generation)
                case Grant() | Unpause() | Refuse() | EndLease() | Interrupt() | Loaded():
                    self._control.tell(effect)
                    self._coroner.record_effect(effect)
                case QuarantineRequest(model, request_id):
                    log.error("%s alone kills the worker of %s: refused", request_id, model)
                    self._quarantine.save(self._pool.docket.verdicts(time.monotonic()))
                case RememberLimit(model, limit):
                    self._sizing.save_limit(model, limit, time.time() - time.monotonic())
                case LogLine(text, level):
                    log.log(level, "%s", text)
                    self._feed.tell("decision", text=text)
        self._feed.tell_states(self._pool.entries.values())
        self._rearm()
        if self._pool.shutting_down and self._pool.stopped:
            self._stopped.set()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._pool.next_deadline()
        loop = asyncio.get_running_loop()
        # The loop's clock is time.monotonic on every platform we run on.
        self._timer = None if due is None else loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self.perform(self._pool.tick(time.monotonic()))

    # ── events of the fleet ──────────────────────────────────────────────────────────────────────

    def worker_started(self, model: str, generation: int, child: Child) -> None:
        self._coroner.worker_started(model, generation, child)
        self._pool.started(model, generation, child.pid)

    def worker_loading(self, model: str, generation: int, done: int, total: int) -> None:
        self._pool.loading(model, generation, time.monotonic())
        if total:
            self._feed.tell(
                "loading", model=model, generation=generation, done_bytes=done, total_bytes=total
            )

    def worker_ready(self, model: str, generation: int, ready: frames.Ready) -> None:
        now, entry = time.monotonic(), self._pool.entries[model]
        # What MLX holds leaves out the interpreter and its libraries.
        seen = self._reader.footprint(entry.pid) if entry.pid is not None else None
        size = max(ready.memory_bytes, seen or 0)
        self.perform(self._pool.ready(model, generation, size, ready.context, now))
        if (
            entry.generation == generation
            and entry.loaded_at == now
            and entry.load_seconds is not None
        ):
            self._sizing.save_load(model, size, entry.load_seconds)

    def worker_unloadable(self, model: str, generation: int, reason: str) -> None:
        self.perform(self._pool.load_failed(model, generation, reason, time.monotonic()))

    def worker_broken(self, model: str, generation: int, reason: str) -> None:
        log.error("worker %s#%d must go: %s", model, generation, reason)
        self.perform(self._pool.broken(model, generation, reason, time.monotonic()))

    def worker_progressed(self, model: str, generation: int) -> None:
        self._pool.progress(model, generation)

    def worker_stalled(self, model: str, generation: int, how: str) -> None:
        self._mourn(model, generation, f"has stalled and is killed ({how})")
        reason = f"it stalled: {how}"
        crash = self._coroner.diagnose(model, generation, "SIGKILL", kill_reason=reason)
        self.perform(self._pool.stalled(model, generation, how, time.monotonic(), crash))

    def worker_dying(self, model: str, generation: int, how: str) -> None:
        crash = self._coroner.diagnose(model, generation, how)
        self._mourn(model, generation, f"died ({how})")
        self.perform(self._pool.dying(model, generation, how, time.monotonic(), crash))

    def worker_exited(self, model: str, generation: int, how: str) -> None:
        crash = self._coroner.diagnose(model, generation, how)
        self._mourn(model, generation, f"died ({how})")
        self.perform(self._pool.exited(model, generation, how, time.monotonic(), crash))
        self._coroner.report(model, generation, how)
        if crash is not None:
            cause = crash.diagnosis.cause.value
            self._feed.tell("crash", model=model, generation=generation, id=crash.id, cause=cause)

    # ── the machine's memory ─────────────────────────────────────────────────────────────────────

    def memory_pressure(self, level: Level, figures: str) -> None:
        self._coroner.sample_memory(self._watch.machine)
        if level >= Level.HIGH:
            self._fleet.spare.drop("memory is short")
        self.perform(self._pool.pressure(level, figures, time.monotonic()))

    def memory_footprint(self, model: str, generation: int, size: int) -> None:
        self._pool.footprint(model, generation, size)

    def memory_unattributed(self, size: int) -> None:
        self.perform(self._pool.memory_seen(size, time.monotonic()))

    def _mourn(self, model: str, generation: int, fate: str) -> None:
        """Name those who were in a worker that ends unasked."""
        entry = self._pool.entries[model]
        unasked = entry.state in (State.LOADING, State.READY, State.DRAINING)
        if unasked and entry.generation == generation:
            inside = entry.waiting if entry.state is State.LOADING else entry.granted
            lost = [lease.request_id for lease in inside.values()]
            named = f": {', '.join(lost)}" if lost else ""
            log.error("worker %s %s with %d requests in it%s", entry.worker, fate, len(lost), named)

    # ── for the control socket ───────────────────────────────────────────────────────────────────

    def before_load(self, model: str) -> None:
        entry = self._pool.entries[model]
        if entry.state not in (State.COLD, State.FAILED) or not self._sizing.has_changed(model):
            return
        if entry.state is State.FAILED:
            log.info("the files of model %s have changed; it may be loaded again", model)
            self._pool.changed(model)
        need = self._sizing.need(model)
        self.perform(self._pool.estimated(model, need.estimate, need.headroom, time.monotonic()))

    def keyed(self, digest: bytes) -> bytes:
        return self._quarantine.keyed(digest)

    def gateway_serves(self) -> None:
        self._gatekeeper.accepts_requests()

    def health(self) -> bytes:
        return health.render_health(
            self._pool,
            {name: model.source for name, model in self._catalog.models.items()},
            self._watch.machine,
            self._fleet.spare.state,
            time.time() - time.monotonic(),
            self._version,
            self._coroner.reports.last,
        )

    def returned(self, lease: int, position: int, prompt_tokens: int) -> None:
        self._coroner.returned(lease, position, prompt_tokens)

    def left(self, lease: int) -> None:
        self._coroner.left(lease)

    async def crashes(self, name: str) -> bytes:
        return await self._coroner.reports.read_json(name)

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────

    def _children(self) -> list[Child]:
        gateway = self._gatekeeper.child
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
                self._gatekeeper.check(now)
                for name, entry in self._pool.entries.items():
                    if entry.state in (State.READY, State.DRAINING):
                        awaited = bool(entry.granted)
                        self._fleet.check(name, entry.generation, now, awaited=awaited)
                calm = is_calm(self._pool.entries.values(), self._pool.level)
                self._fleet.spare.maintain(now, calm=calm)
            except Exception:
                # A bug of ours in one look must not leave them unwatched for good.
                log.exception("the children could not be looked at")
            await asyncio.sleep(CHECK_SECONDS)

    def _count_uses(self) -> None:
        self._sizing.save_use_counts({name: e.use_count for name, e in self._pool.entries.items()})

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            self._count_uses()
            logs.cut_to_tail(path for child in self._children() for path in child.files)


async def _first(*events: asyncio.Event) -> None:
    """Return when any of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
