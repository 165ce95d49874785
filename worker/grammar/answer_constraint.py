"""The constraint of an answer that is one JSON value under a schema, or calls in its place."""

from __future__ import annotations

import llguidance

from supervisor.errors import BulkheadError
from worker.grammar.call_constraint import CallConstraint
from worker.grammar.matcher import DEAD_END, GrammarMatcher, incomplete_answer
from worker.grammar.vocabulary import Mask, Vocabulary
from worker.output.preamble import Preamble

_BLANKS = 2
"""Tokens of white space between the end of thinking and the answer."""


class AnswerConstraint:
    """What follows the `preamble` is under a grammar from its first token on."""

    binds = True
    endless = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        matcher: GrammarMatcher,
        preamble: Preamble,
        *,
        call: int = -1,
        native: CallConstraint | None = None,
        param: str = "response_format",
    ) -> None:
        """`preamble` follows what comes before the answer. A token `call` begins a call that the
        grammar does not describe. Of such calls `native` may be the constraint, None = they have
        none. `param` is what asked for the grammar."""
        self.vocabulary = vocabulary
        self._matcher = matcher
        self._preamble = preamble
        self._call = call
        self._native = native
        self._param = param
        self._over = False
        """Whether nothing but the end of sequence may follow."""
        self._free = False
        """Whether the output is a call in the model's own words."""
        self._begun = False
        self._blanks = 0

    @property
    def complete(self) -> bool:
        """Whether the output so far is a whole answer."""
        return self._preamble.stage == "answer" and not self._free and self._matcher.accepting

    @property
    def holds_calls(self) -> bool:
        """Whether a call that begins can only become one whose arguments are JSON."""
        return self._call < 0 or (self._native is not None and self._native.holds_calls)

    @property
    def failure(self) -> str:
        """Why llguidance gave up on the output, "" = it has not."""
        return self._matcher.failure

    def incomplete_error(self, *, called: bool) -> BulkheadError | None:
        """Why the output is no whole answer, though the model ended it; None = it is one. `called`:
        the transcript found calls in it."""
        if (
            self._free
            and self._native is not None
            and (error := self._native.incomplete_error(called=called))
        ):
            return error
        if self.complete or (called and self._free):
            return None
        why = DEAD_END
        if self._free:
            why = "the model began a tool call that is none"
        elif self._preamble.stage != "answer":
            why = "the model ended before it"
        return incomplete_answer(self.failure, why, self._param)

    def push(self, token: int) -> None:
        """The output's next token. One that was not allowed, or after the end, ends the answer."""
        if self._over:
            return
        if self._native is not None:
            self._native.push(token)
        if token in self.vocabulary.eos:
            self._over = True
            return
        preamble, stage = self._preamble, self._preamble.stage
        if stage == "answer":
            self._answer(token)
            return
        now = preamble.push(token)
        if now == "call":
            self._free = True
        elif now == "answer":
            if stage == "thinking":
                # It may have followed the marker of the beginning in vain.
                self._matcher.reset()
                self._blanks = _BLANKS
            if preamble.token_in_answer:
                self._answer(token)
        elif stage == "undecided":
            # Until the marker is complete the output may be the beginning of either.
            self._matcher.push(token)

    def _answer(self, token: int) -> None:
        if self._free:
            return
        if self._blanks and token in self.vocabulary.blanks:
            self._blanks -= 1
            return
        self._blanks = 0
        if token == self._call and not self._begun:
            self._free = True
            return
        self._begun = True
        self._matcher.push(token)
        self._over = not self._matcher.alive

    def _calls_natively(self) -> bool:
        """Whether the output is in a call of the model's own words, or in the header of one."""
        native = self._native
        in_header = native is not None and self._preamble.stage == "thinking" and native.binds
        return self._free or in_header

    # ── masks, see `fill_masks` ──────────────────────────────────────────────────────────────────

    def active_matcher(self) -> llguidance.LLMatcher | None:
        if self._over:
            return None
        if self._calls_natively():
            return None if self._native is None else self._native.active_matcher()
        if self._preamble.stage == "thinking":
            return None
        return self._matcher.matcher if self._matcher.alive else None

    def finish_mask(self, mask: Mask) -> None:
        vocabulary, stage = self.vocabulary, self._preamble.stage
        if not self._over and self._native is not None and self._calls_natively():
            self._native.finish_mask(mask)
            if not self._free:
                mask &= ~vocabulary.ending
            return
        if not self._over and (self._free or stage == "thinking"):
            mask[:] = vocabulary.text
            if self._free:
                mask |= vocabulary.ending
            return
        if self.active_matcher() is not None:
            self._matcher.repair_mask(mask)
            self._over = stage == "answer" and not self._matcher.alive
        # Of several end tokens llguidance may know fewer.
        mask &= ~vocabulary.ending
        if not self._over:
            if self._blanks:
                mask |= vocabulary.blank
            may_call = self._call >= 0 and self._matcher.alive and not self._begun
            others = [self._call] if may_call else []
            if stage == "undecided":
                others.append(self._preamble.next)
            if others:
                mask |= vocabulary.mask(others)
        if self._over or self.complete or not mask.any():
            mask |= vocabulary.ending
