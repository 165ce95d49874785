"""The gateway process: kept running, and never the owner of anything that must survive it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import datetime

from supervisor.processes.launcher import Child, Launcher, describe_exit
from supervisor.processes.watchdog import LATE_SECONDS, Watchdog
from supervisor.state import logs
from supervisor.state.paths import StateDir
from supervisor.wire import progress

log = logging.getLogger("bulkhead.supervisor")

_STABLE_SECONDS = 5.0
"""A gateway that lived this long did not fail at start-up: the next one starts at once."""
_BACKOFF_FIRST = 0.2
_BACKOFF_MAX = 10.0
_HOPELESS = 3
"""Deaths in a row, without ever having served, after which starting again is pointless."""
_STOP_SECONDS = 10.0
_START_SECONDS = 60.0
"""A gateway that does not serve by then never will; it takes half a second."""
_NO_CERTIFICATES = {"SSL_CERT_FILE": os.devnull}
"""The gateway makes no TLS connection, but aiohttp reads the machine's certificates when it is
imported: a fifth of the start, and 2 MB."""


class GatewayProcess:
    """Starts the gateway on an inherited socket and starts it again whenever it dies.

    Connections that arrive in between wait in the socket's backlog. `hopeless` is set when the
    gateway has never come up; the caller then gives up.
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
    ) -> None:
        """`on_death` is told of every unasked end: the process, how it ended, its uptime in seconds,
        and why it was killed if we did that."""
        self._launcher = launcher
        self._state = state
        self._listener = listener
        self._settings = settings
        self._module = module
        self._on_change = on_change
        self._on_death = on_death
        self._stall_seconds = stall_seconds
        self._watchdog: Watchdog | None = None
        """Of a gateway that serves."""
        self._put_down = ""
        """Why it was killed by us."""
        self._early_deaths = 0
        self._served = False
        self._hopeless_deaths = 0
        self._stopping = False
        self._born = 0.0
        self._waited_since = self._looked = 0.0
        """From when on the start counts, and the last look; monotonic seconds."""
        self._gone = asyncio.Event()
        self.child: Child | None = None
        self.serving = asyncio.Event()
        self.hopeless = asyncio.Event()

    def start(self) -> None:
        """Start one gateway process."""
        if self._stopping:
            return
        stamp = datetime.now().strftime("%Y%m%dT%H%M%S")
        self._gone.clear()
        self._born = self._waited_since = self._looked = time.monotonic()
        try:
            self.child = self._launcher.start(
                "gateway",
                self._module,
                [
                    *("--listen", str(self._listener.fileno())),
                    *("--control", str(self._state.control)),
                    *("--log", str(self._state.logs / "gateway.log")),
                    *("--settings", self._settings.decode()),
                ],
                stdout=self._state.logs / f"gateway.{stamp}.stdout",
                stderr=self._state.logs / f"gateway.{stamp}.stderr",
                environ=_NO_CERTIFICATES,
                inherit=[self._listener.fileno()],
                progress=True,
                on_exit=self._exited,
            )
        except OSError as error:
            log.error("the gateway cannot be started: %s", error)
            self._exited(1)
            return
        log.info("gateway started, pid %d", self.child.pid)
        logs.forget_old(self._state.logs, "gateway")
        self._on_change()

    def announced(self) -> None:
        """The gateway says that it accepts requests."""
        self._served = True
        self._hopeless_deaths = 0
        self._watchdog = Watchdog(self._stall_seconds)
        self.serving.set()

    def look(self, now: float) -> None:
        """See that the gateway moves; kill it when it does not. `now` in monotonic seconds."""
        if self.child is None or self._put_down or self._stopping:
            return
        how = self._stalled(self.child, now)
        if how is not None:
            log.error("the gateway has stalled and is killed: %s", how)
            self._put_down = f"it stalled: {how}"
            self.child.put_down()

    def _stalled(self, child: Child, now: float) -> str | None:
        if self._watchdog is None:
            if now - self._looked > LATE_SECONDS:
                # We were stopped, and it may have been, too.
                self._waited_since = now
            self._looked = now
            late = now - self._waited_since > _START_SECONDS
            return f"it did not serve within {_START_SECONDS:g} s" if late else None
        assert child.progress is not None
        reading = progress.read(child.progress)
        return None if reading is None else self._watchdog.look(reading, now, awaited=True)

    def _exited(self, returncode: int) -> None:
        child, self.child = self.child, None
        self._watchdog = None
        if child is not None and child.progress is not None:
            os.close(child.progress)
        self.serving.clear()
        self._gone.set()
        self._on_change()
        if self._stopping:
            return
        uptime = time.monotonic() - self._born
        early = uptime < _STABLE_SECONDS
        self._early_deaths = self._early_deaths + 1 if early else 0
        how = describe_exit(returncode)
        log.error("the gateway died (%s); models stay loaded, it is started again", how)
        if child is not None:
            self._on_death(child, how, uptime, self._put_down)
        self._put_down = ""
        self._hopeless_deaths += 1
        if not self._served and self._hopeless_deaths >= _HOPELESS:
            self.hopeless.set()
            return
        # The first restart is immediate: clients are waiting in the backlog.
        delay = _BACKOFF_FIRST * 2 ** (self._early_deaths - 2) if self._early_deaths > 1 else 0.0
        asyncio.get_running_loop().call_later(min(delay, _BACKOFF_MAX), self.start)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after a while; returns when the process is gone."""
        self._stopping, self._watchdog = True, None
        if self.child is None:
            return
        self.child.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._gone.wait(), _STOP_SECONDS)
        except TimeoutError:
            log.warning("the gateway ignored SIGTERM for %g s and is killed", _STOP_SECONDS)
            if self.child is not None:
                self.child.signal(signal.SIGKILL)
            await self._gone.wait()
