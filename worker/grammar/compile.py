"""From requests to the grammars of their outputs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Chat, Generate
from worker.grammar import calls
from worker.grammar.answer import Grammar
from worker.grammar.follow import Compiled, Follower
from worker.grammar.native import Native
from worker.grammar.refusals import IMPOSSIBLE, Part, refusal, refused
from worker.grammar.schema import compilable, parsed
from worker.grammar.vocabulary import Vocabulary
from worker.output.preamble import Marks, Preamble
from worker.output.text import Decoder
from worker.output.tools.answer import Answer
from worker.output.tools.calls import Calls
from worker.output.tools.formats import Formats
from worker.output.tools.forms import Forced, gates, promises
from worker.prompt.tokenizer import ModelTokenizer

SCHEMA = "response_format.json_schema.schema"
_CACHED = 64
"""Compiled grammars kept. Nearly all clients use a few schemas over and over."""


class Grammars:
    """Compiles the grammars of one model. One thread at a time."""

    def __init__(self, tokenizer: ModelTokenizer, vocab_size: int) -> None:
        """`vocab_size` is the width of the logits."""
        self._tokenizer = tokenizer
        self._size = vocab_size
        self._vocabulary: Vocabulary | UnsupportedValue | None = None
        self._marks = Marks(tokenizer)
        self._gates = gates(tokenizer)
        self._formats: Formats | None = None
        self._cache: OrderedDict[bytes, Compiled] = OrderedDict()

    def compile(self, request: Generate, prompt: Sequence[int] = ()) -> Grammar | Native | None:
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

    def _forced(self, request: Generate, prompt: Sequence[int]) -> Grammar:
        """Calls alone."""
        vocabulary = self._known("tools")
        rules, parts = self._calls(request, self._marks.forced)
        compiled = self._compiled(vocabulary, "start: calls\n" + rules, parts)
        lead = self._lead(request, prompt)
        return Grammar(vocabulary, Follower(compiled), lead, param="tools")

    def _structured(self, request: Generate, prompt: Sequence[int]) -> Grammar:
        """An answer under a schema, or calls."""
        assert request.structure is not None
        may_call, form = request.calling is not None, self._marks.form
        if may_call and form is None:
            raise UnsupportedValue(
                "`response_format` can't be combined with `tools` for this model: its tool calls "
                "can't be told from an answer. Leave one of them out, or set `tool_choice`.",
                param="response_format",
            )
        schema = compilable(parsed(request.structure.schema, SCHEMA), SCHEMA)
        vocabulary = self._known("response_format")
        rules, part = f"start: json\njson: %json {schema}\n", Part(schema, SCHEMA)
        compiled = self._compiled(vocabulary, rules, [part])
        if may_call and form == "hermes":
            # The schema was compiled alone, too: what is wrong with it is not the tools' fault.
            rules = rules.replace("start: json", "start: json | calls")
            more, parts = self._calls(request, "hermes")
            compiled = self._compiled(vocabulary, rules + more, [*parts, part])
        return Grammar(
            vocabulary,
            Follower(compiled),
            self._lead(request, prompt),
            call=self._marks.call if may_call and form == "marked" else -1,
            native=self._native(request, prompt) if form != "hermes" else None,
        )

    def _native(self, request: Generate, prompt: Sequence[int]) -> Native | None:
        """An answer in the model's own words, if there are strict tools to be called in it."""
        calling, gates = request.calling, self._gates
        if calling is None or gates is None or not isinstance(request.prompt, Chat):
            return None
        shown = request.prompt.tools
        if not any(map(promises, shown)):
            return None
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._size)
        if isinstance(self._vocabulary, UnsupportedValue):
            return None  # as for a model whose calls are no JSON
        vocabulary = self._vocabulary
        found = calls.tools(request, enforced=False)
        rules = {
            gate: self._compiled(vocabulary, text, [Part(t.schema, t.place) for t in tools])
            for gate, (text, tools) in calls.gated(found, gates).items()
        }
        if self._formats is None:
            self._formats = Formats(self._tokenizer)
        answer = Answer((), Calls(parallel=True), behind_marker=False)
        machine = self._formats.machine(
            answer,
            calling=calling,
            tools=shown,
            reasoning=self._marks.ending(prompt) == "inside",
        )
        decoder = Decoder(self._tokenizer.detokenizer)
        return Native(vocabulary, decoder, machine, answer, rules, gates.markers)

    def _known(self, param: str) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = _vocabulary(self._tokenizer, self._size)
        if isinstance(self._vocabulary, UnsupportedValue):
            raise UnsupportedValue(self._vocabulary.message, param=param)
        return self._vocabulary

    def _lead(self, request: Generate, prompt: Sequence[int]) -> Preamble | None:
        return self._marks.lead(request, prompt) if isinstance(request.prompt, Chat) else None

    def _compiled(self, vocabulary: Vocabulary, rules: str, parts: Sequence[Part]) -> Compiled:
        """A grammar of the cache. `parts` are the schemas in it. Raises InvalidValue or
        UnsupportedValue."""
        key = hashlib.sha256(rules.encode()).digest()
        found = self._cache.get(key)
        if found is None:
            found = Compiled(vocabulary, rules)
            if found.error:
                raise refusal(found.error, parts)
            if found.is_empty:
                raise refused(IMPOSSIBLE, parts[0].place)
            self._cache[key] = found
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return found

    def _calls(self, request: Generate, form: Forced) -> tuple[str, list[Part]]:
        """The rule `calls`, and the schemas in it."""
        assert request.calling is not None
        tools = calls.tools(request, enforced=True)
        rules = calls.forced(tools, self._marker, form=form, several=request.calling.parallel)
        return rules, [Part(tool.schema, tool.place) for tool in tools]

    def _marker(self, text: str) -> str:
        token = self._tokenizer.get_vocab().get(text)
        return calls.literal(text) if token is None else f"<[{token}]>"


def _vocabulary(tokenizer: ModelTokenizer, size: int) -> Vocabulary | UnsupportedValue:
    try:
        return Vocabulary(tokenizer, size)
    except UnsupportedValue as error:
        return error
