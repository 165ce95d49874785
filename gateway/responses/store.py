"""The responses that may be gone on with: in memory alone, bounded, for a while. No I/O."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor.errors import NotFound, PreviousResponseNotFound

BYTES_MAX = 64 * 2**20
SECONDS = 3600.0
"""From the last use: a conversation that goes on is kept whole."""
_OVERHEAD = 1024
"""Bytes of a response beside its texts, about; `_ITEM_OVERHEAD` of each item."""
_ITEM_OVERHEAD = 256

_ID = re.compile(r"resp_[A-Za-z0-9]{1,64}")

_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Kept:
    """A response. Its texts are kept as JSON: a tree of objects takes several times as much."""

    owner: str
    response: bytes
    input: bytes
    previous: str | None
    item_ids: tuple[str, ...]
    size: int
    used: float
    """The clock's time."""


class ResponseStore:
    """At most `bytes_max` of responses, each until it has not been used for `seconds`; those that
    were used longest ago make room. `now` is in seconds, of a clock that only goes forward."""

    def __init__(
        self, now: Callable[[], float], bytes_max: int = BYTES_MAX, seconds: float = SECONDS
    ) -> None:
        self._now = now
        self._bytes_max = bytes_max
        self._seconds = seconds
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        """By id; those used longest ago first."""
        self._items: dict[tuple[str, str], str] = {}
        """(owner, item id) → response id. Clients choose ids of their own, and may choose alike."""
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """What is held, by the store's own measure."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, owner: str) -> OwnResponses:
        """The responses of one client: nobody else's can be read through it."""
        return OwnResponses(self, owner)

    def keep(self, owner: str, response: dict[str, Any], items: Sequence[Any]) -> None:
        """Keep `response` with the `items` of its own input, which have ids. What is larger than
        the whole store is not kept."""
        self._drop_old()
        output = response["output"]
        ids = tuple(each["id"] for each in (*items, *output) if isinstance(each.get("id"), str))
        encoded, given = _json(response), _json(items)
        size = len(encoded) + len(given) + _OVERHEAD + _ITEM_OVERHEAD * len(ids)
        size += sum(map(len, ids))  # held once more, and a client's may be of any length
        if size > self._bytes_max:
            return
        while self._bytes + size > self._bytes_max:
            self._drop(next(iter(self._kept)))
        id, previous = response["id"], response["previous_response_id"]
        self._kept[id] = _Kept(owner, encoded, given, previous, ids, size, self._now())
        self._bytes += size
        self._items.update(dict.fromkeys(((owner, each) for each in ids), id))

    def find(self, owner: str, response_id: str) -> _Kept | None:
        """The response, which counts as used."""
        self._drop_old()
        kept = self._kept.get(response_id)
        if kept is None or kept.owner != owner:
            return None
        kept.used = self._now()
        self._kept.move_to_end(response_id)
        return kept

    def holder(self, owner: str, item_id: str) -> _Kept | None:
        """The response that the item is of."""
        response_id = self._items.get((owner, item_id))
        return None if response_id is None else self.find(owner, response_id)

    def forget(self, owner: str, response_id: str) -> bool:
        """Whether it was there."""
        if self.find(owner, response_id) is None:
            return False
        self._drop(response_id)
        return True

    def _drop_old(self) -> None:
        due = self._now() - self._seconds
        while self._kept:
            oldest = next(iter(self._kept))
            if self._kept[oldest].used > due:
                return
            self._drop(oldest)

    def _drop(self, response_id: str) -> None:
        kept = self._kept.pop(response_id)
        self._bytes -= kept.size
        for each in kept.item_ids:
            if self._items.get((kept.owner, each)) == response_id:
                del self._items[kept.owner, each]


@dataclass(frozen=True, slots=True)
class OwnResponses:
    """What one client may know of earlier responses."""

    _store: ResponseStore
    _owner: str

    def keep(self, response: dict[str, Any], items: Sequence[Any]) -> None:
        self._store.keep(self._owner, response, items)

    def conversation(self, response_id: str) -> list[Any]:
        """All items before and of the response. Raises PreviousResponseNotFound, also where an
        earlier part of the conversation is gone."""
        parts: list[list[Any]] = []
        wanted: str | None = response_id
        while wanted is not None:
            # The last one first: should room be needed, it is the first that goes, and the
            # others can still be gone on with.
            kept = self._store.find(self._owner, wanted)
            if kept is None:
                raise PreviousResponseNotFound(
                    f"Previous response{_named(response_id)} not found.",
                    param="previous_response_id",
                )
            parts.append(_decoded(kept.input) + _output(kept))
            wanted = kept.previous
        return [item for part in reversed(parts) for item in part]

    def items(self, item_ids: Iterable[str]) -> dict[str, Any]:
        """Those of the items that are there, by id."""
        wanted: dict[int, tuple[_Kept, set[str]]] = {}
        for item_id in item_ids:
            if (kept := self._store.holder(self._owner, item_id)) is not None:
                wanted.setdefault(id(kept), (kept, set()))[1].add(item_id)
        found: dict[str, Any] = {}
        for kept, ids in wanted.values():  # each is decoded once: it may be large
            for each in _output(kept) + _decoded(kept.input):
                if each.get("id") in ids:
                    found.setdefault(each["id"], each)
        return found

    def response(self, response_id: str) -> bytes:
        """Its JSON. Raises NotFound."""
        return self._found(response_id).response

    def input_items(self, response_id: str) -> list[Any]:
        """Of its own input. Raises NotFound."""
        return _decoded(self._found(response_id).input)

    def forget(self, response_id: str) -> None:
        """Raises NotFound."""
        if not self._store.forget(self._owner, response_id):
            raise _not_found(response_id)

    def _found(self, response_id: str) -> _Kept:
        kept = self._store.find(self._owner, response_id)
        if kept is None:
            raise _not_found(response_id)
        return kept


class _Output(msgspec.Struct):
    output: list[Any]


def _output(kept: _Kept) -> list[Any]:
    return msgspec.json.decode(kept.response, type=_Output).output


def _named(response_id: str) -> str:
    """An id is repeated only where it can be one: a client may send any text."""
    return f" with id '{response_id}'" if _ID.fullmatch(response_id) else ""


def _not_found(response_id: str) -> NotFound:
    return NotFound(
        f"Response{_named(response_id)} not found. Responses are kept in the server's memory for "
        "an hour, unless `store` is false."
    )


def _decoded(items: bytes) -> list[Any]:
    decoded: list[Any] = msgspec.json.decode(items)
    return decoded
