"""Deaths as the supervisor handles them: what is diagnosed when, and what becomes of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from supervisor.crashes.store import Store
from supervisor.wire import control_frames
from supervisor.wire.crash import CrashReport
from tests.helpers.crashes import METAL
from tests.helpers.fakes.supervised import Client, Supervised, supervised
from tests.helpers.serving import DEADLINE

Story = Callable[[Supervised], Awaitable[None]]
Play = Callable[[Story], list[CrashReport]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a story with a supervisor of the models `m` and `n`; the reports that it leaves, oldest
    first."""

    def run(story: Story) -> list[CrashReport]:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE):
                async with supervised(tmp_path, monkeypatch, "m", "n") as running:
                    await story(running)

        asyncio.run(limited())
        store = Store(tmp_path / "crashes")
        found = [store.read(brief.id) for brief in reversed(store.listing())]
        return [report for report in found if report is not None]

    return run


async def granted(running: Supervised, *requests: str) -> list[Client]:
    """Requests that have a place on `m`#1."""
    clients = [await running.request(request, "m") for request in requests]
    assert await running.fleet.next_spawn() == ("m", 1)
    await running.answered()
    running.fleet.ready("m", 1)
    for client in clients:
        assert isinstance(await client.receive(), control_frames.Granted)
    return clients


async def died(client: Client) -> control_frames.Died:
    frame = await client.receive()
    assert isinstance(frame, control_frames.Died)
    return frame


def outcomes(report: CrashReport) -> dict[str, str]:
    return {each.request_id: each.outcome for each in report.recovery}


def test_the_cause_is_known_before_the_scheduler_decides(play: Play) -> None:
    """Clients learn the cause and the report's id, and what they become is in the report."""

    async def story(running: Supervised) -> None:
        stays, leaves = await granted(running, "stays", "leaves")
        running.fleet.prints("m", 1, METAL)
        running.fleet.listener.worker_exited("m", 1, "SIGABRT")
        for client in (stays, leaves):
            told = await died(client)
            assert told.may_return
            assert "the GPU ran out of memory" in told.message
            messages.append(told.message)
        stays.send(control_frames.Return(7, 100))
        leaves.send(control_frames.Return(0, 100))
        await running.answered()
        await running.leave(leaves)
        assert await running.fleet.next_spawn() == ("m", 2)
        running.fleet.ready("m", 2)
        assert isinstance(await stays.receive(), control_frames.Granted)

    messages: list[str] = []
    (report,) = play(story)
    assert report.id in messages[0]
    assert (report.cause, report.phase, report.in_flight) == ("gpu_out_of_memory", "ready", 2)
    assert [(each.request_id, each.emitted_tokens) for each in report.requests] == [
        ("stays", 7),
        ("leaves", 0),
    ]
    assert outcomes(report) == {"stays": "goes on in m#2", "leaves": "its client left"}


def test_a_fatal_signal_and_the_exit_after_it_are_one_death(play: Play) -> None:
    """What the process has printed may reach us between the two."""

    async def story(running: Supervised) -> None:
        (client,) = await granted(running, "req-1")
        running.fleet.listener.worker_dying("m", 1, "SIGABRT")
        told = await died(client)
        assert "the GPU ran out of memory" not in told.message
        messages.append(told.message)
        running.fleet.prints("m", 1, METAL)
        running.fleet.listener.worker_exited("m", 1, "SIGABRT")

    messages: list[str] = []
    (report,) = play(story)
    assert report.id in messages[0]
    assert (report.cause, report.in_flight) == ("gpu_out_of_memory", 1)


def test_an_end_that_was_asked_for_is_no_crash(play: Play) -> None:
    async def story(running: Supervised) -> None:
        (client,) = await granted(running, "req-1")
        await running.leave(client)
        person = await running.connection()
        person.send(control_frames.Manage("req-2", "unload", "m", 1.0))
        assert isinstance(await person.receive(), control_frames.Managed)
        running.fleet.listener.worker_exited("m", 1, "exit status 0")
        waits = await running.request("req-3", "n")
        assert await running.fleet.next_spawn() == ("n", 1)
        running.fleet.listener.worker_unloadable("n", 1, "no such architecture")
        running.fleet.listener.worker_exited("n", 1, "exit status 0")
        assert isinstance(await waits.receive(), control_frames.Refused)

    assert play(story) == []


def test_those_who_are_told_of_a_stall_are_in_its_report(play: Play) -> None:
    """They are on their way back, and others wait, before the process has ended."""

    async def story(running: Supervised) -> None:
        back, still_away = await granted(running, "req-1", "req-2")
        running.fleet.listener.worker_stalled("m", 1, "no step for 60 s")
        for client in (back, still_away):
            await died(client)
        back.send(control_frames.Return(7, 100))
        await running.request("new", "m")
        await running.answered()
        running.fleet.listener.worker_exited("m", 1, "SIGKILL")

    (report,) = play(story)
    assert (report.cause, report.put_down) == ("stalled", "it stalled: no step for 60 s")
    assert [each.request_id for each in report.requests] == ["req-1", "req-2"]


def test_a_second_death_is_what_became_of_a_request_after_the_first(play: Play) -> None:
    async def story(running: Supervised) -> None:
        (client,) = await granted(running, "req-1")
        running.fleet.listener.worker_exited("m", 1, "SIGABRT")
        await died(client)
        client.send(control_frames.Return(7, 100))
        assert await running.fleet.next_spawn() == ("m", 2)
        running.fleet.listener.worker_exited("m", 2, "SIGSEGV")
        assert await running.fleet.next_spawn() == ("m", 3)

    first, second = sorted(play(story), key=lambda report: report.generation or 0)
    assert outcomes(first) == {"req-1": "was inside when worker m#2 died, too"}
    assert (second.phase, second.in_flight) == ("loading", 1)


def test_where_no_process_could_be_started_nothing_has_crashed(play: Play) -> None:
    async def story(running: Supervised) -> None:
        running.fleet.cannot_start("No space left on device")
        client = await running.request("req-1", "m")
        assert isinstance(await client.receive(), control_frames.Refused)

    assert play(story) == []
