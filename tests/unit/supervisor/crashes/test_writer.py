"""supervisor.crashes.writer: when a report is written, and what is added to it later."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.crashes import writer
from supervisor.crashes.redaction import Redactor
from supervisor.crashes.snapshot import Snapshot
from supervisor.crashes.store import Store
from supervisor.crashes.writer import ReportWriter
from supervisor.errors import NotFound, QueueFull
from tests.helpers.crashes import PlannedEvidence, snapshot
from tests.helpers.serving import DEADLINE


class Desk:
    """A writer, and what the system knows."""

    def __init__(self, folder: Path) -> None:
        self.evidence = PlannedEvidence()
        self.writer = ReportWriter(folder / "crashes", Redactor(), self.evidence, "1.2.3")
        self._stderr = folder / "absent"

    def dies(self, how: str = "SIGABRT", **more: Any) -> Snapshot:
        """A worker begins to die, and has died of `how`, where that is not empty."""
        taken = snapshot(self._stderr, **more)
        self.writer.begin(taken)
        if how:
            self.writer.finish(taken, how)
        return taken

    async def report(self, of: Snapshot) -> Any:
        await self.writer.flush()
        return json.loads(await self.writer.read_json(of.id))

    async def listing(self) -> Any:
        await self.writer.flush()
        return json.loads(await self.writer.read_json(""))["crashes"]


def play(folder: Path, story: Callable[[Desk], Awaitable[None]]) -> None:
    async def run() -> None:
        desk = Desk(folder)
        try:
            await story(desk)
        finally:
            await desk.writer.close()

    asyncio.run(run())


def test_nothing_is_written_before_the_process_has_ended(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        death = desk.dies("")
        desk.writer.add_position(death.id, "req-1", 100, 7)
        assert await desk.listing() == []
        desk.writer.finish(death, "SIGABRT")
        assert (await desk.report(death))["requests"] == [
            {"request_id": "req-1", "prompt_tokens": 100, "emitted_tokens": 7},
            {"request_id": "req-2", "prompt_tokens": None, "emitted_tokens": None},
        ]

    play(tmp_path, story)


def test_what_becomes_known_later_is_added(tmp_path: Path) -> None:
    async def story(desk: Desk) -> None:
        death = desk.dies()
        assert (await desk.report(death))["recovery"] == []
        desk.writer.add_position(death.id, "req-2", 50, None)
        desk.writer.add_position(death.id, "another", 1, 1)
        desk.writer.add_outcome(death.id, "req-1", "its client left")
        desk.writer.add_outcome("20270115T080000Z-000000", "req-1", "its client left")
        report = await desk.report(death)
        assert [each["prompt_tokens"] for each in report["requests"]] == [None, 50]
        assert report["recovery"] == [{"request_id": "req-1", "outcome": "its client left"}]

    play(tmp_path, story)


def test_only_the_last_crashes_are_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "OPEN_MAX", 2)

    async def story(desk: Desk) -> None:
        deaths = []
        for second in range(3):
            deaths.append(desk.dies(second=second))
            await desk.writer.flush()
        for death in deaths:
            desk.writer.add_outcome(death.id, "req-1", "its client left")
        assert [len((await desk.report(death))["recovery"]) for death in deaths] == [0, 1, 1]
        assert [each["id"] for each in await desk.listing()] == [d.id for d in reversed(deaths)]

    play(tmp_path, story)


def test_macos_report_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IPS_SECONDS", 0.0)

    async def story(desk: Desk) -> None:
        desk.evidence.reports = [None, "/Library/x.ips"]
        death = desk.dies()
        async with asyncio.timeout(DEADLINE):
            while (await desk.report(death))["ips"] != "/Library/x.ips":
                continue

    play(tmp_path, story)


def test_elsewhere_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_IPS_SECONDS", 0.0)

    async def story(desk: Desk) -> None:
        desk.evidence.late_reports = False
        desk.evidence.reports = [None, "/Library/x.ips"]
        await desk.report(desk.dies())
        await asyncio.sleep(0)  # a timer that is due would have spawned by now
        await desk.writer.flush()
        assert desk.evidence.reports == ["/Library/x.ips"]

    play(tmp_path, story)


def test_a_full_disk_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "crashes").touch()  # a file: nothing can be written below it

    async def story(desk: Desk) -> None:
        death = desk.dies()
        await desk.writer.flush()
        assert f"crash report {death.id} is lost" in caplog.text
        desk.writer.add_outcome(death.id, "req-1", "its client left")
        assert desk.writer.last("m") is not None
        with pytest.raises(NotFound):
            await desk.report(death)

    play(tmp_path, story)


def test_a_later_run_knows_the_last_crash_of_each_model(tmp_path: Path) -> None:
    deaths: list[Snapshot] = []

    async def first(desk: Desk) -> None:
        for second in range(2):
            deaths.append(desk.dies(second=second))
            await desk.writer.flush()
        desk.dies("SIGSEGV", second=2, process="gateway", model=None, generation=None)

    async def second(desk: Desk) -> None:
        assert desk.writer.last("m") is None
        await desk.writer.load_last()
        last = desk.writer.last("m")
        assert last is not None
        assert last.id == deaths[1].id
        assert [each["process"] for each in await desk.listing()] == ["gateway", "worker", "worker"]

    play(tmp_path, first)
    play(tmp_path, second)


def test_who_asks_while_the_disk_hangs_is_told_and_reports_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    listing = Store.listing

    def hang(store: Store) -> Any:
        assert answers.wait(DEADLINE)
        return listing(store)

    monkeypatch.setattr(Store, "listing", hang)
    monkeypatch.setattr(writer, "_READ_SECONDS", 0.0)

    async def story(desk: Desk) -> None:
        for _ in range(3 * writer.READERS_MAX):
            with pytest.raises(QueueFull) as refused:
                await desk.writer.read_json("")
        assert "too much waits" in refused.value.message
        assert refused.value.status == 503
        death = desk.dies()
        answers.set()
        await desk.writer.flush()
        monkeypatch.setattr(writer, "_READ_SECONDS", DEADLINE)
        assert (await desk.report(death))["id"] == death.id

    play(tmp_path, story)
