"""Writes crash reports, and reads those that were written.

All of that happens on one thread of its own, in order. What becomes known of a crash later, such as
what became of its requests, is added to its report while it is one of the last OPEN_MAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.background import DaemonThread, Refused
from supervisor.crashes import store
from supervisor.crashes.os_evidence import Evidence
from supervisor.crashes.redaction import Redactor
from supervisor.crashes.snapshot import Snapshot, compose_report
from supervisor.errors import NotFound, QueueFull
from supervisor.wire.crash import CrashBrief, CrashList, CrashReport, InFlight, Outcome
from supervisor.wire.text import to_json

log = logging.getLogger("bulkhead.supervisor")

OPEN_MAX = 32
"""Crashes to whose reports something can be added."""
_IPS_SECONDS = 20.0
"""After a crash, until macOS' own report is looked for once more: it is written late."""
_CLOSE_SECONDS = 5.0
READERS_MAX = 16
"""Pieces of work that may wait before somebody who asks for reports is refused."""
_READ_SECONDS = 10.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _OpenReport:
    """A crash to whose report something can be added."""

    snapshot: Snapshot
    requests: dict[str, InFlight]
    recovery: list[Outcome] = field(default_factory=list)
    report: CrashReport | None = None
    """None until the process has ended."""
    is_stale: bool = True
    """The file does not have all that is known."""
    is_writing: bool = False


class ReportWriter:
    """The reports of one state directory. To be used on the event loop.

    `begin` once for each death, `finish` when the process has ended, `add_position` and
    `add_outcome` at any time between and after.
    """

    def __init__(self, folder: Path, redactor: Redactor, evidence: Evidence, version: str) -> None:
        self._store = store.Store(folder)
        self._redactor = redactor
        self._evidence = evidence
        self._version = version
        self._crashes: OrderedDict[str, _OpenReport] = OrderedDict()
        self._last: dict[str, CrashBrief] = {}
        self._thread = DaemonThread("crashes")
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, snapshot: Snapshot) -> None:
        """A process dies: keep what becomes known of it from now on."""
        ids = snapshot.requests[: store.REQUESTS_MAX]
        requests = {request_id: InFlight(request_id=request_id) for request_id in ids}
        self._crashes[snapshot.id] = _OpenReport(snapshot, requests)
        while len(self._crashes) > OPEN_MAX:
            self._crashes.popitem(last=False)

    def add_position(
        self, crash_id: str, request_id: str, prompt_tokens: int | None, emitted_tokens: int | None
    ) -> None:
        """How far a request was when its worker died. Nothing for a crash of long ago."""
        crash = self._crashes.get(crash_id)
        if crash is not None and request_id in crash.requests:
            crash.requests[request_id] = InFlight(
                request_id=request_id, prompt_tokens=prompt_tokens, emitted_tokens=emitted_tokens
            )
            self._rewrite(crash)

    def add_outcome(self, crash_id: str, request_id: str, outcome: str) -> None:
        """What became of a request that was in the process. Nothing for a crash of long ago."""
        crash = self._crashes.get(crash_id)
        if crash is not None and len(crash.recovery) < store.REQUESTS_MAX:
            crash.recovery.append(Outcome(request_id=request_id, outcome=outcome))
            self._rewrite(crash)

    def finish(self, snapshot: Snapshot, how: str) -> None:
        """The process has ended: have its report written."""
        if (crash := self._crashes.get(snapshot.id)) is not None:
            self._spawn(self._report(crash, how))

    def last(self, model: str) -> CrashBrief | None:
        """The model's last crash, in this run or an earlier one."""
        return self._last.get(model)

    async def load_last(self) -> None:
        """Read from the reports of earlier runs which crash was each model's last."""
        for brief in await self._off_loop(self._store.listing):
            if brief.model is not None:
                self._last.setdefault(brief.model, brief)

    async def read_json(self, crash_id: str) -> bytes:
        """JSON: the report with that id, or the list of all for "". Raises NotFound, or QueueFull
        where the disk does not answer in time, or too many wait for it."""
        if not crash_id:
            return to_json(CrashList(crashes=await self._read(self._store.listing)))
        try:
            report = await self._read(lambda: self._store.read(crash_id))
        except store.Unreadable as error:
            raise NotFound(f"{error}.") from None
        if report is None:
            raise NotFound("There is no such crash report. GET /admin/crashes lists them.")
        return to_json(report)

    async def flush(self) -> None:
        """Return when all reports are written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Return when all reports are written, or after 5 s. Nothing can be written any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.flush()
        for task in self._tasks:
            task.cancel()
        self._thread.close()

    # ── on the thread, and back ──────────────────────────────────────────────────────────────────

    async def _report(self, crash: _OpenReport, how: str) -> None:
        snapshot = crash.snapshot
        report = await self._off_loop(
            lambda: compose_report(snapshot, how, self._redactor, self._evidence, self._version)
        )
        crash.report = report
        log.error(
            "crash report %s: %s died (%s: %s, %s). %s",
            report.id,
            snapshot.name,
            how,
            report.summary,
            report.cause,
            report.advice,
        )
        self._rewrite(crash)
        if report.model is not None:
            self._last[report.model] = report
        if report.ips is None and self._evidence.late_reports:
            look = asyncio.get_running_loop().call_later
            look(_IPS_SECONDS, lambda: self._spawn(self._look_for_ips(crash)))

    async def _look_for_ips(self, crash: _OpenReport) -> None:
        snapshot = crash.snapshot
        found = await self._off_loop(
            lambda: self._evidence.ips(snapshot.pid, snapshot.epoch - snapshot.uptime)
        )
        if found is not None and crash.report is not None:
            crash.report = msgspec.structs.replace(crash.report, ips=found)
            self._rewrite(crash)

    def _rewrite(self, crash: _OpenReport) -> None:
        crash.is_stale = True
        if crash.report is not None and not crash.is_writing:
            crash.is_writing = True
            self._spawn(self._write(crash))

    async def _write(self, crash: _OpenReport) -> None:
        """Write until the file has all that is known; what comes meanwhile shares a write."""
        try:
            while crash.is_stale and crash.report is not None:
                crash.is_stale = False
                complete = msgspec.structs.replace(
                    crash.report,
                    requests=list(crash.requests.values()),
                    recovery=list(crash.recovery),
                )
                await self._off_loop(partial(self._store.write, complete))
        except OSError as error:
            log.error("the crash report %s is lost: %s", crash.snapshot.id, error.strerror)
        finally:
            crash.is_writing = False

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(_guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self._thread.run(work)

    async def _read(self, work: Callable[[], T]) -> T:
        """For somebody who asks: reports that are to be written have more room to wait."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                return await self._thread.run(work, limit=READERS_MAX)
        except TimeoutError:
            why = f"the disk has not answered for {_READ_SECONDS:g} s"
        except Refused as error:
            why = str(error)
        raise QueueFull(
            f"Crash reports cannot be read at the moment: {why}. Try again shortly.",
            retry_after=_READ_SECONDS,
        )


async def _guarded(work: Coroutine[None, None, None]) -> None:
    """A report that a bug spoils ends nothing else."""
    try:
        await work
    except Refused as error:
        log.error("a crash report is lost, or incomplete: %s", error)
    except Exception:
        log.exception("a crash report is incomplete")
