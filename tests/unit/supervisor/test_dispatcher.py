"""supervisor.dispatcher: the order of events and effects, and the end after a bug."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor import dispatcher
from supervisor.dispatcher import Dispatcher
from supervisor.scheduler.effects import Effect, LogLine, Spawn
from supervisor.scheduler.model import Spec
from supervisor.scheduler.pool import Pool
from tests.helpers.serving import DEADLINE


class World:
    """A dispatcher around a real pool of the model `m`; the feed and the fleet write down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exits: list[int] = []
        self.exited = threading.Event()
        monkeypatch.setattr(os, "_exit", self._exit)
        self.pool = Pool([Spec("m")])
        self.said: list[str] = []
        self.spawned: Callable[[], None] = lambda: None
        feed = SimpleNamespace(
            tell=lambda event, **details: self.said.append(f"{event} {details['text']}"),
            tell_states=lambda _: self.said.append("states"),
        )
        self.dispatcher = Dispatcher(
            self.pool,
            cast(Any, None),
            cast(Any, None),
            cast(Any, None),
            cast(Any, feed),
            cast(Any, None),
        )
        fleet = SimpleNamespace(spawn=lambda *_: self.spawned())
        self.dispatcher.connect(cast(Any, fleet), cast(Any, None))

    def _exit(self, status: int) -> None:
        self.exits.append(status)
        self.exited.set()

    def event(self) -> list[Effect]:
        return [LogLine("before"), Spawn("m", 1), LogLine("after")]

    def nested(self) -> list[Effect]:
        self.said.append("nested")
        return [LogLine("of the nested event")]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def run(scenario: Callable[[], None]) -> None:
    async def on_the_loop() -> None:
        scenario()

    asyncio.run(on_the_loop())


def test_an_event_that_an_effect_causes_comes_after_all_of_the_first_one(world: World) -> None:
    world.spawned = lambda: world.dispatcher.handle(world.nested)
    run(lambda: world.dispatcher.handle(world.event))
    assert world.said == [
        *("decision before", "decision after", "states"),
        *("nested", "decision of the nested event", "states"),
    ]


def test_after_a_failure_no_effect_is_carried_out_and_no_event_handled(world: World) -> None:
    def fail() -> None:
        world.dispatcher.handle(world.nested)
        world.dispatcher.fail()

    def scenario() -> None:
        world.spawned = fail
        world.dispatcher.handle(world.event)
        world.dispatcher.handle(world.nested)

    run(scenario)
    assert world.said == ["decision before"]


def test_after_a_bug_the_process_ends_although_the_loop_is_blocked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_EXIT_SECONDS", 0.05)

    def buggy() -> list[Effect]:
        raise RuntimeError("planted")

    def scenario() -> None:
        world.dispatcher.handle(buggy)
        assert world.dispatcher.failed.is_set()
        assert world.exited.wait(DEADLINE)  # in which the loop does not turn

    run(scenario)
    assert world.exits == [1]
