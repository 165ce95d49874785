"""Where an answer under a grammar begins: what a model writes before it, followed token by token.

The grammar binds from the answer's first token on, and the transcript takes everything from there
as it stands. Both follow the output with a `Preamble`, so that they agree to the token; text would
not do, for a model can spell a marker with the letters of other tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from supervisor.wire.frames import Chat, Generate
from worker.output.tools.call_forms import ANALYSIS, MixedForm, forced_form, is_harmony, mixed_form
from worker.prompt.tokenizer import ModelTokenizer

Stage = Literal["undecided", "thinking", "answer", "call"]
PromptEnding = Literal["before", "inside", "after"]

_TAIL = 16
"""Prompt tokens in which a template's own markers are looked for: they stand at the very end."""
_HEADER = 64
"""Tokens of a harmony header: a channel, a recipient and a type."""
_FINAL = re.compile(r"\s*final\b")


class MarkerTokens:
    """The tokens by which a model marks its thinking, its channels and its calls."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        thinks = tokenizer.has_thinking
        self.start = _ids(tokenizer.think_start_tokens) if thinks else ()
        self.end = _ids(tokenizer.think_end_tokens) if thinks else ()
        self.decode: Callable[[Sequence[int]], str] = tokenizer.decode
        self.channel = self.message = -1
        if is_harmony(tokenizer):
            vocab = tokenizer.get_vocab()
            self.channel, self.message = vocab["<|channel|>"], vocab["<|message|>"]
            self.start, self.end = (
                _ids(tokenizer.encode(text, add_special_tokens=False)) for text in ANALYSIS
            )
        self.form: MixedForm | None = mixed_form(tokenizer)
        """How calls are told from an answer under a schema; None = not at all."""
        self.forced = forced_form(tokenizer)
        """The form of calls that a grammar demands."""
        self.call = -1
        """The token that a call begins with, if it is one token."""
        if self.form in ("hermes", "marked"):
            self.call = tokenizer.get_vocab().get(tokenizer.tool_call_start, -1)

    def preamble(self, request: Generate, prompt: Sequence[int]) -> Preamble:
        """What comes before the answer to a chat, the same for its grammar and its transcript; to a
        plain prompt nothing does.

        Calls that are demanded come after thinking alone; an answer may stand behind all of
        harmony's channels, and calls in its place.
        """
        if not isinstance(request.prompt, Chat):
            return Preamble(self, "after")
        calling = request.calling
        demanded = calling is not None and calling.choice == "required"
        return Preamble(
            self,
            self.prompt_ending(prompt),
            # Of a call that is demanded its grammar must know the marker.
            calls=calling is not None and (not demanded or self.forced == "hermes"),
            harmony=not demanded,
        )

    def ends_line(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt has the line break that models put behind a marker."""
        return self.decode(list(prompt[-1:])).endswith("\n")

    def prompt_ending(self, prompt: Sequence[int]) -> PromptEnding:
        """Whether a prompt leaves the model "inside" of a thinking block, "after" one, or "before".

        Only the last marker counts, and only if nothing but white space follows: a <think> in a
        message is followed by what ends the message, so that nobody's words turn the answer into
        reasoning.
        """
        if not self.start:
            return "before"
        markers: tuple[tuple[tuple[int, ...], PromptEnding], ...]
        markers = ((self.start, "inside"), (self.end, "after"))
        for end in range(len(prompt), max(0, len(prompt) - _TAIL), -1):
            for marker, state in markers:
                at = end - len(marker)
                if at >= 0 and tuple(prompt[at:end]) == marker:
                    return state if not self.decode(list(prompt[end:])).strip() else "before"
        return "before"


class Preamble:
    """What comes before one answer. State: the tokens pushed until the answer has begun."""

    def __init__(
        self,
        markers: MarkerTokens,
        ending: PromptEnding,
        *,
        calls: bool = False,
        harmony: bool = False,
    ) -> None:
        """`ending` is the prompt's. `calls`: the model may call instead of answering. `harmony`:
        the answer may stand in a channel of its own, where the model knows such."""
        self.stage: Stage = "undecided"
        """"undecided": it may yet be either. "call": a call in the model's own words."""
        self.token_in_answer = False
        """Whether the last token pushed is the answer's, and not its marker's."""
        self._markers = markers
        self._calls = calls
        self._harmony = harmony and markers.channel >= 0
        self._seen: tuple[int, ...] = ()
        """The tokens of a marker so far, or those since the channel's mark."""
        self._in_header = False
        if ending == "inside":
            self.stage = "thinking"
        elif ending == "after" or not (markers.start or self._harmony):
            self.stage, self.token_in_answer = "answer", True

    @property
    def next(self) -> int:
        """The token that thinking begins with, or goes on to begin with, while it is undecided."""
        return self._markers.channel if self._harmony else self._markers.start[len(self._seen)]

    def push(self, token: int) -> Stage:
        """The output's next token; the stage after it."""
        if self.stage == "undecided":
            self._begin(token)
        elif self.stage == "thinking":
            if self._harmony:
                self._header(token)
            else:
                self._think(token)
        return self.stage

    def _begin(self, token: int) -> None:
        if token != self.next:
            self.stage, self.token_in_answer = "answer", True
        elif self._harmony:
            self.stage = "thinking"
            self._header(token)
        else:
            self._seen = (*self._seen, token)
            if self._seen == self._markers.start:
                self.stage, self._seen = "thinking", ()

    def _think(self, token: int) -> None:
        markers = self._markers
        self._seen = (*self._seen, token)[-len(markers.end) :]
        if self._seen == markers.end:
            self.stage = "answer"
        elif self._calls and token == markers.call:
            # As without a grammar: models go over to calling without ending their thoughts.
            self.stage, self.token_in_answer = "answer", True

    def _header(self, token: int) -> None:
        markers = self._markers
        if token == markers.channel:
            self._in_header, self._seen = True, ()
        elif self._in_header and token == markers.message:
            self._in_header = False
            header = markers.decode(list(self._seen))
            if self._calls and re.search(r"\bto=[^\s<]", header):
                self.stage = "call"
            elif _FINAL.match(header):
                self.stage = "answer"
        elif self._in_header:
            self._seen = (*self._seen, token)[:_HEADER]


def _ids(tokens: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(token) for token in tokens)
