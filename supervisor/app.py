"""The supervisor process: its parts put together, from its start to its end.

What happens meanwhile goes through `supervisor.dispatcher`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from supervisor import background, build
from supervisor.api import health
from supervisor.api.control import Control
from supervisor.api.events import EventFeed
from supervisor.background import Latest, Refused, guarded, on_thread
from supervisor.config.schema import Config
from supervisor.crashes.collector import CrashCollector, secret_values
from supervisor.crashes.os_evidence import SystemEvidence
from supervisor.dispatcher import Dispatcher
from supervisor.machine.monitor import Monitor
from supervisor.machine.readers import MemoryReader
from supervisor.models.catalog import Catalog
from supervisor.models.sizing import Sizing
from supervisor.processes import counter, orphans
from supervisor.processes.counter import CounterProcess
from supervisor.processes.fleet import Fleet
from supervisor.processes.gateway import GatewayProcess
from supervisor.processes.launcher import Child, Code, InstalledCode, Launcher
from supervisor.processes.spare import is_calm
from supervisor.processes.watchdog import CHECK_SECONDS
from supervisor.processes.worker import ExitCallbacks, WorkerProcess
from supervisor.scheduler.ledger import Reserved
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.model import ReleaseRule, Worker
from supervisor.scheduler.pool import Pool
from supervisor.state import logs
from supervisor.state.paths import StateDir
from supervisor.state.quarantine import Quarantine
from supervisor.state.trouble import Trouble
from supervisor.stopping import Stopping
from supervisor.wire import control_frames
from supervisor.wire.listener import LOOK_SECONDS, Listener

log = logging.getLogger("bulkhead.supervisor")

GATEWAY_MODULE = "gateway.main"
WORKER_MODULE = "worker.main"
COUNTER_MODULE = "worker.counting.main"
_UPKEEP_SECONDS = 10.0
_LOAD_REPORTS_SECONDS = 5.0
"""How long a disk may keep us from serving because of old crash reports."""
_HANG_SECONDS = 10.0
"""After which a look at the disk is told to hang."""
_END_SECONDS = 2.0
"""How long it may keep us from ending."""
_STILL_SECONDS = 2.0
"""After the second signal, for a worker of no size in which nothing moves."""

T = TypeVar("T")


class Supervisor:
    """Owns the pool, the listening socket and every child of one instance.

    `pool` has every model and none loaded, with the sizes that `sizing` knows; `reader` reads the
    machine's memory. `worker_module` is what worker processes run: the seam at which tests put the
    real worker server around an engine that follows a script. `code` is what children run,
    None = what is installed. `terminal` shows each request. `keepers` are called every second, on
    another thread, and put back what somebody has removed of the state directory.
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
        terminal: int | None = None,
        keepers: Sequence[Callable[[], None]] = (),
        code: Code | None = None,
    ) -> None:
        what = f"put back what is missing of {state.root}"
        self._keepers = [(keep, Trouble(what)) for keep in (state.restore, *keepers)]
        self._looks: set[asyncio.Task[Any]] = set()
        """What looks after the state directory at the moment, on threads: see `_look`."""
        self._is_cut = self._ended = False
        self._stopping = Stopping(pool.state.limits.drain, self._asked_to_stop)
        self._catalog = catalog
        self._state = state
        self._version = version
        self._sizing = sizing
        self._pool = pool
        self._quarantine_writer = Latest("quarantine")
        quarantine = Quarantine.load(state.quarantine, self._quarantine_writer)
        pool.restore_quarantine(quarantine.quarantined())
        self._feed = EventFeed()
        self._collector = CrashCollector(
            pool.state,
            state.crashes,
            reader,
            SystemEvidence(),
            version=version,
            secrets=secret_values(os.environ, *(m.env for m in catalog.models.values())),
        )
        self._dispatcher = Dispatcher(pool, sizing, quarantine, self._collector, self._feed, reader)
        self._monitor = Monitor(
            pool.models,
            pool.state.ledger.awaits_memory,
            self._dispatcher,
            reader,
            build.thresholds(config.memory),
            watches_release=pool.state.rules.release is ReleaseRule.WHEN_SEEN,
        )
        self._instance = secrets.token_hex(8)
        self._record_trouble = Trouble(f"write {state.children}, the record of running processes")
        self._lifeline, self._held = os.pipe()  # both CLOEXEC: children get the read end by name
        launcher = Launcher(self._instance, self._lifeline, os.environ, code or InstalledCode())
        self._fleet = Fleet(
            launcher,
            state,
            catalog,
            self._dispatcher,
            module=worker_module,
            on_change=self._record_children,
            stall_seconds=config.recovery.stall_seconds,
            prefill_gate=config.memory.prefill_gate,
            locate=sizing.folder,
            allowance=lambda model: sizing.allowance(model, pool.state.next_charge(model)),
        )
        self._gateway = GatewayProcess(
            launcher,
            state,
            listener,
            msgspec.json.encode(config.server),
            GATEWAY_MODULE,
            self._record_children,
            lambda *death: guarded(self._collector.process_died, "gateway", *death),
            stall_seconds=config.recovery.stall_seconds,
            terminal=terminal,
        )
        self._counter = CounterProcess(
            partial(self._start_counter, launcher),
            state.counter_socket,
            self._record_children,
            self._counter_died,
            stall_seconds=config.recovery.stall_seconds,
        )
        self._control = Control(
            pool,
            self._feed,
            state,
            self._dispatcher,
            keyed=quarantine.keyed,
            counter=self._counter,
            health=self._health,
            about=lambda: msgspec.json.encode(self._sizing.about()),
            crashes=self._collector.reports.read_json,
            gateway_serves=self._gateway.accepts_requests,
        )
        self._dispatcher.connect(self._fleet, self._control, self._counter)
        self._stop = asyncio.Event()

    async def run(self, announce: str, greeting: Sequence[str] = ()) -> int:
        """Serve until SIGTERM or SIGINT; print `announce` once requests are accepted, and log it
        with `greeting`.

        Returns the exit status: 0 after a drain, 1 when the gateway never came up, or when a bug
        leaves nothing else to do than to be started again.
        """
        self._stopping.listen()
        asyncio.get_running_loop().set_exception_handler(self._loop_failed)
        listener = Listener(
            str(self._state.control), control_frames.ToSupervisor, self._control.serve
        )
        await listener.open()
        await self._load_reports()
        tasks = [
            background.start(work)
            for work in (
                listener.keep(),
                self._keep_state(),
                self._upkeep(),
                self._monitor.run(),
                self._check_children(),
            )
        ]
        gateway = self._gateway
        try:
            gateway.start()
            await _first(gateway.serving, gateway.gave_up, self._stop, self._dispatcher.failed)
            if gateway.serving.is_set() and not self._stop.is_set():
                self._start_serving(announce, greeting)
            await _first(self._stop, gateway.gave_up, self._dispatcher.failed)
            gave_up = gateway.gave_up.is_set()  # after that, in the drain, it does not matter
            if gave_up:
                log.error("the gateway cannot start; its stderr is in %s", self._state.logs)
        finally:
            self._stopping.arm()
            await self._end_workers()
            self._record_use_counts()
            self._feed.close()  # or the gateway would wait for those who watch
            await gateway.stop()
            self._counter.disable()
            await self._counter.ended()
            await self._fleet.spare.ended()
            await self._collector.reports.close()
            for task in tasks:
                task.cancel()
            await self._end_looks()
            listener.close()
            with contextlib.suppress(OSError):  # it names nobody who runs
                self._state.children.unlink()
            os.close(self._held)
            os.close(self._lifeline)
            log.info("stopped")
        return 1 if gave_up or self._dispatcher.failed.is_set() else 0

    async def _load_reports(self) -> None:
        """Which crash was each model's last. Nothing is decided by it: whatever fails costs a line
        in the log."""
        seconds = _LOAD_REPORTS_SECONDS
        try:
            await asyncio.wait_for(self._collector.reports.load_last(), seconds)
        except TimeoutError:
            log.warning(
                "old crash reports are not shown: no answer from the disk for %g s", seconds
            )
        except Refused as error:
            log.warning("old crash reports are not shown: %s", error)
        except Exception:
            log.exception("old crash reports are not shown")

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody has caught, in a callback or a task, is a bug. What comes
        without one, or with the socket that could not accept for want of descriptors, is a
        warning: the loop goes on."""
        error = context.get("exception")
        if error is None or "socket" in context:
            loop.default_exception_handler(context)
        else:
            where = context.get("message")
            log.critical("%s: a bug; the supervisor exits", where, exc_info=error)
            self._dispatcher.fail()

    def _start_serving(self, announce: str, greeting: Sequence[str]) -> None:
        try:
            print(announce, flush=True)
        except (OSError, ValueError) as error:  # whoever read it has gone, or its disk is full
            log.warning("stdout cannot be written to: %s", error)
            sys.stdout = None  # else Python tries again at its end, and exits with status 120
        for line in (announce, *greeting):
            log.info("%s", line)
        for name, model in self._catalog.models.items():
            if model.preload:
                self._dispatcher.handle(self._pool.preload, name, time.monotonic())
        if Reserved.SPARE in self._pool.state.ledger.reservations:
            self._fleet.spare.enable()

    async def _end_workers(self) -> None:
        """Return when all workers are drained and gone. If the pool has failed they are killed."""
        if not self._pool.state.shutting_down:
            self._asked_to_stop()
        await _first(self._dispatcher.stopped, self._dispatcher.failed)
        if self._dispatcher.failed.is_set():
            self._fleet.spare.disable()
            self._control.close()
            await self._fleet.kill_all()

    def _asked_to_stop(self) -> None:
        if self._dispatcher.failed.is_set():
            return  # it ends already, in another way
        if self._pool.state.shutting_down:
            log.info("asked to stop again: what still runs is cut")
            self._is_cut = True
            self._gateway.cut()
        else:
            running = sum(len(each.granted) for each in self._pool.models.values())
            log.info(
                "asked to stop: %d running requests may take %g s to end; another signal cuts them",
                running,
                self._pool.state.limits.drain,
            )
        self._stop.set()
        self._fleet.spare.disable()
        self._dispatcher.handle(self._pool.shutdown, time.monotonic())

    def _health(self) -> bytes:
        return health.render_health(
            self._pool.state,
            {name: model.source for name, model in self._catalog.models.items()},
            self._monitor.machine,
            self._fleet.spare.state,
            time.time() - time.monotonic(),
            self._version,
            self._collector.reports.last,
            self._sizing.passed_over(),
            counter=self._counter.state,
            now=time.monotonic(),
            footprint=self._collector.footprint,
            activity=self._fleet.activity,
            context=lambda name: self._sizing.context(name, self._pool.state.next_charge(name)),
        )

    # ── the counter ──────────────────────────────────────────────────────────────────────────────

    def _start_counter(
        self, launcher: Launcher, socket: Path, callbacks: ExitCallbacks
    ) -> WorkerProcess:
        base = self._state.logs / logs.stamped(counter.ROLE)
        arguments = ["--socket", str(socket)]
        process = WorkerProcess(
            launcher, COUNTER_MODULE, counter.ROLE, base, callbacks, arguments=arguments
        )
        logs.remove_old(self._state.logs, counter.ROLE, process.child.files)
        return process

    def _counter_died(self, child: Child, how: str, uptime: float, kill_reason: str) -> None:
        self._control.counter_died(how, kill_reason)
        guarded(self._collector.process_died, "counter", child, how, uptime, kill_reason)

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────

    def _children(self) -> list[Child]:
        others = (self._gateway.child, self._counter.child)
        return [*self._fleet.children, *(child for child in others if child is not None)]

    def _record_children(self) -> None:
        try:
            orphans.record(self._state, self._instance, self._children())
        except Exception as error:  # noqa: BLE001
            # Nothing must stand between a death and what follows from it.
            self._record_trouble.failed(error)
        else:
            self._record_trouble.worked()

    async def _check_children(self) -> None:
        """See that every child moves that serves, and that there is a spare. A load has a deadline
        of its own."""
        while True:
            # A bug of ours in one look leaves neither it nor the others unwatched.
            now = time.monotonic()
            guarded(self._gateway.check, now)
            guarded(self._counter.maintain, now)
            for name, model in self._pool.models.items():
                if model.state in (State.READY, State.DRAINING):
                    awaited = bool(model.granted)
                    guarded(self._fleet.check, name, model.generation, now, awaited=awaited)
                elif model.state is State.STOPPING and self._is_cut:
                    patience = self._patience(model.current)
                    guarded(self._fleet.kill_if_still, name, model.generation, now, patience)
            calm = is_calm(self._pool.models.values(), self._pool.state.level)
            guarded(self._fleet.spare.maintain, now, calm=calm)
            await asyncio.sleep(CHECK_SECONDS)

    def _patience(self, worker: Worker) -> float:
        """Seconds that a worker may stand still that is to end at once. A large one may be giving
        back its memory, which nothing in it can say meanwhile."""
        ledger, limits = self._pool.state.ledger, self._pool.state.limits
        size = max(worker.memory_bytes, ledger.of(worker.key))
        return _STILL_SECONDS + limits.stop_per_gigabyte * size / 1e9

    def _record_use_counts(self) -> None:
        counts = {name: model.use_count for name, model in self._pool.models.items()}
        guarded(self._sizing.cache.save_use_counts, counts)

    async def _keep_state(self) -> None:
        trouble = Trouble(f"look after {self._state.root}")
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await self._look(self._put_back, trouble) is False:
                self._record_children()

    def _put_back(self) -> bool:
        """Put back what somebody has removed of the state directory, on a thread. Whether the
        record of running processes is there."""
        for keep, trouble in self._keepers:
            if self._ended:  # what is removed now is removed by us
                return True
            try:
                keep()
            except Exception as error:  # noqa: BLE001, tried again in a moment
                trouble.failed(error)
            else:
                trouble.worked()
        return os.path.exists(self._state.children)  # False, too, where nobody may look

    async def _upkeep(self) -> None:
        trouble = Trouble(f"look after the files in {self._state.logs}")
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            self._record_use_counts()
            files = [path for child in self._children() for path in child.files]
            await self._look(partial(guarded, logs.cut_to_tail, files), trouble)

    async def _look(self, work: Callable[[], T], trouble: Trouble) -> T | None:
        """What `work` returns, on a thread of its own: a disk that hangs costs this look, and those
        that wait for it, and a line in the log. None where there is no thread to be had; the next
        look tries again."""
        look = asyncio.ensure_future(on_thread(work, "state"))
        self._looks.add(look)
        look.add_done_callback(self._look_ended)
        # Unlike `wait_for`, this does not cancel it: nothing can.
        done, _ = await asyncio.wait([look], timeout=_HANG_SECONDS)
        if not done:
            trouble.failed(TimeoutError(f"no answer from the disk for {_HANG_SECONDS:g} s"))
            await asyncio.wait([look])
        try:
            found = look.result()
        except RuntimeError as error:
            trouble.failed(error)
            return None
        trouble.worked()
        return found

    def _look_ended(self, look: asyncio.Task[Any]) -> None:
        self._looks.discard(look)
        if not look.cancelled():
            look.exception()  # at the end nobody else asks for it, and it is no bug

    async def _end_looks(self) -> None:
        """Return when no look runs and what was learned is written, or soon: what hangs is left to
        the end of the process."""
        self._ended = True
        if self._looks:
            await asyncio.wait(self._looks, timeout=_END_SECONDS)
        self._sizing.cache.flush(_END_SECONDS)
        self._quarantine_writer.wait(_END_SECONDS)


async def _first(*events: asyncio.Event) -> None:
    """Return when any of the events is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
