"""The gateway process: started on the listening socket, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

from supervisor.background import guarded
from supervisor.processes.launcher import Child, Launcher, describe_exit
from supervisor.processes.watchdog import LATE_SECONDS, Watchdog
from supervisor.state import logs
from supervisor.state.paths import StateDir
from supervisor.wire import progress

log = logging.getLogger("bulkhead.supervisor")

BYTES = 256 * 10**6
"""What it may come to hold beside the bodies of waiting requests: 49 MB of its own (Linux), 128 MB
of bodies that run, 64 MB of kept responses, and what is being parsed."""
_STABLE_SECONDS = 5.0
"""A gateway that lived this long did not fail at start-up: the next one starts at once."""
_BACKOFF_FIRST = 0.2
_BACKOFF_MAX = 10.0
_BACKOFF_DOUBLINGS = 16
"""More of them are beyond _BACKOFF_MAX anyway, and beyond what a float holds one day."""
_GIVE_UP = 3
"""Deaths in a row, without ever having served, after which it is not started again."""
_STOP_SECONDS = 10.0
_CUT_SECONDS = 1.0
_REAP_SECONDS = 5.0
"""Between SIGKILL and the exit status. A process that a dead disk holds has none."""
_START_SECONDS = 60.0
"""A gateway that does not serve by then never will; it takes half a second."""
_NO_CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
"""The gateway makes no TLS connection, but aiohttp reads the machine's certificates when it is
imported: a fifth of the start, and 2 MB."""


class GatewayProcess:
    """Keeps one gateway process running. To be used on the event loop.

    The process inherits `listener`, so connections that arrive while there is none wait in the
    socket's backlog. Nothing that must survive it belongs to it.
    """

    def __init__(
        self,
        launcher: Launcher,
        state: StateDir,
        listener: socket.socket,
        settings: bytes,
        module: str,
        on_change: Callable[[], None],
        on_death: Callable[[Child, str, float, str], None],
        *,
        stall_seconds: float,
        terminal: int | None = None,
    ) -> None:
        """`settings` are the gateway's, JSON; `module` is what it runs. `on_change` is called when
        there is a process or none. `on_death` is called at every end that was not asked for: the
        process, how it ended, its uptime in seconds, and why we killed it, "" = we did not.
        `terminal` is the descriptor of what shows its access lines."""
        self._launcher = launcher
        self._state = state
        self._listener = listener
        self._settings = settings
        self._module = module
        self._on_change = on_change
        self._on_death = on_death
        self._stall_seconds = stall_seconds
        # Numbers below 3 are replaced in a child.
        self._terminal = None if terminal is None else os.dup(terminal)
        self._watchdog: Watchdog | None = None
        """Of a gateway that serves."""
        self._kill_reason = ""
        """Why we kill it, if we do."""
        self._deaths = self._early_deaths = 0
        """In all, and in a row shortly after a start."""
        self._served = False
        self._stopping = self._is_cut = False
        self._started_at = 0.0
        self._waited_since = self._last_check = 0.0
        """When the wait for its first answer began, and the last check; monotonic seconds."""
        self._gone = asyncio.Event()
        self.child: Child | None = None
        self.serving = asyncio.Event()
        """Set while the gateway accepts requests."""
        self.gave_up = asyncio.Event()
        """Set when it died several times without ever having served: it is not started again."""

    def start(self) -> None:
        """Start the process. One that cannot be started counts as one that died."""
        if self._stopping:
            return
        files = logs.stamped("gateway")
        self._gone.clear()
        self._started_at = self._waited_since = self._last_check = time.monotonic()
        try:
            self.child = self._launcher.start(
                "gateway",
                self._module,
                [
                    *("--listen", str(self._listener.fileno())),
                    *("--control", str(self._state.control)),
                    *("--log", str(self._state.logs / "gateway.log")),
                    *("--settings", self._settings.decode()),
                    *(("--terminal", str(self._terminal)) if self._terminal else ()),
                ],
                stdout=self._state.logs / f"{files}.stdout",
                stderr=self._state.logs / f"{files}.stderr",
                environ=_NO_CERTIFICATES,
                inherit=[self._listener.fileno(), *([self._terminal] if self._terminal else [])],
                progress=True,
                on_exit=self._exited,
            )
        except OSError as error:
            log.error("the gateway cannot be started: %s", error)
            self._exited(1)
            return
        log.info("gateway started, pid %d", self.child.pid)
        guarded(self._on_change)
        logs.remove_old(self._state.logs, "gateway", self.child.files)

    def accepts_requests(self) -> None:
        """To be called when the gateway says so."""
        self._served = True
        self._watchdog = Watchdog(self._stall_seconds)
        self.serving.set()

    def check(self, now: float) -> None:
        """Kill the process if it has stalled, or has not begun to serve in time. `now` in monotonic
        seconds."""
        if self.child is None or self._kill_reason or self._stopping:
            return
        how = self._stalled(self.child, now)
        if how is not None:
            log.error("the gateway has stalled and is killed: %s", how)
            self._kill_reason = f"it stalled: {how}"
            self.child.kill_with_stacks()

    def _stalled(self, child: Child, now: float) -> str | None:
        if self._watchdog is None:
            if now - self._last_check > LATE_SECONDS:
                # We did not run meanwhile, and perhaps it did not either.
                self._waited_since = now
            self._last_check = now
            late = now - self._waited_since > _START_SECONDS
            return f"it did not serve within {_START_SECONDS:g} s" if late else None
        assert child.progress is not None
        reading = progress.read(child.progress)
        return None if reading is None else self._watchdog.check(reading, now, awaited=True)

    def _exited(self, returncode: int) -> None:
        child, self.child = self.child, None
        self._watchdog = None
        self.serving.clear()
        self._gone.set()
        # Whatever fails here, another one is started.
        if child is not None and child.progress is not None:
            guarded(os.close, child.progress)
        guarded(self._on_change)
        if self._stopping:
            return
        uptime = time.monotonic() - self._started_at
        self._early_deaths = self._early_deaths + 1 if uptime < _STABLE_SECONDS else 0
        how = describe_exit(returncode)
        log.error("the gateway died (%s); models stay loaded, it is started again", how)
        if child is not None:
            guarded(self._on_death, child, how, uptime, self._kill_reason)
        self._kill_reason = ""
        self._deaths += 1
        if not self._served and self._deaths >= _GIVE_UP:
            self.gave_up.set()
            return
        # The first restart is immediate: clients are waiting in the backlog.
        early = min(self._early_deaths, _BACKOFF_DOUBLINGS)
        delay = _BACKOFF_FIRST * 2 ** (early - 2) if early > 1 else 0.0
        asyncio.get_running_loop().call_later(min(delay, _BACKOFF_MAX), self.start)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after 10 s, or after one where it is `cut`. Returns when the
        process is gone, or 5 s after that."""
        self._stopping, self._watchdog = True, None
        if self.child is None:
            return
        child, seconds = self.child, _CUT_SECONDS if self._is_cut else _STOP_SECONDS
        child.signal(signal.SIGTERM)
        if await self._is_gone(seconds):
            return
        log.warning("the gateway ignored SIGTERM for %g s and is killed", seconds)
        child.signal(signal.SIGKILL)
        if not await self._is_gone(_REAP_SECONDS):
            log.error("the gateway, pid %d, does not end", child.pid)

    def cut(self) -> None:
        """Nobody wants to wait for the answers that still run: one that stops is killed."""
        self._is_cut = True
        if self._stopping and self.child is not None:
            self.child.signal(signal.SIGKILL)

    async def _is_gone(self, seconds: float) -> bool:
        """Whether the process is gone within so long."""
        try:
            await asyncio.wait_for(self._gone.wait(), seconds)
        except TimeoutError:
            return False
        return True
