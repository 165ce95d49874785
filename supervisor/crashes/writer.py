"""Crash reports on their way to the disk, and those that are there.

One thread of their own reads and writes them, in order. What becomes known of a crash later, such
as what became of its requests, is added to its report while it is one of the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from supervisor.crashes import store
from supervisor.crashes.os_evidence import Evidence
from supervisor.crashes.redaction import Cleaner
from supervisor.crashes.snapshot import Snapshot, compose
from supervisor.errors import NotFound
from supervisor.wire.crash import CrashBrief, CrashList, CrashReport, InFlight, Outcome

log = logging.getLogger("bulkhead.supervisor")

OPEN_MAX = 32
"""Crashes to which something can be added."""
_IPS_SECONDS = 20.0
"""macOS writes its reports late."""
_CLOSE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Filed:
    """A crash and all that is known of it. `report` is None until the process has ended."""

    scene: Snapshot
    requests: dict[str, InFlight]
    recovery: list[Outcome] = field(default_factory=list)
    report: CrashReport | None = None
    stale: bool = True
    """The file does not have all of it."""
    writing: bool = False


class Files:
    """The reports of one state directory. Called on the event loop."""

    def __init__(self, folder: Path, cleaner: Cleaner, evidence: Evidence, version: str) -> None:
        self._store = store.Store(folder)
        self._cleaner = cleaner
        self._evidence = evidence
        self._version = version
        self._filed: OrderedDict[str, _Filed] = OrderedDict()
        self._last: dict[str, CrashBrief] = {}
        self._thread = ThreadPoolExecutor(1, "crashes")
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, scene: Snapshot) -> None:
        """A process dies: what becomes known of it from now on is kept."""
        inside = scene.requests[: store.REQUESTS_MAX]
        requests = {request_id: InFlight(request_id=request_id) for request_id in inside}
        self._filed[scene.id] = _Filed(scene, requests)
        while len(self._filed) > OPEN_MAX:
            self._filed.popitem(last=False)

    def position(
        self, crash: str, request_id: str, prompt_tokens: int | None, emitted_tokens: int | None
    ) -> None:
        """How far a request was when its worker died. Nothing for a crash of long ago."""
        filed = self._filed.get(crash)
        if filed is not None and request_id in filed.requests:
            filed.requests[request_id] = InFlight(
                request_id=request_id, prompt_tokens=prompt_tokens, emitted_tokens=emitted_tokens
            )
            self._rewrite(filed)

    def outcome(self, crash: str, request_id: str, outcome: str) -> None:
        """What became of a request that was inside. Nothing for a crash of long ago."""
        filed = self._filed.get(crash)
        if filed is not None and len(filed.recovery) < store.REQUESTS_MAX:
            filed.recovery.append(Outcome(request_id=request_id, outcome=outcome))
            self._rewrite(filed)

    def write(self, scene: Snapshot, how: str) -> None:
        """The process has ended: report it."""
        if (filed := self._filed.get(scene.id)) is not None:
            self._spawn(self._compose(filed, how))

    def last(self, model: str) -> CrashBrief | None:
        """The model's last crash, in this run or an earlier one."""
        return self._last.get(model)

    async def recall(self) -> None:
        """Learn from the reports that are there which crash was each model's last."""
        for brief in await self._off_loop(self._store.listing):
            if brief.model is not None:
                self._last.setdefault(brief.model, brief)

    async def told(self, name: str) -> bytes:
        """JSON: the report with that id, or the list of all for "". Raises NotFound."""
        if not name:
            listing = await self._off_loop(self._store.listing)
            return msgspec.json.encode(CrashList(crashes=listing))
        try:
            report = await self._off_loop(lambda: self._store.read(name))
        except store.Unreadable as error:
            raise NotFound(f"{error}.") from None
        if report is None:
            raise NotFound("There is no such crash report. GET /admin/crashes lists them.")
        return msgspec.json.encode(report)

    async def settled(self) -> None:
        """Return when all reports are written."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Return when all reports are written, or after some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.settled()
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ── on the thread, and back ──────────────────────────────────────────────────────────────────

    async def _compose(self, filed: _Filed, how: str) -> None:
        scene = filed.scene
        report = await self._off_loop(
            lambda: compose(scene, how, self._cleaner, self._evidence, self._version)
        )
        filed.report = report
        log.error(
            "crash report %s: %s died (%s: %s, %s). %s",
            report.id,
            scene.name,
            how,
            report.summary,
            report.cause,
            report.advice,
        )
        self._rewrite(filed)
        if report.model is not None:
            self._last[report.model] = report
        if report.ips is None and self._evidence.late_reports:
            look = asyncio.get_running_loop().call_later
            look(_IPS_SECONDS, lambda: self._spawn(self._look_for_ips(filed)))

    async def _look_for_ips(self, filed: _Filed) -> None:
        scene = filed.scene
        found = await self._off_loop(
            lambda: self._evidence.ips(scene.pid, scene.epoch - scene.uptime)
        )
        if found is not None and filed.report is not None:
            filed.report = msgspec.structs.replace(filed.report, ips=found)
            self._rewrite(filed)

    def _rewrite(self, filed: _Filed) -> None:
        filed.stale = True
        if filed.report is not None and not filed.writing:
            filed.writing = True
            self._spawn(self._write(filed))

    async def _write(self, filed: _Filed) -> None:
        """Write until the file has all; what comes meanwhile shares the next write."""
        try:
            while filed.stale and filed.report is not None:
                filed.stale = False
                whole = msgspec.structs.replace(
                    filed.report,
                    requests=list(filed.requests.values()),
                    recovery=list(filed.recovery),
                )
                await self._off_loop(partial(self._store.write, whole))
        except OSError as error:
            log.error("the crash report %s is lost: %s", filed.scene.id, error.strerror)
        finally:
            filed.writing = False

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
