"""From requests to the grammars of their outputs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial

from supervisor.errors import InvalidValue, UnsupportedValue
from supervisor.wire.frames import Chat, Generate, Grammar, Pattern, Schema, Structure
from worker.grammar import call_rules
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.call_constraint import CallConstraint, CallGrammars
from worker.grammar.call_rules import CallableTool
from worker.grammar.checker import param
from worker.grammar.grammar_cache import Claim, GrammarCache, bytes_of
from worker.grammar.matcher import CLIENTS, OURS, CompiledGrammar, GrammarMatcher, Limits
from worker.grammar.refusals import (
    IMPOSSIBLE,
    SchemaPart,
    explain_refusal,
    refusal_at,
    refusal_of,
)
from worker.grammar.schema import MAX_TEXT, compilable, loosest, parsed
from worker.grammar.token_texts import TokenTexts
from worker.grammar.vocabulary import Vocabulary
from worker.output.decoders import TokenDecoders
from worker.output.parts import AnswerParts
from worker.output.preamble import MarkerTokens
from worker.output.tools.answer_format import AnswerFormat
from worker.output.tools.call_forms import ForcedForm, call_form
from worker.output.tools.calls import CallCollector
from worker.prompt.tokenizer import ModelTokenizer


class ConstraintCompiler:
    """Compiles the grammars of one model: on one thread at a time, but for those of calls, which
    may be compiled on another when the call begins."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        vocab_size: int,
        formats: AnswerFormat | None = None,
        cache: GrammarCache | None = None,
    ) -> None:
        """`vocab_size` is the width of the logits. `formats` are the tokenizer's, None = they are
        to be found out. `cache` None = one of its own."""
        self._tokenizer = tokenizer
        self._decoders = TokenDecoders(tokenizer)
        self._size = vocab_size
        self._making = threading.Lock()
        self._vocabulary: Vocabulary | UnsupportedValue | None = None
        self._ahead: threading.Thread | None = None
        """Makes the vocabulary before somebody waits for it."""
        self._texts = TokenTexts(tokenizer)
        self._eos = frozenset(int(t) for t in tokenizer.eos_token_ids if 0 <= t < vocab_size)
        self._markers = MarkerTokens(tokenizer)
        self._call_form = call_form(tokenizer)
        self._formats = formats
        self._cache = GrammarCache() if cache is None else cache

    def claim(self) -> Claim:
        """For one request's grammars, and for waiting when there is no room for them."""
        return Claim(self._cache)

    def compile(
        self, request: Generate, prompt: Sequence[int] = (), claim: Claim | None = None
    ) -> AnswerConstraint | CallConstraint | None:
        """The constraint of a request's output, None if it has none.

        `prompt` are the prompt's tokens. The model's first call takes seconds, a schema's first up
        to 0.5 s, others under a millisecond. Raises InvalidValue, UnsupportedValue, or QueueFull
        when the grammars of other answers leave no room; that may be waited for with the `claim`.
        """
        calling, claim = request.calling, self.claim() if claim is None else claim
        claim.wanted = {}
        if calling is not None and calling.choice == "required":
            return self._forced(request, prompt, claim)
        if request.structure is not None:
            return self._structured(request, prompt, claim)
        return self._native(request, prompt, claim)

    def _forced(self, request: Generate, prompt: Sequence[int], claim: Claim) -> AnswerConstraint:
        """Calls alone."""
        vocabulary, form = self._known("tools"), self._markers.forced
        compiled = self._with_calls(vocabulary, request, claim, form, "start: calls\n")
        preamble = self._markers.preamble(request, prompt)
        return AnswerConstraint(vocabulary, GrammarMatcher(compiled), preamble, param="tools")

    def _structured(
        self, request: Generate, prompt: Sequence[int], claim: Claim
    ) -> AnswerConstraint:
        """An answer that has to be something, or calls."""
        structure, may_call, form = request.structure, request.calling, self._markers.form
        assert structure is not None
        wanted = param(structure.place)
        if may_call is not None and form is None:
            raise UnsupportedValue(
                f"`{wanted}` can't be combined with `tools` for this model: its tool calls can't "
                "be told from an answer. Leave one of them out, or set `tool_choice`.",
                param=wanted,
            )
        return AnswerConstraint(
            self._known(wanted),
            GrammarMatcher(self._answer(request, structure, claim)),
            self._markers.preamble(request, prompt),
            call=self._markers.call if may_call and form == "marked" else -1,
            native=self._native(request, prompt, claim) if form != "hermes" else None,
            param=wanted,
        )

    def _answer(self, request: Generate, structure: Structure, claim: Claim) -> CompiledGrammar:
        match structure:
            case Schema(schema, strict, place):
                wanted = parsed(schema, place)
                try:
                    text = compilable(wanted, place, lenient=not strict)
                    return self._value(request, SchemaPart(text, place), claim)
                except UnsupportedValue as error:
                    if strict or error.param != param(place):
                        raise
                # What is not promised is no reason to refuse: of the schema, the type alone is
                # left.
                return self._value(request, SchemaPart(loosest(wanted), place), claim)
            case Pattern(pattern, place):
                body = f"/{pattern}/"
            case Grammar(rules, place):
                # Nested, so that what it ignores is not ignored in calls.
                body = f"%lark {{\n{rules}}}"
        if len(body) > MAX_TEXT:
            raise InvalidValue(
                f"The grammar has {len(body)} characters; {MAX_TEXT} are allowed (at {place}).",
                param=param(place),
            )
        limits = CLIENTS if isinstance(structure, Grammar) else OURS
        return self._answer_or_calls(request, claim, body, place, (), limits)

    def _value(self, request: Generate, part: SchemaPart, claim: Claim) -> CompiledGrammar:
        """The grammar of an answer under a schema."""
        return self._answer_or_calls(request, claim, f"%json {part.schema}", part.place, (part,))

    def _answer_or_calls(
        self,
        request: Generate,
        claim: Claim,
        body: str,
        place: str,
        parts: Sequence[SchemaPart],
        limits: Limits = OURS,
    ) -> CompiledGrammar:
        """The grammar of an answer, or of calls if they are text like it."""
        vocabulary = self._known(param(place))
        rules = f"start: answer\nanswer: {body}\n"
        if request.calling is None or self._markers.form != "hermes":
            return self._compiled(vocabulary, rules, parts, place, limits, claim=claim)
        # Alone first, for nothing else: what is wrong with it is not the tools' fault. It must not
        # be held, so that it can make room for the one with calls.
        self._compiled(vocabulary, rules, parts, place, limits, claim=claim)
        claim.wanted = {}
        rules = f"start: answer | calls\nanswer: {body}\n"
        return self._with_calls(vocabulary, request, claim, "hermes", rules, *parts, limits=limits)

    def _with_calls(
        self,
        vocabulary: Vocabulary,
        request: Generate,
        claim: Claim,
        form: ForcedForm,
        rules: str,
        *parts: SchemaPart,
        limits: Limits = OURS,
    ) -> CompiledGrammar:
        """A grammar with calls in it: of functions that are not strict as much of the schemas as
        can be enforced together, or else any objects."""
        assert request.calling is not None
        several = request.calling.parallel
        tools = call_rules.tools(request, enforced=True)
        for last in (False, True):
            more = call_rules.forced_rules(tools, self._marker, form=form, several=several)
            found = [SchemaPart(tool.schema, tool.place) for tool in tools if tool.schema]
            try:
                return self._compiled(
                    vocabulary, rules + more, [*found, *parts], limits=limits, claim=claim
                )
            except UnsupportedValue:
                if last:
                    raise
                tools = call_rules.tools(request, enforced=False)
        raise AssertionError

    def _native(
        self, request: Generate, prompt: Sequence[int], claim: Claim
    ) -> CallConstraint | None:
        """An answer in the model's own words, if there are tools to be called in it.

        What is wrong with a strict function's schema has to be told before the answer begins. For
        others nothing is compiled until a call begins, and nobody waits for the vocabulary but a
        call that begins before it is made.
        """
        calling, form = request.calling, self._call_form
        if calling is None or form is None or not isinstance(request.prompt, Chat):
            return None
        shown = request.prompt.tools
        if form.kind == "named":
            found = [CallableTool(name, "", "tools") for name in calling.names]
        else:
            found = call_rules.tools(request, enforced=False)
        parts = [SchemaPart(tool.schema, tool.place) for tool in found if tool.schema]
        rules = call_rules.native_rules(found, form, self._marker)
        grammars = CallGrammars(
            partial(self._known, "tools"), partial(self._compiled_calls, parts, claim), rules
        )
        answer = AnswerParts((), CallCollector(parallel=True), behind_marker=False)
        if self._formats is None:
            self._formats = AnswerFormat(self._tokenizer)
        parser = self._formats.parser(
            answer,
            calling=calling,
            tools=shown,
            reasoning=self._markers.prompt_ending(prompt) == "inside",
        )
        constraint = CallConstraint(
            self._decoders.behind(prompt),
            parser,
            answer,
            form,
            grammars,
            self._texts,
            self._eos,
            endless=request.ignore_eos,
        )
        if not parts:
            self._make_ahead()
            return constraint
        try:
            self._known("tools")
        except UnsupportedValue:
            return None  # as for a model whose calls can't be watched
        self._want(claim, rules.values(), parts, "tools")
        grammars.compile_all()
        return constraint

    def _compiled_calls(
        self, parts: Sequence[SchemaPart], claim: Claim, rules: str, must: bool
    ) -> CompiledGrammar:
        """One of a `CallGrammars`."""
        # What must be waits for nothing.
        claim = self.claim() if must else claim
        return self._compiled(self._known("tools"), rules, parts, claim=claim, must=must)

    def _make_ahead(self) -> None:
        """Have the vocabulary made on a thread of its own, beside the prefill."""
        if self._ahead is None:
            self._ahead = threading.Thread(
                target=self._try_vocabulary, name="vocabulary", daemon=True
            )
            with suppress(RuntimeError):  # no thread can be started: the first call waits for it
                self._ahead.start()

    def _known(self, param: str) -> Vocabulary:
        """The model's vocabulary. The first call takes seconds. Raises UnsupportedValue."""
        found = self._try_vocabulary()
        if isinstance(found, UnsupportedValue):
            raise UnsupportedValue(found.message, param=param)
        return found

    def _try_vocabulary(self) -> Vocabulary | UnsupportedValue:
        with self._making:
            if self._vocabulary is None:
                try:
                    self._vocabulary = Vocabulary(self._tokenizer, self._size)
                except UnsupportedValue as error:
                    self._vocabulary = error
            return self._vocabulary

    def _want(
        self, claim: Claim, rules: Collection[str], parts: Sequence[SchemaPart], place: str
    ) -> None:
        """The request needs these grammars beside those that it has wanted. Raises UnsupportedValue
        where there can never be room for all of them."""
        wanted = {**claim.wanted, **{_key(each): bytes_of(each) for each in rules}}
        size, most = sum(wanted.values()), self._cache.most
        if size > most:
            at = parts[0].place if parts else place
            which = "This grammar is" if len(wanted) == 1 else "This request's grammars are"
            raise UnsupportedValue(
                f"{which} too large: about {-(-size >> 20)} MB with all schemas, and a model's "
                f"grammars may take {most >> 20} MB together (at {at}). Use fewer or smaller "
                "schemas.",
                param=param(at),
            )
        claim.wanted = wanted

    def _compiled(
        self,
        vocabulary: Vocabulary,
        rules: str,
        parts: Sequence[SchemaPart],
        place: str = "tools",
        limits: Limits = OURS,
        *,
        claim: Claim | None = None,
        must: bool = False,
    ) -> CompiledGrammar:
        """A grammar of the cache. `parts` are the schemas in it, `place` is what is to blame if
        there are none, `limits` are the parser's, `must` is as the cache's. Raises InvalidValue,
        UnsupportedValue or QueueFull."""
        claim = self.claim() if claim is None else claim
        wanted = claim.wanted
        self._want(claim, [rules], parts, place)
        found = self._cache.grammar(
            _key(rules),
            bytes_of(rules),
            lambda: CompiledGrammar(vocabulary, rules, limits),
            claim,
            must=must,
        )
        if not found.error and not found.is_empty:
            return found
        claim.wanted = wanted
        if found.error and parts:
            raise explain_refusal(found.error, parts)
        if found.error:
            raise refusal_of(found.error, place)
        raise refusal_at(IMPOSSIBLE, parts[0].place) if parts else refusal_of("", place)

    def _marker(self, text: str) -> str:
        token = self._texts.token(text)
        return call_rules.literal(text) if token is None else f"<[{token}]>"


def _key(rules: str) -> bytes:
    return hashlib.sha256(rules.encode()).digest()
