"""What a choice's tokens mean: text, reasoning and tool calls, as one replayable state.

A `Transcript` depends on its request, its prompt and the tokens pushed, and on nothing else:
pushing the same tokens again gives the same state, however they were batched, which is how a choice
is continued after its worker died.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from supervisor.wire.frames import Call, Calling, Chat, Generate
from worker.output.decoders import TokenDecoder, TokenDecoders
from worker.output.parts import AnswerParser, AnswerParts
from worker.output.preamble import MarkerTokens, Preamble
from worker.output.text import StopStrings
from worker.output.tools.answer_format import AnswerFormat
from worker.output.tools.calls import CallCollector
from worker.prompt.tokenizer import ModelTokenizer


class OutputDelta(NamedTuple):
    """What became final: of the text, of the reasoning, of the calls."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


_NOTHING = OutputDelta()


class Transcript:
    """The text state of one choice. Neither method raises for anything that a model can write."""

    def __init__(self, decoder: TokenDecoder, answer: AnswerParts, parser: AnswerParser) -> None:
        self._decoder = decoder
        self._answer = answer
        self._parser = parser
        self.reasoning_tokens = 0
        """Tokens that were reasoning, the markers around it included where they are one token."""

    @property
    def stopped(self) -> bool:
        """A stop string came, or the one call that was asked for is complete: nothing that follows
        is output."""
        return self._answer.stopped

    @property
    def stop(self) -> str:
        """The stop string that came, if one did."""
        return self._answer.stop

    @property
    def finish_reason(self) -> Literal["stop", "tool_calls"]:
        """Why the choice is over, if its length is not the reason."""
        return "tool_calls" if self._answer.calls.complete else "stop"

    def push(self, token: int) -> OutputDelta:
        """What became final with this token."""
        reasoned = self._parser.reasoning
        text = self._decoder.push(token)
        if text:
            self._parser.feed(text)
        self.reasoning_tokens += reasoned or self._parser.reasoning
        return self._take() if text else _NOTHING

    def finish(self, *, cut: bool = False) -> OutputDelta:
        """What was held back, now that no token follows; `cut`: because of the choice's length."""
        if text := self._decoder.finish():
            self._parser.feed(text)
        self._parser.finish(cut)
        self._answer.finish()
        return self._take()

    def _take(self) -> OutputDelta:
        answer = self._answer
        return OutputDelta(answer.take_text(), answer.take_reasoning(), answer.calls.take())


