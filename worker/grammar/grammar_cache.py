"""Compiled grammars, bounded by the bytes that they take, with those that outputs follow.

llguidance does not tell what a grammar takes. It was measured, for schemas of 5 to 200 members of
five kinds and vocabularies of 300 and 250,000 tokens: 150 to 210 KB, and 55 to 130 bytes for each
character of the rules; what its lexer learns while outputs follow it adds up to 220 KB.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
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

    @property
    def size(self) -> int:
        """What those that live take together, and those that are being made."""
        with self._changing:
            return self._making + sum(self._alive.values())

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: bytes) -> CompiledGrammar | None:
        """The grammar, which counts as used now."""
        with self._changing:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def add(
        self, key: bytes, size: int, make: Callable[[], CompiledGrammar], *, must: bool = False
    ) -> CompiledGrammar:
        """A grammar that takes `size` bytes, made outside of the lock; it is kept if it has no
        fault. Idle ones make room. Raises QueueFull when those in use leave none, unless it `must`
        be, and whatever `make` raises."""
        with self._changing:
            self._make_room(size, must=must)
            self._making += size
        try:
            made = make()
        finally:
            with self._changing:
                self._making -= size
        if not made.error and not made.is_empty:
            with self._changing:
                self._alive[ref(made, self._gone)] = size
                self._kept[key] = made
                self._kept.move_to_end(key)
        return made

    def _make_room(self, size: int, *, must: bool) -> None:
        for key in list(self._kept):
            if self.size + size <= self.most:
                return
            if not self._kept[key].users:
                del self._kept[key]  # with the last reference, so that its size is gone as well
        if self.size + size > self.most and not must:
            raise QueueFull(
                f"The grammars of the answers that are being written take {self.size >> 20} of "
                f"{self.most >> 20} MB, and this one does not fit beside them. Try again shortly.",
                retry_after=_RETRY_SECONDS,
            )

    def _gone(self, grammar: ref[CompiledGrammar]) -> None:
        with self._changing:
            size = self._alive.pop(grammar, 0)
        self._freed(size)
