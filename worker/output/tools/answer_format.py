"""The form that a model's answers have, chosen by its tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from supervisor.wire.frames import Calling
from worker.output.parts import AnswerParser, AnswerParts
from worker.output.text import StringSearch
from worker.output.tools.call_forms import (
    ANALYSIS,
    PYTHON_TAG,
    forced_form,
    is_harmony,
    is_llama,
    is_strict,
    parser_name,
)
from worker.output.tools.calls import CallCollector, CallReader, WholeTextReader
from worker.output.tools.harmony import HarmonyParser
from worker.output.tools.json_calls import JSONCallsReader
from worker.output.tools.marker_parser import MarkerParser, ReasoningParser, UnmarkedCalls
from worker.output.tools.named_calls import KIMI_K2, MISTRAL, NamedCallsReader
from worker.output.tools.parser_limits import strict_parser
from worker.prompt.tokenizer import ModelTokenizer

MakeReader = Callable[[CallCollector, Any], CallReader]
"""(calls, the request's tools) → the reader of what follows a call's start marker."""


class AnswerFormat:
    """Makes the parsers of one model's answers."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._harmony = is_harmony(tokenizer)
        self._llama = is_llama(tokenizer)
        self._forced = forced_form(tokenizer)
        self._thinking: tuple[str, str] = (
            ANALYSIS if self._harmony else (tokenizer.think_start or "", tokenizer.think_end or "")
        )
        self._start, self._make_reader = _reader(tokenizer)
        edges = _edges(tokenizer, self._start)
        self._with_calls = _compiled(edges)
        self._without_calls = _compiled(_without_calls(edges))
        self._initial: str = tokenizer.response_initial_state or "normal"
        self.call_start = "" if self._harmony else self._start
        """The marker that a call begins with; "" = no one marker."""

    @property
    def has_parts(self) -> bool:
        """Whether answers have anything but text even where no calls are looked for."""
        return self._harmony or any(search for search, _ in self._without_calls.values())

    def parser(
        self,
        answer: AnswerParts,
        *,
        calling: Calling | None,
        tools: Sequence[Any],
        reasoning: bool,
    ) -> AnswerParser:
        """`reasoning`: the prompt ends inside of it."""
        unmarked = None
        calls = answer.calls
        if calling is not None:
            if calling.choice == "required" and self._forced == "array":
                unmarked = UnmarkedCalls("[", lambda: JSONCallsReader(calls))
            elif self._llama:
                unmarked = UnmarkedCalls("{", lambda: JSONCallsReader(calls, separators=";"))
        if self._harmony:
            return HarmonyParser(answer, calling=calling is not None)
        make = self._make_reader
        return MarkerParser(
            answer,
            self._without_calls if calling is None else self._with_calls,
            self._initial if not reasoning else "reasoning",
            read=None if make is None or calling is None else lambda: make(calls, list(tools)),
            unmarked=unmarked,
        )

    def preamble_parser(
        self, answer: AnswerParts, channels: AnswerParts, calling: Calling | None
    ) -> AnswerParser:
        """What reads the text before an answer under a grammar, up to its end, which tokens tell.

        Thinking goes to `answer`. Harmony's channels go to `channels`, and calls that stand in the
        answer's place; before calls that are demanded there is thinking alone.
        """
        if self._harmony and not answer.calls.demanded:
            return HarmonyParser(channels, calling=calling is not None)
        return ReasoningParser(answer, *self._thinking)

    def call_parser(
        self, answer: AnswerParts, calling: Calling | None, tools: Sequence[Any]
    ) -> AnswerParser | None:
        """What reads an answer under a grammar that is calls, demanded or by its beginning with
        `call_start`; None = none can be."""
        if calling is None:
            return None
        if answer.calls.demanded:
            return self.parser(answer, calling=calling, tools=tools, reasoning=False)
        make, calls = self._make_reader, answer.calls
        if make is None or self._harmony:
            return None
        return MarkerParser(
            answer, self._with_calls, "normal", lambda: make(calls, list(tools)), unmarked=None
        )


def _reader(tokenizer: ModelTokenizer) -> tuple[str, MakeReader | None]:
    """The marker that calls begin with ("" = none) and what reads them."""
    if is_llama(tokenizer):
        return PYTHON_TAG, lambda calls, tools: JSONCallsReader(calls, PYTHON_TAG, separators=";")
    name = parser_name(tokenizer)
    if name is None:
        return "", None
    start: str = tokenizer.tool_call_start
    end: str = tokenizer.tool_call_end or ""
    parse = strict_parser(name, tokenizer.tool_parser)

    def whole(calls: CallCollector, tools: Any) -> CallReader:
        return WholeTextReader(calls, start, end, parse, tools)

    match name:
        case "json_tools":
            return start, lambda calls, tools: JSONCallsReader(calls, start, end)
        case "mistral":
            return start, lambda calls, tools: NamedCallsReader(
                calls, MISTRAL, lambda: JSONCallsReader(calls, start)
            )
        case "kimi_k2":
            # In what mlx-lm's parser would read besides, no grammar holds.
            return start, lambda calls, tools: NamedCallsReader(
                calls, KIMI_K2, None if any(map(is_strict, tools)) else lambda: whole(calls, tools)
            )
        case _:
            return start, whole


_Edges = dict[str, list[tuple[str, str]]]


def _edges(tokenizer: ModelTokenizer, call_start: str) -> _Edges:
    """As in mlx-lm's `make_text_state_machine`, from the same facts."""
    edges: _Edges = {"normal": [], "reasoning": []}
    if tokenizer.has_thinking:
        edges["normal"].append((tokenizer.think_start, "reasoning"))
        edges["reasoning"].append((tokenizer.think_end, "normal"))
        # Some models open the block again that the prompt has opened already.
        edges["reasoning"].append((tokenizer.think_start, "reasoning"))
    response: dict[str, Any] = tokenizer.response_transitions
    if call_start:
        targets = {target for there in response.values() for _, target in there}
        if "tool" not in targets:
            edges["normal"].append((call_start, "tool"))
        if tokenizer.has_thinking:
            edges["reasoning"].append((call_start, "tool"))
    edges["normal"] += [(marker, "normal") for marker in tokenizer.structural_markers]
    for state, there in response.items():
        edges.setdefault(state, []).extend(there)
    return edges


def _without_calls(edges: _Edges) -> _Edges:
    """Markers of calls are text: in text they need no edge, in markup they begin a text."""
    return {
        state: [
            (marker, "text" if target == "tool" else target)
            for marker, target in there
            if target != "tool" or state not in ("normal", "reasoning")
        ]
        for state, there in edges.items()
    }


def _compiled(edges: _Edges) -> dict[str, tuple[StringSearch, tuple[tuple[str, str], ...]]]:
    return {
        state: (StringSearch([marker for marker, _ in there]), tuple(there))
        for state, there in edges.items()
    }
