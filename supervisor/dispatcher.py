"""The one place where events meet the pool: they are handed in, and their effects carried out.

Everything runs on one thread and one event loop, so an event and its effects are never interleaved
with another's. All of them go through `Dispatcher.handle`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ParamSpec, assert_never

from supervisor.api.control import Control
from supervisor.api.events import EventFeed
from supervisor.background import guarded, name_of
from supervisor.crashes.collector import CrashCollector
from supervisor.machine.readers import MachineMemory, MemoryReader
from supervisor.models.looks import Looks
from supervisor.models.sizing import Look, Sizing
from supervisor.models.sources import SourceError
from supervisor.processes.counter import CounterProcess, CounterState
from supervisor.processes.fleet import Fleet
from supervisor.processes.launcher import Child
from supervisor.scheduler import refusals
from supervisor.scheduler.death import Death
from supervisor.scheduler.effects import (
    Effect,
    LeaseEffect,
    Lend,
    LimitSequences,
    LogLine,
    MayPrefill,
    QuarantineRequest,
    Recall,
    RememberExcess,
    RememberLimit,
    Shrink,
    Spawn,
    Stop,
)
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import Level
from supervisor.state.quarantine import Quarantine
from supervisor.wire import frames
from supervisor.wire.text import as_utf8

log = logging.getLogger("bulkhead.supervisor")

_EXIT_SECONDS = 30.0
"""How long an exit after a bug may take: the gateway alone may need ten."""

_RECENT_SECONDS = 5.0
"""A look so old will do for a count: where the files are seldom changes, and what is in them the
counter looks at itself."""
_MAY_CHANGE = (State.COLD, State.FAILED)
"""States in which a model's files are looked at before a request is decided about."""

P = ParamSpec("P")


