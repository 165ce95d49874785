"""OpenAI's answers, whole and streamed. Pure.

An answer has one or more choices, numbered from 0: those of the first prompt, then those of the
next. A renderer is told each choice's tokens in order and returns events, one a token; or a
`ChoiceBuffer` a choice gathers them and `answer` gives the body of a request that is not streamed.
What a choice looks like is its endpoint's: `render_chat`, `render_completions`.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.openai.sse import EVENT_STREAM, PING, data_event, in_one_line, recoveries_comment
from supervisor.errors import BulkheadError
from supervisor.wire.frames import End, Logprob, Logprobs, Token

_IMPOSSIBLE = -9999.0
"""OpenAI's log probability of what can't happen; JSON has no infinities."""
_MARK = "\0"
"""Stands in a chunk for what a token will bring."""

_json = msgspec.json.Encoder().encode


class ChoiceShape(Protocol):
    """What one endpoint makes of a choice; an instance knows what its answer has told so far.

    A content is what a choice holds beside number, log probabilities and reason of the end.
    """

    id_prefix: str
    answer_object: str
    chunk_object: str
    empty: Mapping[str, Any]
    """The content of a chunk that tells nothing new."""

    def whole(self, choice: ChoiceBuffer) -> dict[str, Any]:
        """The content of an answer that is not streamed."""

    def begin_with(self, echo: str) -> None:
        """The choice's text begins with its prompt."""

    def chunk(self, token: Token) -> dict[str, Any]:
        """The content of a token's chunk."""

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """The contents of what is still to be told at the end. `cut`: by the length."""

    def logprobs(self, tokens: Iterable[Logprobs]) -> dict[str, Any]:
        """The log probabilities of the next tokens."""


class _ChunkBytes(NamedTuple):
    """A choice's encoded chunks, cut where a token's text or reasoning belongs."""

    before_text: bytes
    after_text: bytes
    around_reasoning: list[bytes]
    """In one piece where the endpoint tells no reasoning."""
    empty: bytes


class OpenAIRenderer:
    """The `Renderer` of chats and legacy completions. Id, time and model are the same in all
    chunks."""

    content_type = EVENT_STREAM

    def __init__(
        self,
        shape: type[ChoiceShape],
        head: AnswerHead,
        *,
        include_usage: bool = False,
    ) -> None:
        """With `include_usage` a stream's last chunk tells the usage."""
        self._shape = shape
        self._head = {
            "id": shape.id_prefix + secrets.token_hex(12),
            "created": int(head.created),
            "model": head.model,
        }
        self._include_usage = include_usage
        self._choices = [shape() for _ in range(head.choices)]
        self._chunk_bytes: list[_ChunkBytes | None] = [None] * head.choices
        """Encoded once: most chunks hold text alone or reasoning alone."""

    def begin(self, prompt_tokens: int) -> bytes:
        """Nothing."""
        return b""

    def echo(self, choice: int, text: str) -> None:
        """The prompt's text, which the choice's text begins with."""
        self._choices[choice].begin_with(text)

    def token(self, choice: int, token: Token) -> bytes:
        """The SSE event of one token. The first of a chat's choice carries the role."""
        ready = self._chunk_bytes[choice]
        if ready is not None and not (token.calls or token.logprobs):
            if not token.reasoning:
                if not token.text:
                    return ready.empty
                return ready.before_text + in_one_line(_json(token.text)) + ready.after_text
            if not token.text:
                return in_one_line(_json(token.reasoning)).join(ready.around_reasoning)
        shape = self._choices[choice]
        content = shape.chunk(token)
        if ready is None:  # what follows is no first chunk any more
            self._chunk_bytes[choice] = self._encode_chunks(choice)
        logprobs = None if token.logprobs is None else shape.logprobs([token.logprobs])
        return self._chunk(choice, content, logprobs)

    def _encode_chunks(self, choice: int) -> _ChunkBytes:
        before, after = self._encode_around(choice, Token(0, _MARK))
        around_reasoning = self._encode_around(choice, Token(0, "", reasoning=_MARK))
        return _ChunkBytes(before, after, around_reasoning, self._chunk(choice, self._shape.empty))

    def _encode_around(self, choice: int, token: Token) -> list[bytes]:
        """The pieces of the token's chunk around each `_MARK` in it."""
        content = self._choices[choice].chunk(token)
        mark = _json(_MARK)
        # From the right: a model may be called like the mark.
        return self._chunk(choice, content).rsplit(mark, _json(content).count(mark))

    def finish(self, choice: int, end: End) -> bytes:
        """The closing events of a choice."""
        shape = self._choices[choice]
        rest = b"".join(
            self._chunk(choice, content) for content in shape.rest(end.finish_reason == "length")
        )
        return rest + self._chunk(choice, shape.empty, reason=end.finish_reason)

    def done(self, usage: Usage, recoveries: int) -> bytes:
        """The closing events of the stream, with the usage if it was asked for. A comment tells how
        often another worker has gone on with the stream."""
        last = self._event([], usage=usage_object(usage)) if self._include_usage else b""
        return last + recoveries_comment(recoveries) + b"data: [DONE]\n\n"

    def ping(self) -> bytes:
        return PING

    def error(self, error: BulkheadError) -> bytes:
        """After it the body ends cleanly and without `[DONE]`."""
        return data_event(_json(error.body()))

    def answer(self, choices: Sequence[ChoiceBuffer], usage: Usage) -> bytes:
        """The body of a request that is not streamed."""
        whole = [
            {
                "index": index,
                **shape.whole(each),
                "logprobs": None if each.logprobs is None else shape.logprobs(each.logprobs),
                "finish_reason": each.reason,
            }
            for index, (shape, each) in enumerate(zip(self._choices, choices, strict=True))
        ]
        name = self._shape.answer_object
        return _json({**self._head, "object": name, "choices": whole, "usage": usage_object(usage)})

    def _chunk(
        self,
        choice: int,
        content: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> bytes:
        return self._event(
            [{"index": choice, **content, "logprobs": logprobs, "finish_reason": reason}]
        )

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        name = self._shape.chunk_object
        return data_event(_json({**self._head, "object": name, "choices": choices, **more}))


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


def logprob_object(logprob: Logprob) -> dict[str, Any]:
    """One token's, as all dialects but legacy completions tell it."""
    return {
        "token": logprob.text,
        "logprob": finite(logprob.value),
        "bytes": list(logprob.raw),
    }
