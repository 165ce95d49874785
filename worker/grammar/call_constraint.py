"""The constraint of an answer in the model's own words, calls included: whatever they say, the
arguments of a call follow the function's schema."""

from __future__ import annotations

from collections.abc import Mapping

import llguidance

from supervisor.errors import BulkheadError
from worker.grammar.matcher import DEAD_END, CompiledGrammar, GrammarMatcher, incomplete_answer
from worker.grammar.vocabulary import Mask, Vocabulary
from worker.output.decoders import TokenDecoder
from worker.output.parts import AnswerParser, AnswerParts

_TAIL = 64
"""Characters of text, more than any marker has."""


class CallConstraint:
    """Follows the output as the transcript does, with an `AnswerParser` of its own, which tells
    where a call's JSON may begin. From its first brace to its last the grammar holds; all else is
    free.

    A token that would reach such a place and go on behind it is not allowed: what it writes there
    would not be checked.
    """

    holds_calls = True

    def __init__(
        self,
        vocabulary: Vocabulary,
        decoder: TokenDecoder,
        parser: AnswerParser,
        answer: AnswerParts,
        rules: Mapping[str, CompiledGrammar],
        markers: tuple[str, ...],
    ) -> None:
        """`parser` writes to `answer`, which nobody reads. `rules` are the grammars of JSON, by
        what `json_expected` tells. Behind `markers` such JSON may begin."""
        self.vocabulary = vocabulary
        self._decoder = decoder
        self._parser = parser
        self._answer = answer
        self._rules = rules
        self._markers = markers
        self._matchers: dict[str, GrammarMatcher] = {}
        self._tail = ""
        self._over = False
        self._matcher: GrammarMatcher | None = None
        """Of the JSON that may begin here, or of the call that is being written."""
        self._inside = False
        self._begin_json()

    def incomplete_error(self, *, called: bool) -> BulkheadError | None:
        """Why a call is not whole, though the model ended it; None = none is open."""
        if not self._inside or self._matcher is None:
            return None
        return incomplete_answer(self._matcher.failure, DEAD_END, "tools")

    def push(self, token: int) -> None:
        """The output's next token. One that was not allowed, or after the end, ends a call."""
        if self._over:
            return
        if token in self.vocabulary.eos:
            self._over = True
            return
        matcher = self._matcher
        if matcher is not None:
            self._inside = self._inside or token in self.vocabulary.openers()[1]
            if self._inside:
                matcher.push(token)
                self._over = not matcher.alive
        text = self._decoder.push(token)
        self._tail = (self._tail + text)[-_TAIL:]
        self._parser.feed(text)
        self._answer.drop()
        if not self._inside or (matcher is not None and matcher.accepting):
            self._begin_json()

    def _begin_json(self) -> None:
        """Begin the grammar of the JSON that may begin after the text so far, if any may."""
        json_expected = self._parser.json_expected
        self._matcher, self._inside = None, False
        if json_expected is not None and json_expected in self._rules:
            if json_expected not in self._matchers:
                self._matchers[json_expected] = GrammarMatcher(self._rules[json_expected])
            self._matcher = self._matchers[json_expected]
            self._matcher.reset()
            # Behind a function's name there is nothing but its arguments.
            self._inside = json_expected != ""

    # ── masks, see `fill_masks` ──────────────────────────────────────────────────────────────────

    def active_matcher(self) -> llguidance.LLMatcher | None:
        return None if self._over or self._matcher is None else self._matcher.matcher

    def finish_mask(self, mask: Mask) -> None:
        vocabulary = self.vocabulary
        if self._over:
            mask[:] = vocabulary.ending
            return
        if self._matcher is not None:
            self._matcher.repair_mask(mask)
        if self._inside:
            if not mask.any():
                self._over = True
                mask |= vocabulary.ending
            return
        free = (vocabulary.text | vocabulary.ending) & ~vocabulary.past_markers(
            self._markers, self._tail
        )
        if self._matcher is not None:
            free &= ~vocabulary.openers()[0]
        mask |= free
