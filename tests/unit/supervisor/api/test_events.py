"""supervisor.api.events: every change once, in order, to those who watch and keep up."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, cast

from supervisor.api.events import WATCHERS_MAX, EventFeed, Watcher
from supervisor.scheduler.model import Spec
from supervisor.scheduler.pool import Pool
from supervisor.wire.control_frames import Happened
from supervisor.wire.frames import Frame


class Stream:
    """What a feed uses of a connection."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.is_behind = False
        self.closed = False

    def send(self, frame: Frame) -> None:
        assert not self.closed
        self.sent.append(frame)

    def close(self) -> None:
        self.closed = True

    @property
    def events(self) -> list[dict[str, Any]]:
        """All but the first, which says that the watch has begun."""
        first, *told = [
            json.loads(frame.body) for frame in self.sent if isinstance(frame, Happened)
        ]
        assert first["event"] == "watching"
        return told


def watching(feed: EventFeed) -> Stream:
    stream = Stream()
    assert feed.join(cast(Watcher, stream))
    return stream


def test_a_model_s_life_is_told_once_and_in_order() -> None:
    feed, pool = EventFeed(lambda: 0.0), Pool([Spec("m"), Spec("n")])
    one, two = watching(feed), watching(feed)
    feed.tell_states(pool.models.values())
    assert one.events == []
    lease, _ = pool.acquire("r", "m", 60.0, 0.0)
    for _ in range(3):
        feed.tell_states(pool.models.values())
    pool.ready("m", 1, 1000, 4096, 1.0)
    feed.tell_states(pool.models.values())
    pool.fault(lease, "it spoke in tongues", 2.0)
    feed.tell_states(pool.models.values())
    told = [(event["event"], event["model"], event["state"]) for event in one.events]
    assert told == [("state", "m", state) for state in ("loading", "ready", "stopping")]
    assert [event["reason"] for event in one.events] == [None, None, "it spoke in tongues"]
    assert {event["generation"] for event in one.events} == {1}
    assert two.events == one.events


def test_an_event_has_its_time_with_zone() -> None:
    feed = EventFeed(lambda: 1_700_000_000.25)
    stream = watching(feed)
    feed.tell("decision", text="a is unloaded")
    (event,) = stream.events
    at = datetime.fromisoformat(event.pop("time"))
    assert at.tzinfo is not None
    assert at.timestamp() == 1_700_000_000.25
    assert event == {"event": "decision", "text": "a is unloaded"}


def test_who_comes_later_misses_what_was_and_who_leaves_hears_no_more() -> None:
    feed = EventFeed()
    early = watching(feed)
    feed.tell("decision", text="1")
    late = watching(feed)
    feed.leave(cast(Watcher, early))
    feed.leave(cast(Watcher, early))
    feed.tell("decision", text="2")
    assert [event["text"] for event in early.events] == ["1"]
    assert [event["text"] for event in late.events] == ["2"]
    assert not early.closed


def test_a_state_that_nobody_watched_is_not_told_later() -> None:
    feed, pool = EventFeed(), Pool([Spec("m")])
    pool.acquire("r", "m", 60.0, 0.0)
    feed.tell_states(pool.models.values())
    stream = watching(feed)
    feed.tell_states(pool.models.values())
    assert stream.events == []


def test_who_reads_too_slowly_is_let_go_and_nobody_else() -> None:
    feed = EventFeed()
    slow, quick = watching(feed), watching(feed)
    slow.is_behind = True
    feed.tell("decision", text="1")
    feed.tell("decision", text="2")
    assert (slow.closed, slow.events) == (True, [])
    assert len(quick.events) == 2


def test_there_is_room_for_so_many_watchers() -> None:
    feed = EventFeed()
    streams = [watching(feed) for _ in range(WATCHERS_MAX)]
    assert not feed.join(cast(Watcher, Stream()))
    feed.leave(cast(Watcher, streams[0]))
    watching(feed)


def test_the_end_lets_all_go() -> None:
    feed = EventFeed()
    streams = [watching(feed), watching(feed)]
    feed.close()
    feed.tell("decision", text="too late")
    assert [(stream.closed, stream.events) for stream in streams] == [(True, [])] * 2