class Dispatcher:
    """Listens to the workers, to the monitor and to the control socket, for the pool.

    `connect` comes before the first event. `failed` is set after a bug, see `handle` and `fail`;
    `stopped` when it shuts down and the last worker is gone.
    """

    def __init__(
        self,
        pool: Pool,
        sizing: Sizing,
        quarantine: Quarantine,
        collector: CrashCollector,
        feed: EventFeed,
        reader: MemoryReader,
    ) -> None:
        self.failed = asyncio.Event()
        self.stopped = asyncio.Event()
        self._pool = pool
        self._sizing = sizing
        self._quarantine = quarantine
        self._collector = collector
        self._feed = feed
        self._reader = reader
        self._fleet: Fleet
        self._counter: CounterProcess
        self._control: Control
        self._looks: Looks[Look] = Looks(lambda name: sizing.look(name), self._files_changed)
        self._epoch = time.time() - time.monotonic()
        """Turns epoch seconds into the pool's. Once for all: what a clock that is set does to the
        ages of requests, it does to all of them."""
        self._timer: asyncio.TimerHandle | None = None
        self._events: deque[tuple[str, Callable[[], Iterable[Effect] | None]]] = deque()
        """Names, for the log, and events that are still to be handled."""
        self._is_handling = False

    def connect(self, fleet: Fleet, control: Control, counter: CounterProcess) -> None:
        """Who carries out what the pool decides about workers and about leases, and what has to go
        when memory is short."""
        self._fleet, self._control, self._counter = fleet, control, counter

    # ── events and effects ───────────────────────────────────────────────────────────────────────

    def handle(
        self, event: Callable[P, Iterable[Effect] | None], *args: P.args, **more: P.kwargs
    ) -> None:
        """One event of the pool: have it decide, carry out the effects in order, and set the timer
        for its next deadline. The one place where exceptions of both end. An event that comes while
        the effects of another are carried out is handled after them.

        After an exception of the pool's own its state may be half-changed, and nothing that follows
        could be trusted: the supervisor exits, and is started again. One of an effect is made up
        for, and the others are carried out all the same.
        """
        if self.failed.is_set():
            return
        self._events.append((name_of(event), partial(event, *args, **more)))
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._events and not self.failed.is_set():
                self._handle_one(*self._events.popleft())
        finally:
            self._is_handling = False

    def _handle_one(self, name: str, event: Callable[[], Iterable[Effect] | None]) -> None:
        try:
            for effect in event() or ():
                if self.failed.is_set():
                    return
                try:
                    self._carry_out(effect)
                except Exception:
                    log.exception("%s: not carried out: %s", name, effect)
                    self._make_up_for(effect)
            guarded(self._feed.tell_states, self._pool.models.values())
            self._set_timer()
        except Exception:
            log.critical("%s: a bug; the supervisor exits", name, exc_info=True)
            self.fail()
        if self._pool.state.shutting_down and self._pool.state.stopped:
            self.stopped.set()

    def fail(self) -> None:
        """There was a bug, which the caller has logged: the supervisor exits, and is started again.
        No further event or effect is handled. Does nothing where it has failed already."""
        if self.failed.is_set():
            return
        self.failed.set()
        # Whatever hangs on the way out, the event loop included: without us the children end, and
        # we are started again.
        timer = threading.Timer(_EXIT_SECONDS, os._exit, [1])
        timer.daemon = True
        guarded(timer.start)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Spawn(model, generation):
                self._fleet.spawn(model, generation)
            case Stop(model, generation, kill, stacks):
                self._fleet.stop(model, generation, kill=kill, stacks=stacks)
            case Shrink(model, generation):
                self._fleet.tell(model, generation, frames.Shrink())
            case Lend(model, generation, size):
                self._fleet.tell(model, generation, frames.Lend(size))
            case Recall(model, generation, number, size, park):
                self._fleet.tell(model, generation, frames.Recall(number, size, park))
            case LimitSequences(model, generation, sequences):
                self._fleet.tell(model, generation, frames.Limit(sequences))
            case MayPrefill(model, generation, allowed):
                self._fleet.tell(model, generation, frames.MayPrefill(allowed))
            case LeaseEffect():
                guarded(self._collector.record_effect, effect)
                self._control.tell(effect)
            case QuarantineRequest(model, request_id):
                log.error("%s alone kills the worker of %s: refused", request_id, model)
                self._quarantine.save(self._pool.quarantined(time.monotonic()))
            case RememberLimit(model, limit):
                self._sizing.save_limit(model, limit, time.time() - time.monotonic())
            case RememberExcess(model, size):
                self._sizing.save_excess(model, size)
            case LogLine(text, level):
                log.log(level, "%s", text)
                self._feed.tell("decision", text=text)
            case _:
                assert_never(effect)

    def _make_up_for(self, effect: Effect) -> None:
        """The effect has raised, and what the pool expects of it must come about all the same."""
        match effect:
            case Spawn(model, generation):
                # Half started, it is killed, and its exit is told as always.
                if not self._fleet.stop(model, generation, kill=True, stacks=False):
                    loop, how = asyncio.get_running_loop(), "it could not be started"
                    loop.call_soon(self.worker_exited, model, generation, how)
            case Stop(model, generation):
                self._fleet.stop(model, generation, kill=True, stacks=False)
            case LeaseEffect(lease):
                self._control.drop(lease)
            case Lend(model, generation) | Recall(model, generation):
                # The ledger and the worker may differ now about what it may hold.
                self._fleet.stop(model, generation, kill=True, stacks=False)
            case MayPrefill(model, generation):
                # It might wait for its turn, and others for it, until it ends.
                self._fleet.stop(model, generation, kill=True, stacks=False)
            case Shrink() | LimitSequences() | QuarantineRequest() | LogLine():
                pass  # costs memory for a while, or a line
            case RememberLimit() | RememberExcess():
                pass  # it is learned again
            case _:
                assert_never(effect)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._pool.next_deadline()
        loop = asyncio.get_running_loop()
        # The loop's clock is time.monotonic on every platform we run on.
        self._timer = None if due is None else loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self.handle(self._pool.tick, time.monotonic())

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def worker_started(self, model: str, generation: int, child: Child) -> None:
        guarded(self._collector.worker_started, model, generation, child)
        self.handle(self._pool.started, model, generation, child.pid)

    def worker_loading(self, model: str, generation: int, done: int, total: int) -> None:
        self.handle(self._pool.loading, model, generation, time.monotonic(), done, total)
        if total:
            details = {"generation": generation, "done_bytes": done, "total_bytes": total}
            guarded(self._feed.tell, "loading", model=model, **details)

    def worker_ready(self, model: str, generation: int, ready: frames.Ready) -> None:
        living, now = self._pool.state.living(model, generation), time.monotonic()
        if living is None:
            return
        worker = living.current
        # What MLX holds leaves out the interpreter and its libraries.
        seen = None if worker.pid is None else guarded(self._reader.footprint, worker.pid)
        size = max(ready.memory_bytes, seen or 0)
        self.handle(self._pool.ready, model, generation, size, ready.context, now)
        if worker.loaded_at == now:
            guarded(self._sizing.save_load, model, size, now - worker.load_started)

    def worker_told(self, model: str, generation: int, frame: frames.LoanFrame) -> None:
        now = time.monotonic()
        match frame:
            case frames.Needs(least, most, since, idle, youngest, parkable, heard):
                since, youngest = since - self._epoch, youngest - self._epoch
                needs = LoanNeeds(least, most, since, idle, youngest, parkable, heard)
                self.handle(self._pool.memory.needs, model, generation, needs, now)
            case frames.Repaid(size, recall):
                self.handle(self._pool.memory.repaid, model, generation, size, recall, now)
            case frames.WantsPrefill(wanted):
                self.handle(self._pool.memory.wants_prefill, model, generation, wanted, now)

    def worker_unloadable(self, model: str, generation: int, reason: str) -> None:
        told = as_utf8(guarded(self._sizing.explained, model, reason) or reason)
        self.handle(self._pool.load_failed, model, generation, told, time.monotonic())

    def worker_broken(self, model: str, generation: int, reason: str) -> None:
        log.error("worker %s#%d must go: %s", model, generation, reason)
        self.handle(self._pool.broken, model, generation, reason, time.monotonic())

    def worker_progressed(self, model: str, generation: int) -> None:
        self.handle(self._pool.progress, model, generation)

    def worker_stalled(self, model: str, generation: int, how: str) -> None:
        guarded(self._log_death, model, generation, f"has stalled and is killed ({how})")
        death = self._diagnose(model, generation, "SIGKILL", kill_reason=f"it stalled: {how}")
        self.handle(self._pool.stalled, model, generation, how, time.monotonic(), death)

    def worker_dying(self, model: str, generation: int, how: str) -> None:
        death = self._diagnose(model, generation, how)
        guarded(self._log_death, model, generation, f"died ({how})")
        self.handle(self._pool.dying, model, generation, how, time.monotonic(), death)

    def worker_exited(self, model: str, generation: int, how: str) -> None:
        death = self._diagnose(model, generation, how)
        guarded(self._log_death, model, generation, f"died ({how})")
        self.handle(self._pool.exited, model, generation, how, time.monotonic(), death)
        guarded(self._collector.report, model, generation, how)
        if death is not None:
            details = {"id": death.report, "cause": death.cause}
            guarded(self._feed.tell, "crash", model=model, generation=generation, **details)

    def _diagnose(
        self, model: str, generation: int, how: str, *, kill_reason: str = ""
    ) -> Death | None:
        """What is known of a worker's end. None when it was asked for, or we kill them all."""
        if self.failed.is_set():
            return None
        return guarded(self._collector.diagnose, model, generation, how, kill_reason=kill_reason)

    def _log_death(self, model: str, generation: int, fate: str) -> None:
        """Name those who were in a worker that ends unasked."""
        dead = self._pool.state.crashing(model, generation)
        if dead is not None and dead.state is not State.STOPPING:  # it was named already
            inside = dead.waiting if dead.state is State.LOADING else dead.granted
            lost = [lease.request_id for lease in inside.values()]
            named = f": {', '.join(lost)}" if lost else ""
            name = dead.current.name
            log.error("worker %s %s with %d requests in it%s", name, fate, len(lost), named)

    # ── the machine's memory ─────────────────────────────────────────────────────────────────────

    def memory_pressure(
        self, machine: MachineMemory, level: Level, figures: str, *, eased: bool
    ) -> None:
        guarded(self._collector.sample_memory, machine)
        if level >= Level.HIGH:
            guarded(self._fleet.spare.drop, "memory is short")
            guarded(self._counter.drop, "memory is short")
        self.handle(self._pool.memory.pressure, level, figures, time.monotonic(), eased=eased)

    def memory_footprint(self, model: str, generation: int, size: int) -> None:
        self.handle(self._pool.memory.footprint, model, generation, size, time.monotonic())

    def memory_unattributed(self, size: int) -> None:
        self.handle(self._pool.memory.memory_seen, size, time.monotonic())

    # ── the control socket ───────────────────────────────────────────────────────────────────────

    async def before_load(self, model: str) -> None:
        if self._pool.models[model].state in _MAY_CHANGE:
            await self._looks.refresh(model)

    async def before_count(self, model: str) -> Path:
        state = self._pool.state
        if state.shutting_down:
            raise refusals.shutting_down()
        if state.level >= Level.CRITICAL and self._counter.state is CounterState.OFF:
            raise refusals.no_new_counter(state.pressure_figures)
        if state.models[model].state in _MAY_CHANGE:
            await self._looks.refresh(model, _RECENT_SECONDS)
        try:
            return self._sizing.folder(model)
        except SourceError as error:
            raise refusals.unreadable(state.models[model], str(error)) from None

    def _files_changed(self, model: str, look: Look) -> None:
        state = self._pool.models[model].state
        if state not in _MAY_CHANGE:
            return  # it is loaded by now; the next look sees the change again
        need, now = self._sizing.take(model, look), time.monotonic()
        if state is State.FAILED:
            log.info("the files of model %s have changed; it may be loaded again", model)
            self.handle(self._pool.changed, model, now)
        self.handle(self._pool.estimated, model, need.estimate, need.headroom, now)

    def returned(self, lease: int, position: int, prompt_tokens: int, hold: float) -> None:
        guarded(self._collector.returned, lease, position, prompt_tokens)
        self.handle(self._pool.returned, lease, position, time.monotonic(), hold)

    def left(self, lease: int) -> None:
        guarded(self._collector.left, lease)
        self.handle(self._pool.release, lease, time.monotonic())
