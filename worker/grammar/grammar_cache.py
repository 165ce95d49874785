"""Compiled grammars, bounded by the bytes that they take, with those that outputs follow.

llguidance does not tell what a grammar takes. It was measured, for schemas of 5 to 200 members of
five kinds and vocabularies of 300 and 250,000 tokens: 150 to 210 KB, and 55 to 130 bytes for each
character of the rules; what its lexer learns while outputs follow it adds up to 220 KB.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final
from weakref import ref

from supervisor.errors import QueueFull
from supervisor.wire.frames import GRAMMAR_BYTES
from worker.grammar.matcher import CompiledGrammar

FIXED: Final = 400_000
PER_CHARACTER: Final = 130
"""Bytes that a grammar takes: upper ends of what was measured."""
_RETRY_SECONDS = 2.0


def bytes_of(rules: str) -> int:
    """About what a grammar of these rules takes."""
    return FIXED + PER_CHARACTER * len(rules)


class Claim:
    """What one request takes of a cache, and its place among those who wait for room."""

    def __init__(self, cache: GrammarCache) -> None:
        self._cache = cache
        self.wanted: Mapping[bytes, int] = {}
        """Sizes by key: what the request has and what it has asked for last, which it needs at the
        same time."""
        self.call: Callable[[], object] | None = None
        """Has not been called yet."""

    def wait(self, call: Callable[[], object]) -> None:
        """Get in line, or keep the place there. `call` is called once, on any thread and perhaps
        at once, when it is this one's turn and there is room for what is wanted."""
        self._cache.line_up(self, call)

    def leave(self) -> None:
        """Wait no longer: the request has what it wants, or is over. May be called again."""
        self._cache.leave(self)


class GrammarCache:
    """Grammars by key, those that were used last. All that live count, also such as are in no cache
    any more but whose outputs still grow. For any thread."""

    def __init__(
        self, most: int = GRAMMAR_BYTES, freed: Callable[[int], object] = lambda size: None
    ) -> None:
        """At most so many bytes. `freed` is told of those that are not held any longer."""
        self.most = most
        self._freed = freed
        self._changing = threading.RLock()  # the collector may call while it is held
        self._kept: OrderedDict[bytes, CompiledGrammar] = OrderedDict()
        self._alive: dict[ref[CompiledGrammar], int] = {}
        self._making = 0
        self._line: list[Claim] = []
        """Who waits for room, longest first."""

    @property
    def size(self) -> int:
        """What those that live take together, and those that are being made."""
        with self._changing:
            return self._making + sum(self._alive.values())

    def __len__(self) -> int:
        return len(self._kept)

    def grammar(
        self,
        key: bytes,
        size: int,
        make: Callable[[], CompiledGrammar],
        claim: Claim | None = None,
        *,
        must: bool = False,
    ) -> CompiledGrammar:
        """The grammar of that key, or a new one that takes `size` bytes, made outside of the lock;
        it is kept if it has no fault. Idle ones make room. Raises QueueFull when those in use leave
        none or others than the `claim` wait for it, unless it `must` be, and whatever `make`
        raises."""
        with self._changing:
            found = self._kept.get(key)
            overtakes = not must and bool(self._line) and self._line[0] is not claim
            if found is None or (overtakes and not found.users):
                if overtakes:
                    raise self._full()
                self._make_room(size, must=must)
                self._making += size
            else:
                self._kept.move_to_end(key)
                return found
        made = None
        try:
            made = make()
        finally:
            with self._changing:
                self._making -= size
                if made is not None and not made.error and not made.is_empty:
                    self._alive[ref(made, self._gone)] = size
                    made.users.none_left = self._look
                    self._kept[key] = made
                    self._kept.move_to_end(key)
                self._look()
        return made

    def line_up(self, claim: Claim, call: Callable[[], object]) -> None:
        """See `Claim.wait`."""
        with self._changing:
            claim.call = call
            if claim not in self._line:
                self._line.append(claim)
            self._look()

    def leave(self, claim: Claim) -> None:
        """See `Claim.leave`."""
        with self._changing:
            claim.call = None
            if claim in self._line:
                self._line.remove(claim)
            self._look()

    def _look(self) -> None:
        """Call the first in line if there is room for it."""
        with self._changing:
            if not self._line or (call := self._line[0].call) is None:
                return
            wanted = self._line[0].wanted
            if self._in_use(wanted) + sum(wanted.values()) <= self.most:
                self._line[0].call = None
                call()

    def _in_use(self, wanted: Mapping[bytes, int]) -> int:
        """What can't make room for `wanted`, and is not wanted itself."""
        free = (each for key, each in self._kept.items() if key in wanted or not each.users)
        return self.size - sum(self._alive[ref(each)] for each in free)

    def _make_room(self, size: int, *, must: bool) -> None:
        for key in list(self._kept):
            if self.size + size <= self.most:
                return
            if not self._kept[key].users:
                del self._kept[key]  # with the last reference, so that its size is gone as well
        if self.size + size > self.most and not must:
            raise self._full()

    def _full(self) -> QueueFull:
        return QueueFull(
            f"The grammars of the answers that are being written take {self.size >> 20} of "
            f"{self.most >> 20} MB, and this one does not fit beside them. Try again shortly.",
            retry_after=_RETRY_SECONDS,
        )

    def _gone(self, grammar: ref[CompiledGrammar]) -> None:
        with self._changing:
            size = self._alive.pop(grammar, 0)
            self._look()
        self._freed(size)
