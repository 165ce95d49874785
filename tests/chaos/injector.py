"""One model's faults: each waits for its moment, and the next for its end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.faults import (
    BATCHING,
    IDLING,
    Past,
    Plan,
    inject,
    is_gone,
    plan,
    reached,
    wait_until,
)
from tests.chaos.tally import Tally
from tests.helpers.fakes.orders import fifo_of
from tests.helpers.fakes.signs import DECODE, PREFILL, SPAWN, Sign, forget, sign_of

PROBATION = "probation"
"""The phase of a worker that runs one request, while others wait for what becomes of it."""
_MOMENT_SECONDS = 60.0
"""After which a fault that waits for its moment is given up for another one."""
_END_SECONDS = 60.0


class Target:
    """A model that gets faults: its process, and whether requests wait. Both are read from `look`,
    the model's entry in /health."""

    def __init__(
        self, look: Callable[[], dict[str, object]], load: Callable[[], object], folder: Path
    ) -> None:
        """`load` has it loaded by hand."""
        self._look = look
        self._folder = folder
        self.load = load

    @property
    def pid(self) -> int | None:
        pid = self._look().get("pid")
        return pid if isinstance(pid, int) and not is_gone(pid) else None

    @property
    def waiting(self) -> bool:
        return bool(self._look().get("queued"))

    def sign(self, pid: int) -> Sign | None:
        return sign_of(self._folder, pid)


class FaultInjector:
    """Injects faults into one model's workers until none is left or the storm is over.

    `take` gives leave for one fault more, `hush` keeps new requests from the model or ends that.
    """

    def __init__(
        self,
        model: str,
        dice: random.Random,
        target: Target,
        folder: Path,
        tally: Tally,
        take: Callable[[], bool],
        hush: Callable[[str, bool], bool],
        over: threading.Event,
    ) -> None:
        self._model = model
        self._dice = dice
        self._target = target
        self._folder = folder
        self._tally = tally
        self._take = take
        self._hush = hush
        self._over = over
        self._past = Past()
        self._last: int | None = None
        """The process that was there last."""
        self._sign: Sign | None = None
        """And where it was when it was seen last."""

    def run(self) -> None:
        while not self._over.is_set() and self._take():
            injected = False
            while not injected and not self._over.is_set():
                injected = self._try(plan(self._dice, self._past))

    def _try(self, wanted: Plan) -> bool:
        """Whether the fault came about."""
        hushed = wanted.aim == IDLING and self._hush(self._model, True)
        if wanted.aim == IDLING and not hushed:
            return False
        try:
            pid = self._moment(wanted)
            waiting = self._target.waiting
            if pid is None or not inject(wanted.fault, pid, self._folder):
                return False
        finally:
            if hushed:
                self._hush(self._model, False)
        gone = wait_until(lambda: is_gone(pid), _END_SECONDS)
        sign = self._forget_process(pid)
        with self._tally.lock:
            self._tally.injected[wanted.fault, _phase(sign, waiting)] += 1
            if not gone:
                self._tally.ineffective.append(
                    f"{wanted} did not end process {pid} of {self._model}"
                )
        return True

    def _moment(self, wanted: Plan) -> int | None:
        """Wait for what the fault waits for, so long as it says, and until a fault may hit the
        model. None when that does not come, or the process ends by itself."""
        pids: list[int] = []
        if wanted.aim == BATCHING:
            # Crowds that die again and again are made smaller, and these are not too large.
            self._target.load()

        def is_there() -> bool:
            pid = self._target.pid
            if pid is None:
                return self._over.is_set()
            self._meet(pid)
            pids[:] = [pid]
            return reached(wanted.aim, self._target.sign(pid))

        if not wait_until(is_there, _MOMENT_SECONDS) or self._over.is_set() or not pids:
            return None
        pid = pids[0]
        time.sleep(wanted.delay)  # the moment is random

        def may_be() -> bool:
            sign = self._target.sign(pid)
            if wanted.fault in ("exit0", "torn", "hog") and not fifo_of(self._folder, pid).exists():
                return is_gone(pid)
            return is_gone(pid) or self._past.allows(sign)

        return pid if wait_until(may_be, _MOMENT_SECONDS, 0.005) and not is_gone(pid) else None

    def _meet(self, pid: int) -> None:
        """If this is a new process, the one before it has ended, if by no fault then by itself."""
        if self._last is not None and self._last != pid:
            self._forget_process(self._last)
        self._last = pid

    def _forget_process(self, pid: int) -> Sign | None:
        """The process is gone: remove its files, and return where it was."""
        sign = self._target.sign(pid)
        self._past.died(sign)
        forget(self._folder, pid)
        fifo_of(self._folder, pid).unlink(missing_ok=True)
        self._last = None
        return sign


def _phase(sign: Sign | None, waiting: bool) -> str:
    if sign is None:
        return SPAWN
    if sign.phase in (PREFILL, DECODE) and sign.running < 2 and waiting:
        return PROBATION
    return sign.phase