class PlainTranscript:
    """A `Transcript` of an answer that has no parts: the text is all."""

    reasoning_tokens = 0
    finish_reason: Literal["stop", "tool_calls"] = "stop"

    def __init__(self, decoder: TokenDecoder, stops: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    @property
    def stop(self) -> str:
        return self._stops.found

    def push(self, token: int) -> OutputDelta:
        text = self._stops.feed(self._decoder.push(token))
        return OutputDelta(text) if text else _NOTHING

    def finish(self, *, cut: bool = False) -> OutputDelta:
        return OutputDelta(self._stops.feed(self._decoder.finish()) + self._stops.flush())


class StructuredTranscript(Transcript):
    """A `Transcript` of an answer under a grammar. All that comes before the answer is reasoning;
    the answer is taken as it stands, for its strings may hold the text of any marker.

    Where the answer begins is known by tokens, as to the grammar. If calls are demanded it is read
    as those. Where the model may call instead, an answer that begins with the marker of a call is
    read as calls: no JSON begins like that.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        answer: AnswerParts,
        preamble: Preamble,
        formats: AnswerFormat,
        calling: Calling | None,
        tools: Sequence[Any],
    ) -> None:
        self._preamble = preamble
        # Harmony's notes are text, here reasoning. The calls are the same, wherever they are read.
        self._preamble_parts = AnswerParts((), answer.calls, behind_marker=False)
        self._last_preamble_kind = ""
        self._held = ""
        """Text that may yet be the preamble's or the answer's, or the beginning of a marker."""
        self._opening = formats.call_start if calling is not None else ""
        self._calls = formats.call_parser(answer, calling, tools)
        self._in_call = answer.calls.demanded
        super().__init__(
            decoder, answer, formats.preamble_parser(answer, self._preamble_parts, calling)
        )

    def push(self, token: int) -> OutputDelta:
        before = self._preamble.stage
        if before == "answer":
            self._read_answer(self._decoder.push(token))
            return self._take()
        now = self._preamble.push(token)
        token_in_answer = now == "answer" and self._preamble.token_in_answer
        self.reasoning_tokens += now == "thinking" or (before == "thinking" and not token_in_answer)
        if before == "thinking" and token_in_answer:
            self._end_preamble()
        self._held += self._decoder.push(token)
        if now == "answer":
            if before == "thinking" and not token_in_answer:
                self._end_preamble()
            self._read_answer("")
        elif now != "undecided":
            self._feed_preamble()
        return self._take()

    def finish(self, *, cut: bool = False) -> OutputDelta:
        rest = self._decoder.finish()
        if self._preamble.stage == "answer":
            self._read_answer(rest)
            if self._in_call and self._calls is not None:
                self._calls.finish(cut)
            self._answer.text(self._held)
        else:
            self._held += rest
            self._feed_preamble()
            self._parser.finish(cut)
            self._take_preamble()
        self._answer.finish()
        last = self._take()
        # The beginning of a call that was demanded is no text.
        return last._replace(text="") if cut and self._answer.calls.demanded else last

    def _feed_preamble(self) -> None:
        text, self._held = self._held, ""
        self._parser.feed(text)
        self._take_preamble()

    def _end_preamble(self) -> None:
        """What was pushed so far is the preamble's, to the last letter."""
        self._held += self._decoder.finish()
        self._feed_preamble()
        self._parser.finish(self._preamble.token_in_answer)
        self._take_preamble()
        self._answer.marker()

    def _take_preamble(self) -> None:
        for kind, text in (
            ("reasoning", self._preamble_parts.take_reasoning()),
            ("text", self._preamble_parts.take_text()),
        ):
            if text:
                joint = "\n" if self._last_preamble_kind not in ("", kind) else ""
                self._answer.reason(joint + text)
                self._last_preamble_kind = kind

    def _read_answer(self, text: str) -> None:
        """More of the answer."""
        if self.stopped:
            return
        text, self._held = self._held + text, ""
        if self._in_call and self._calls is not None:
            self._calls.feed(text)
            return
        if self._opening:
            begins = text.lstrip()
            if len(begins) < len(self._opening) and self._opening.startswith(begins):
                self._held = text
                return
            if begins.startswith(self._opening) and self._calls is not None:
                self._in_call = True
                self._calls.feed(text)
                return
            self._opening = ""
        self._answer.text(text)


AnyTranscript = Transcript | PlainTranscript


class TranscriptFactory:
    """Makes the transcripts of one model's choices."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._decoders = TokenDecoders(tokenizer)
        self.formats = AnswerFormat(tokenizer)
        self._markers = MarkerTokens(tokenizer)

    def make(
        self,
        request: Generate,
        prompt: Sequence[int],
        *,
        calls_held: Callable[[], bool] = lambda: False,
    ) -> AnyTranscript:
        """The state before the first token. `prompt` is the request's, tokenized. `calls_held`:
        whether a grammar holds to calls that are JSON, so that they can be told while they grow; it
        is asked when one begins.

        Only chats have parts; what a plain prompt is continued with is text.
        """
        decoder = self._decoders.behind(prompt)
        if not isinstance(request.prompt, Chat):
            return PlainTranscript(decoder, request.stop)
        calling = request.calling
        if calling is None and not self.formats.has_parts:
            return PlainTranscript(decoder, request.stop)
        ending, tools = self._markers.prompt_ending(prompt), request.prompt.tools
        demanded = calling is not None and calling.choice == "required"
        answer = AnswerParts(
            request.stop,
            CallCollector(
                parallel=calling is None or calling.parallel,
                demanded=demanded,
                held=lambda: (calling is None or calling.growing) and calls_held(),
                names=calling.names if calling is not None else (),
            ),
            behind_marker=ending == "after" and not self._markers.ends_line(prompt),
        )
        if demanded or request.structure is not None:
            preamble = self._markers.preamble(request, prompt)
            return StructuredTranscript(decoder, answer, preamble, self.formats, calling, tools)
        parser = self.formats.parser(
            answer, calling=calling, tools=tools, reasoning=ending == "inside"
        )
        return Transcript(decoder, answer, parser)
