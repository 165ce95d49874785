"""From requests to the grammars of their outputs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Chat, Generate
from worker.grammar import call_rules
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.call_constraint import CallConstraint
from worker.grammar.matcher import CompiledGrammar, GrammarMatcher
from worker.grammar.refusals import IMPOSSIBLE, SchemaPart, explain_refusal, refusal_at
from worker.grammar.schema import compilable, parsed
from worker.grammar.vocabulary import Vocabulary
from worker.output.decoders import TokenDecoders
from worker.output.parts import AnswerParts
from worker.output.preamble import MarkerTokens
from worker.output.tools.answer_format import AnswerFormat
from worker.output.tools.call_forms import ForcedForm, call_json, is_strict
from worker.output.tools.calls import CallCollector
from worker.prompt.tokenizer import ModelTokenizer

SCHEMA = "response_format.json_schema.schema"
_CACHED = 64
"""Compiled grammars kept. Nearly all clients use a few schemas over and over."""


class ConstraintCompiler:
    """Compiles the grammars of one model. One thread at a time."""

    def __init__(self, tokenizer: ModelTokenizer, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._tokenizer = tokenizer
        self._decoders = TokenDecoders(tokenizer)
        self._size = vocab_size
        self._vocabulary: Vocabulary | UnsupportedValue | None = None
        self._markers = MarkerTokens(tokenizer)
        self._call_json = call_json(tokenizer)
        self._formats: AnswerFormat | None = None
        self._cache: OrderedDict[bytes, CompiledGrammar] = OrderedDict()

    def compile(
        self, request: Generate, prompt: Sequence[int] = ()
    ) -> AnswerConstraint | CallConstraint | None:
        """The constraint of a request's output, None if it has none.

        `prompt` are the prompt's tokens. The model's first call takes seconds, a schema's first up
        to 0.5 s, others under a millisecond. Raises InvalidValue or UnsupportedValue.
        """
        calling = request.calling
        if calling is not None and calling.choice == "required":
            return self._forced(request, prompt)
        if request.structure is not None:
            return self._structured(request, prompt)
        return self._native(request, prompt)

    def _forced(self, request: Generate, prompt: Sequence[int]) -> AnswerConstraint:
        """Calls alone."""
        vocabulary = self._known("tools")
        rules, parts = self._calls(request, self._markers.forced)
        compiled = self._compiled(vocabulary, "start: calls\n" + rules, parts)
        preamble = self._markers.preamble(request, prompt)
        return AnswerConstraint(vocabulary, GrammarMatcher(compiled), preamble, param="tools")

    def _structured(self, request: Generate, prompt: Sequence[int]) -> AnswerConstraint:
        """An answer under a schema, or calls."""
        assert request.structure is not None
        may_call, form = request.calling is not None, self._markers.form
        if may_call and form is None:
            raise UnsupportedValue(
                "`response_format` can't be combined with `tools` for this model: its tool calls "
                "can't be told from an answer. Leave one of them out, or set `tool_choice`.",
                param="response_format",
            )
        schema = compilable(parsed(request.structure.schema, SCHEMA), SCHEMA)
        vocabulary = self._known("response_format")
        rules, part = f"start: json\njson: %json {schema}\n", SchemaPart(schema, SCHEMA)
        compiled = self._compiled(vocabulary, rules, [part])
        if may_call and form == "hermes":
            # The schema was compiled alone, too: what is wrong with it is not the tools' fault.
            rules = rules.replace("start: json", "start: json | calls")
            more, parts = self._calls(request, "hermes")
            compiled = self._compiled(vocabulary, rules + more, [*parts, part])
        return AnswerConstraint(
            vocabulary,
            GrammarMatcher(compiled),
            self._markers.preamble(request, prompt),
            call=self._markers.call if may_call and form == "marked" else -1,
            native=self._native(request, prompt) if form != "hermes" else None,
        )

    def _native(self, request: Generate, prompt: Sequence[int]) -> CallConstraint | None:
        """An answer in the model's own words, if there are strict tools to be called in it."""
        calling, call_json = request.calling, self._call_json
        if calling is None or call_json is None or not isinstance(request.prompt, Chat):
            return None
        shown = request.prompt.tools
        if not any(map(is_strict, shown)):
            return None
        try:
            vocabulary = self._known("tools")
        except UnsupportedValue:
            return None  # as for a model whose calls are no JSON
        found = call_rules.tools(request, enforced=False)
        rules = {
            json_expected: self._compiled(
                vocabulary, text, [SchemaPart(t.schema, t.place) for t in tools]
            )
            for json_expected, (text, tools) in call_rules.call_json_rules(found, call_json).items()
        }
        if self._formats is None:
            self._formats = AnswerFormat(self._tokenizer)
        answer = AnswerParts((), CallCollector(parallel=True), behind_marker=False)
        parser = self._formats.parser(
            answer,
            calling=calling,
            tools=shown,
            reasoning=self._markers.prompt_ending(prompt) == "inside",
        )
        decoder = self._decoders.behind(prompt)
        return CallConstraint(vocabulary, decoder, parser, answer, rules, call_json.markers)

    def _known(self, param: str) -> Vocabulary:
        if self._vocabulary is None:
            try:
                self._vocabulary = Vocabulary(self._tokenizer, self._size)
            except UnsupportedValue as error:
                self._vocabulary = error
        if isinstance(self._vocabulary, UnsupportedValue):
            raise UnsupportedValue(self._vocabulary.message, param=param)
        return self._vocabulary

    def _compiled(
        self, vocabulary: Vocabulary, rules: str, parts: Sequence[SchemaPart]
    ) -> CompiledGrammar:
        """A grammar of the cache. `parts` are the schemas in it. Raises InvalidValue or
        UnsupportedValue."""
        key = hashlib.sha256(rules.encode()).digest()
        found = self._cache.get(key)
        if found is None:
            found = CompiledGrammar(vocabulary, rules)
            if found.error:
                raise explain_refusal(found.error, parts)
            if found.is_empty:
                raise refusal_at(IMPOSSIBLE, parts[0].place)
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found

    def _calls(self, request: Generate, form: ForcedForm) -> tuple[str, list[SchemaPart]]:
        """The rule `calls`, and the schemas in it."""
        assert request.calling is not None
        tools = call_rules.tools(request, enforced=True)
        rules = call_rules.forced_rules(
            tools, self._marker, form=form, several=request.calling.parallel
        )
        return rules, [SchemaPart(tool.schema, tool.place) for tool in tools]

    def _marker(self, text: str) -> str:
        token = self._tokenizer.get_vocab().get(text)
        return call_rules.literal(text) if token is None else f"<[{token}]>"
