"""gateway.responses.store: what is kept, for whom, how long and how much."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.responses.store import OwnResponses, ResponseStore
from supervisor.errors import NotFound, PreviousResponseNotFound

BYTES = 100_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> ResponseStore:
    return ResponseStore(clock, BYTES, 3600)


def response(number: int, previous: int | None = None, text: str = "yes") -> dict[str, Any]:
    return {
        "id": f"resp_{number}",
        "previous_response_id": None if previous is None else f"resp_{previous}",
        "output": [{"type": "message", "id": f"msg_{number}", "text": text}],
    }


def item(number: int) -> dict[str, Any]:
    return {"type": "message", "id": f"in_{number}"}


def keep(own: OwnResponses, number: int, previous: int | None = None, text: str = "yes") -> None:
    own.keep(response(number, previous, text), [item(number)])


def ids(items: list[Any]) -> list[str]:
    return [each["id"] for each in items]


def test_a_conversation_is_all_that_came_before(store: ResponseStore) -> None:
    own = store.of("")
    keep(own, 1)
    keep(own, 2, previous=1)
    keep(own, 3, previous=1)
    assert ids(own.conversation("resp_2")) == ["in_1", "msg_1", "in_2", "msg_2"]
    assert ids(own.conversation("resp_3")) == ["in_1", "msg_1", "in_3", "msg_3"]
    assert json.loads(own.response("resp_2")) == response(2, 1)
    assert own.input_items("resp_2") == [item(2)]
    assert own.items(["msg_1", "in_3", "in_1"]) == {
        "msg_1": response(1)["output"][0],
        "in_3": item(3),
        "in_1": item(1),
    }


def test_what_is_not_there(store: ResponseStore) -> None:
    own = store.of("")
    with pytest.raises(PreviousResponseNotFound) as caught:
        own.conversation("resp_9")
    assert caught.value.message == "Previous response with id 'resp_9' not found."
    assert caught.value.param == "previous_response_id"
    with pytest.raises(PreviousResponseNotFound) as caught:
        own.conversation("what the client said")
    assert "client" not in caught.value.message
    for ask in (own.response, own.input_items, own.forget):
        with pytest.raises(NotFound):
            ask("resp_9")
    assert own.items(["msg_9"]) == {}


def test_another_key_reads_nothing(store: ResponseStore) -> None:
    keep(store.of("a"), 1)
    other = store.of("b")
    with pytest.raises(PreviousResponseNotFound):
        other.conversation("resp_1")
    for ask in (other.response, other.input_items, other.forget):
        with pytest.raises(NotFound):
            ask("resp_1")
    assert other.items(["msg_1"]) == {}
    assert "msg_1" in store.of("a").items(["msg_1"])


def test_another_key_takes_no_ids(store: ResponseStore) -> None:
    keep(store.of("a"), 1)
    store.of("b").keep(response(2), [item(1), {"type": "message", "id": "msg_1"}])
    assert store.of("a").items(["in_1", "msg_1"]).keys() == {"in_1", "msg_1"}
    store.of("b").forget("resp_2")
    assert store.of("a").items(["in_1", "msg_1"]).keys() == {"in_1", "msg_1"}


def test_what_is_forgotten_is_gone_with_its_items(store: ResponseStore) -> None:
    own = store.of("")
    keep(own, 1)
    keep(own, 2, previous=1)
    own.forget("resp_1")
    assert own.items(["msg_1"]) == {}
    with pytest.raises(PreviousResponseNotFound):
        own.conversation("resp_2")
    own.forget("resp_2")
    assert (len(store), store.bytes) == (0, 0)


def test_a_conversation_that_goes_on_is_kept_whole(store: ResponseStore, clock: Clock) -> None:
    own = store.of("")
    keep(own, 1)
    keep(own, 9)
    for number in range(2, 8):
        clock.now += 3000
        own.conversation(f"resp_{number - 1}")
        keep(own, number, previous=number - 1)
    assert len(own.conversation("resp_7")) == 14
    with pytest.raises(NotFound):
        own.response("resp_9")
    clock.now += 3600
    with pytest.raises(PreviousResponseNotFound):
        own.conversation("resp_7")
    assert (len(store), store.bytes) == (0, 0)


def test_what_was_used_longest_ago_makes_room(store: ResponseStore) -> None:
    own = store.of("")
    text = "x" * (BYTES // 4)
    for number in (1, 2, 3):
        keep(own, number, text=text)
    own.response("resp_1")
    keep(own, 4, text=text)
    assert store.bytes <= BYTES
    with pytest.raises(NotFound):
        own.response("resp_2")
    for there in ("resp_1", "resp_3", "resp_4"):
        assert own.response(there)


def test_what_is_larger_than_all_is_not_kept(store: ResponseStore) -> None:
    own = store.of("")
    keep(own, 1)
    keep(own, 2, text="x" * BYTES)
    assert own.response("resp_1")
    with pytest.raises(NotFound):
        own.response("resp_2")


def test_ids_count_as_well(store: ResponseStore) -> None:
    own = store.of("")
    own.keep(response(1), [{"type": "message", "id": "x" * (BYTES * 2 // 3)}])
    assert (len(store), store.bytes) == (0, 0)


def test_small_ones_count_as_well(store: ResponseStore) -> None:
    own = store.of("")
    for number in range(1000):
        keep(own, number)
    assert store.bytes <= BYTES
    assert len(store) < BYTES / 1000


def test_an_item_is_its_last_holders(store: ResponseStore) -> None:
    own = store.of("")
    own.keep(response(1), [item(5)])
    own.keep(response(2), [item(5)])
    own.forget("resp_1")
    assert own.items(["in_5"]) == {"in_5": item(5)}
