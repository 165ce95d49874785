"""A worker's side of the prefill gate: when a long prompt may be worked on.

Where several workers share one GPU, two heavy prefills at a time slow each other and everybody's
decoding down. So a worker whose load says `prefill_gate` asks for its turn, and leaves long prompts
alone without it. Short ones, decoding, and embeddings never wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from supervisor.wire.frames import WantsPrefill

HEAVY_TOKENS = 2048
"""Tokens still to be prefilled from which a prompt is heavy: its last ones go without a turn."""


class PrefillTurns:
    """What the worker may prefill, and what it has said of that. With `gated` False everything."""

    def __init__(self, gated: bool) -> None:
        self.gated = gated
        self._asked = False
        """Whether a turn is wanted, or had: what was said last."""
        self._allowed = False
        self._stops = False
        """Whether the turn was taken back, and that is not confirmed yet."""

    def may_go_on(self, tokens_left: int) -> bool:
        """Whether a prompt with so many tokens left is worked on in the next slice."""
        return not self.gated or self._allowed or tokens_left < HEAVY_TOKENS

    def allow(self, allowed: bool) -> None:
        """`MayPrefill`. What crosses with the word that no turn is wanted any more means
        nothing."""
        self._stops = self._asked and self._allowed and not allowed
        self._allowed = self._asked and allowed

    def news(self, tokens_left: Iterable[int]) -> list[WantsPrefill]:
        """What is to be said after a slice or a command: `tokens_left` are those of every prompt
        that could be worked on. A turn that is not there yet can't be refused: it is given back
        when it comes."""
        if not self.gated:
            return []
        wanted = any(left >= HEAVY_TOKENS for left in tokens_left)
        if self._stops or (self._allowed and not wanted):
            self._stops = self._allowed = False
            self._asked = wanted
            return [WantsPrefill(wanted)]
        if wanted and not self._asked:
            self._asked = True
            return [WantsPrefill(True)]
        return []
