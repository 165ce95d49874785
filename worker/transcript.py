"""What a choice's tokens mean: text, reasoning and tool calls, as one replayable state.

A `Transcript` depends on its request, its prompt and the tokens pushed, and on nothing else: pushing
the same tokens again gives the same state, however they were batched, which is how a choice is
continued after its worker died.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from supervisor.wire.frames import Call, Chat, Generate
from worker.text import Decoder, Detokenizer, TextStream
from worker.tools.answer import Answer, Machine
from worker.tools.calls import Calls
from worker.tools.formats import Formats

_TAIL = 16
"""Prompt tokens in which a template's own <think> is looked for: it stands at the very end."""


class Delta(NamedTuple):
    """What became final: of the text, of the reasoning, of the calls."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


_NOTHING = Delta()


class Transcript:
    """The text state of one choice. Neither method raises for anything that a model can write."""

    def __init__(self, detokenizer: Detokenizer, answer: Answer, machine: Machine) -> None:
        self._decoder = Decoder(detokenizer)
        self._answer = answer
        self._machine = machine
        self.reasoning_tokens = 0
        """Tokens that were reasoning, the markers around it included where they are one token."""

    @property
    def stopped(self) -> bool:
        """A stop string came, or the one call that was asked for is complete: nothing that follows
        is output."""
        return self._answer.stopped

    @property
    def finish_reason(self) -> Literal["stop", "tool_calls"]:
        """Why the choice is over, if its length is not the reason."""
        return "tool_calls" if self._answer.calls.complete else "stop"

    def push(self, token: int) -> Delta:
        """What became final with this token."""
        reasoned = self._machine.reasoning
        text = self._decoder.push(token)
        if text:
            self._machine.feed(text)
        self.reasoning_tokens += reasoned or self._machine.reasoning
        return self._take() if text else _NOTHING

    def finish(self, *, cut: bool = False) -> Delta:
        """What was held back, now that no token follows; `cut`: because of the choice's length."""
        if text := self._decoder.finish():
            self._machine.feed(text)
        self._machine.finish(cut)
        self._answer.finish()
        return self._take()

    def _take(self) -> Delta:
        answer = self._answer
        return Delta(answer.take_text(), answer.take_reasoning(), answer.calls.take())


class PlainTranscript:
    """A `Transcript` of an answer that has no parts: the text is all."""

    reasoning_tokens = 0
    finish_reason: Literal["stop", "tool_calls"] = "stop"

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._stream = TextStream(detokenizer, stops)

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def push(self, token: int) -> Delta:
        text = self._stream.push(token)
        return Delta(text) if text else _NOTHING

    def finish(self, *, cut: bool = False) -> Delta:
        return Delta(self._stream.finish())


AnyTranscript = Transcript | PlainTranscript


class Transcripts:
    """Makes the transcripts of one model's choices."""

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer` is mlx-lm's TokenizerWrapper."""
        self._tokenizer = tokenizer
        self._formats = Formats(tokenizer)

    def make(self, request: Generate, prompt: Sequence[int]) -> AnyTranscript:
        """The state before the first token. `prompt` is the request's, tokenized.

        Only chats have parts; what a plain prompt is continued with is text.
        """
        detokenizer: Detokenizer = self._tokenizer.detokenizer
        if not isinstance(request.prompt, Chat):
            return PlainTranscript(detokenizer, request.stop)
        calling = request.calling
        if calling is None and not self._formats.has_parts:
            return PlainTranscript(detokenizer, request.stop)
        tail = tuple(prompt[-_TAIL:])
        answer = Answer(
            request.stop,
            Calls(parallel=calling is None or calling.parallel),
            behind_marker=self._follows(tail, "think_end_tokens"),
        )
        machine = self._formats.machine(
            answer,
            calling=calling,
            tools=request.prompt.tools,
            reasoning=self._follows(tail, "think_start_tokens"),
        )
        return Transcript(detokenizer, answer, machine)

    def _follows(self, tail: Sequence[int], marker: str) -> bool:
        """Whether the prompt ends with the marker and white space, as where its template put it.

        A <think> in a message is followed by what ends the message, so that nobody's words turn the
        answer into reasoning. `worker.grammar` decides by the same rule.
        """
        tokens = getattr(self._tokenizer, marker, None)
        if not tokens:
            return False
        for at in range(len(tail) - len(tokens), -1, -1):
            if tuple(tail[at : at + len(tokens)]) == tuple(tokens):
                return not self._tokenizer.decode(list(tail[at + len(tokens) :])).strip()
        return False
