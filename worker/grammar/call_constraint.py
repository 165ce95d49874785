"""The constraint of an answer in the model's own words, calls included: from the moment a call
begins, it is one of a declared function, and as that function wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import llguidance

from supervisor.errors import BulkheadError, UnsupportedValue
from worker.grammar.matcher import DEAD_END, CompiledGrammar, GrammarMatcher, incomplete_answer
from worker.grammar.token_texts import TokenTexts
from worker.grammar.vocabulary import Mask, Vocabulary
from worker.output.decoders import TokenDecoder
from worker.output.parts import AnswerParser, AnswerParts, CallPlace
from worker.output.tools.call_forms import CallForm

_TAIL = 64
"""Characters of text, more than any marker has."""
_SOFT = ("thought", "object")
"""Places where a call begins with its first brace, and all else may follow: thoughts speak of
markers, and an answer that nothing marks may be any text."""
_CLOSED = ("hermes", "mistral", "kimi_k2")
"""Forms whose sections of calls have an end that their grammar knows."""


class CallGrammars:
    """The grammars of one request's calls, by the place from which on they hold. They are compiled
    when the first call begins, unless somebody needs to know of their faults before."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        compiled: Callable[[str, bool], CompiledGrammar],
        rules: Mapping[CallPlace, str],
    ) -> None:
        """`compiled` compiles rules; the flag says that there must be room for them, because the
        answer has begun."""
        self.vocabulary = vocabulary
        """May take as long as a vocabulary takes to be made. Raises UnsupportedValue."""
        self._compiled = compiled
        self._rules = rules
        self._ahead: list[CompiledGrammar] = []
        """Held from the start, so that there is no doubt later whether there is room."""

    def __contains__(self, place: CallPlace) -> bool:
        return place in self._rules

    def compile_all(self) -> None:
        """Raises InvalidValue, UnsupportedValue or QueueFull."""
        for rules in self._rules.values():
            compiled = self._compiled(rules, False)
            compiled.users.add(self)
            self._ahead.append(compiled)

    def matcher(self, place: CallPlace) -> GrammarMatcher:
        """A matcher at the beginning of a place's grammar. Raises InvalidValue or
        UnsupportedValue."""
        return GrammarMatcher(self._compiled(self._rules[place], True))


class CallConstraint:
    """Follows the output as the transcript does, with an `AnswerParser` of its own, which tells
    where a call begins. From there to its end the grammar holds; all else is free.

    A token that would reach such a place and go on behind it is not allowed: what it writes there
    would not be checked. Nor does anything need a mask before: `binds` says where one is needed.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        parser: AnswerParser,
        answer: AnswerParts,
        form: CallForm,
        grammars: CallGrammars,
        texts: TokenTexts,
        eos: frozenset[int],
        *,
        endless: bool = False,
    ) -> None:
        """`parser` writes to `answer`, which nobody reads. `endless`: an end of sequence is not the
        end."""
        self.endless = endless
        self._decoder = decoder
        self._parser = parser
        self._answer = answer
        self._form = form
        self._grammars = grammars
        self._texts = texts
        self._eos = eos
        self._matchers: dict[CallPlace, GrammarMatcher] = {}
        self._tail = ""
        self._over = False
        self._watched: bool | None = None
        self._place: CallPlace = ""
        self._inside = False
        """Whether a call has begun, so that all that follows must be in its grammar."""
        self._seek_call()

    @property
    def vocabulary(self) -> Vocabulary:
        return self._grammars.vocabulary()

    @property
    def binds(self) -> bool:
        """Whether the next token may not be any. Waits for the vocabulary where it may not."""
        needed = self._over or self._inside or self._looks or bool(self._past())
        return needed and self._is_watched()

    @property
    def holds_calls(self) -> bool:
        """Whether a call that begins can only become one whose arguments are JSON."""
        return self._form.kind != "named" and self._is_watched()

    def incomplete_error(self, *, called: bool) -> BulkheadError | None:
        """Why a call is not whole, though the model ended it; None = none is open."""
        if not self._inside or self._matcher.accepting:
            return None
        return incomplete_answer(self._matcher.failure, DEAD_END, "tools")

    def push(self, token: int) -> None:
        """The output's next token. One that was not allowed, or after the end, ends a call."""
        if self._over:
            return
        if token in self._eos and not (self.endless and not self._inside):
            self._over = True
            return
        if not self._inside and self._is_soft and token in self._openers:
            self._begin_call()
        if self._inside:
            self._matcher.push(token)
            self._over = not self._matcher.alive
        text = self._decoder.push(token)
        self._tail = (self._tail + text)[-_TAIL:]
        self._parser.feed(text)
        self._answer.drop()
        if not self._inside or self._has_ended():
            self._seek_call()

    def _has_ended(self) -> bool:
        """Whether the call that is written is over, as far as its grammar tells."""
        if self._place == "section" and self._form.kind in _CLOSED:
            return self._matcher.over
        return self._matcher.accepting

    def _seek_call(self) -> None:
        """Where the text so far has led."""
        self._inside = False
        self._place = self._parser.call_place
        if self._place == "thought" and self._place not in self._grammars:
            self._place = "section"
        if self._place in self._grammars and self._place not in _SOFT:
            self._begin_call()

    def _begin_call(self) -> None:
        self._inside = self._is_watched()
        if self._inside:
            self._matcher.reset()

    def _is_watched(self) -> bool:
        """Whether the model's vocabulary is one that grammars can be made for."""
        if self._watched is None:
            try:
                self._watched = bool(self._grammars.vocabulary())
            except UnsupportedValue:
                self._watched = False  # as for a model whose calls can't be watched
        return self._watched

    @property
    def _matcher(self) -> GrammarMatcher:
        """Of the place where the output is."""
        if self._place not in self._matchers:
            self._matchers[self._place] = self._grammars.matcher(self._place)
        return self._matchers[self._place]

    @property
    def _openers(self) -> frozenset[int]:
        bare = self._form.kind == "llama"
        return self._texts.bare_openers()[0] if bare else self._texts.openers()

    @property
    def _is_soft(self) -> bool:
        return not self._inside and self._place in _SOFT and self._place in self._grammars

    @property
    def _looks(self) -> bool:
        """Whether a call may begin here, with a token that has to be looked at."""
        telling = self._form.kind != "llama" or self._texts.bare_openers()[1]
        return telling and self._is_soft

    def _past(self) -> frozenset[int]:
        """The tokens that would go on behind a place where a call begins."""
        marker = self._form.start
        if self._place == "header":
            marker = "to="
        elif self._inside or not marker:
            return frozenset()
        return self._texts.past(marker, self._tail)

    # ── masks, see `fill_masks` ──────────────────────────────────────────────────────────────────

    def active_matcher(self) -> llguidance.LLMatcher | None:
        if self._over or not (self._inside or self._looks):
            return None
        if self._looks:
            self._matcher.reset()
        return self._matcher.matcher

    def finish_mask(self, mask: Mask) -> None:
        vocabulary = self.vocabulary
        if self._over:
            mask[:] = vocabulary.ending
            return
        if self._inside or self._looks:
            self._matcher.repair_mask(mask)
        if self._inside:
            mask &= ~vocabulary.ending
            if self._matcher.accepting:
                mask |= vocabulary.ending
            elif not mask.any():
                self._over = True
                mask |= vocabulary.ending
            return
        free = vocabulary.text | vocabulary.ending
        if past := self._past():
            free &= ~vocabulary.kept_mask(past)
        if self._looks:
            free &= ~vocabulary.kept_mask(self._openers)
        mask |= free
