"""OpenAI's answers and chunks, for chat and for legacy completions. Pure.

An answer has one or more choices, numbered from 0: those of the first prompt, then those of the
next. A `Renderer` is told each choice's tokens in order and returns events, one a token; or a
`Collected` a choice gathers them and `answer` gives the body of a request that is not streamed.
"""

from __future__ import annotations

import codecs
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from supervisor.wire.frames import Call, End, Logprob, Logprobs, Token

_IMPOSSIBLE = -9999.0
"""OpenAI's log probability of what can't happen; JSON has no infinities."""

_json = msgspec.json.Encoder().encode


def usage(ends: Sequence[End], n: int) -> dict[str, Any]:
    """The tokens of all choices; each prompt is counted once for its `n` choices, as OpenAI does."""
    prompt = sum(end.prompt_tokens for end in ends[::n])
    completion = sum(end.completion_tokens for end in ends)
    reasoning = sum(end.reasoning_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


class Renderer:
    """Renders one request's answer in the shapes that `chat` or `text` make.

    `chat` and `id`, `created` (epoch seconds) and `model` are the same in all chunks.
    """

    def __init__(self, *, chat: bool, id: str, created: int, model: str, choices: int = 1) -> None:
        self._chat = chat
        self._head = {"id": id, "created": created, "model": model}
        kind: type[_ChatChoice] | type[_TextChoice] = _ChatChoice if chat else _TextChoice
        self._choices: list[_ChatChoice | _TextChoice] = [kind() for _ in range(choices)]
        self._around: list[_Around | None] = [None] * choices
        """Encoded once: most chunks hold text alone or reasoning alone."""

    # ── streamed ─────────────────────────────────────────────────────────────────────────────────

    def echo(self, choice: int, text: str) -> None:
        """The prompt's text, which the choice's text begins with."""
        self._choices[choice].begin_with(text)

    def token(self, choice: int, token: Token) -> bytes:
        """The SSE event of one token. The first of a chat's choice carries the role."""
        around = self._around[choice]
        if around is not None and not (token.calls or token.logprobs):
            if not token.reasoning:
                if not token.text:
                    return around.idle
                return around.before + _json(token.text) + around.after
            if not token.text and self._chat:
                return _json(token.reasoning).join(around.thought)
        content, logprobs = self._choices[choice].chunk(token)
        if around is None:  # what follows is no first chunk any more
            self._around[choice] = self._surroundings(choice)
        return self._chunk(choice, content, logprobs)

    def _surroundings(self, choice: int) -> _Around:
        mark = "\0"
        plain = {"delta": {"content": mark}} if self._chat else {"text": mark}
        thought = {"delta": {"reasoning_content": mark, "reasoning": mark}}
        before, after = self._chunk(choice, plain).rsplit(_json(mark), 1)
        return _Around(
            before,
            after,
            self._chunk(choice, thought).rsplit(_json(mark), 2),
            self._chunk(choice, self._choices[choice].nothing),
        )

    def finish(self, choice: int, end: End) -> bytes:
        """The closing events of a choice."""
        state = self._choices[choice]
        rest = b"".join(
            self._chunk(choice, content) for content in state.rest(end.finish_reason == "length")
        )
        return rest + self._chunk(choice, state.nothing, reason=end.finish_reason)

    def done(self, totals: Mapping[str, Any] | None) -> bytes:
        """The closing events of the stream, with the usage if it was asked for."""
        last = b"" if totals is None else self._event([], usage=totals)
        return last + b"data: [DONE]\n\n"

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
        name = "chat.completion.chunk" if self._chat else "text_completion"
        return (
            b"data: " + _json({**self._head, "object": name, "choices": choices, **more}) + b"\n\n"
        )

    # ── whole ────────────────────────────────────────────────────────────────────────────────────

    def answer(self, collected: Sequence[Collected], totals: Mapping[str, Any]) -> bytes:
        """The whole body of a request that is not streamed."""
        choices = [
            {"index": index, **(_message(each) if self._chat else _text(each))}
            for index, each in enumerate(collected)
        ]
        name = "chat.completion" if self._chat else "text_completion"
        return _json({**self._head, "object": name, "choices": choices, "usage": totals})


class _Around(NamedTuple):
    """What is around the text, and around the reasoning, of a chunk that has nothing else, and a
    chunk that has neither."""

    before: bytes
    after: bytes
    thought: list[bytes]
    idle: bytes


class Collected:
    """One choice as it grows until its end. `logprobs`: they were asked for."""

    def __init__(self, *, logprobs: bool = False) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, tuple[str, list[str]]] = {}
        """Number → (name, pieces of the arguments)."""
        self.logprobs: list[Logprobs] | None = [] if logprobs else None
        self.end: End | None = None
        self.echo = ""

    def add(self, token: Token) -> None:
        self.texts.append(token.text)
        if token.reasoning:
            self.reasoning.append(token.reasoning)
        for call in token.calls:
            self.calls.setdefault(call.index, (call.name, []))[1].append(call.arguments)
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(token.logprobs)

    @property
    def text(self) -> str:
        return self.echo + "".join(self.texts)

    @property
    def reason(self) -> str:
        return self.end.finish_reason if self.end is not None else "stop"


# ── chat ─────────────────────────────────────────────────────────────────────────────────────────


class _ChatChoice:
    """What one choice of a stream has told so far."""

    nothing: Mapping[str, Any] = {"delta": {}}

    def __init__(self) -> None:
        self._begun = False
        self._calls: dict[int, bool] = {}
        """Number → whether any of its arguments has been sent."""

    def begin_with(self, text: str) -> None:
        """A chat has no echo."""

    def chunk(self, token: Token) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The token's delta and log probabilities.

        A delta without text has no content, the first one null: clients would begin a text for an
        empty one, and what is held back may yet be a call.
        """
        delta: dict[str, Any] = {} if self._begun else {"role": "assistant"}
        if token.reasoning:
            delta["reasoning_content"] = delta["reasoning"] = token.reasoning
        if token.text:
            delta["content"] = token.text
        elif not (self._begun or token.reasoning):
            delta["content"] = None
        if token.calls:
            delta["tool_calls"] = [self._piece(call) for call in _merged(token.calls)]
        self._begun = True
        logprobs = None if token.logprobs is None else _chat_logprobs([token.logprobs])
        return {"delta": delta}, logprobs

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """What strict clients need all the same: a role without a token, an object for arguments.
        `cut`: by the length, so that arguments may be missing."""
        if not self._begun:
            yield {"delta": {"role": "assistant", "content": ""}}
        for index, told in self._calls.items():
            if not (told or cut):
                yield {"delta": {"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]}}

    def _piece(self, call: Call) -> dict[str, Any]:
        """Id, type and name are told exactly once: clients concatenate what they get."""
        if call.index in self._calls:
            self._calls[call.index] |= call.arguments != ""
            return {"index": call.index, "function": {"arguments": call.arguments}}
        self._calls[call.index] = call.arguments != ""
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.index, "id": _call_id(), "type": "function", "function": function}


def _merged(calls: Sequence[Call]) -> list[Call]:
    """One piece a call: some clients look at the first of a chunk alone."""
    pieces: dict[int, Call] = {}
    for call in calls:
        if (known := pieces.get(call.index)) is not None:
            call = Call(call.index, known.name, known.arguments + call.arguments)
        pieces[call.index] = call
    return list(pieces.values())


def _message(choice: Collected) -> dict[str, Any]:
    text = choice.text
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.calls and not text else text,
        "refusal": None,
    }
    if reasoning := "".join(choice.reasoning):
        message["reasoning_content"] = message["reasoning"] = reasoning
    if choice.calls:
        # Of a call that was cut before its arguments, clients must not think that it has none.
        nothing = "" if choice.reason == "length" else "{}"
        message["tool_calls"] = [
            {
                "id": _call_id(),
                "type": "function",
                "function": {"name": name, "arguments": "".join(pieces) or nothing},
            }
            for _, (name, pieces) in sorted(choice.calls.items())
        ]
    logprobs = None if choice.logprobs is None else _chat_logprobs(choice.logprobs)
    return {"message": message, "logprobs": logprobs, "finish_reason": choice.reason}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _chat_logprobs(told: Iterable[Logprobs]) -> dict[str, Any]:
    content = [
        {**_entry(each.sampled), "top_logprobs": [_entry(other) for other in each.top]}
        for each in told
    ]
    return {"content": content, "refusal": None}


def _entry(logprob: Logprob) -> dict[str, Any]:
    return {
        "token": logprob.text,
        "logprob": _finite(logprob.value),
        "bytes": list(logprob.raw),
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _IMPOSSIBLE


# ── legacy completions ───────────────────────────────────────────────────────────────────────────


class _TextChoice:
    """What one choice of a stream has told so far."""

    nothing: Mapping[str, Any] = {"text": ""}

    def __init__(self) -> None:
        self._echo = ""
        self._logprobs = _LegacyLogprobs()

    def begin_with(self, text: str) -> None:
        self._echo = text

    def chunk(self, token: Token) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The token's text and log probabilities."""
        text, self._echo = self._echo + token.text, ""
        told = None if token.logprobs is None else self._logprobs.of([token.logprobs])
        return {"text": text}, told

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """The echo when no token followed."""
        if self._echo:
            yield {"text": self._echo}


class _LegacyLogprobs:
    """The older form; offsets are in characters of the choice's text, as the tokens' bytes make it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def of(self, told: Iterable[Logprobs]) -> dict[str, list[Any]]:
        form: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for each in told:
            form["tokens"].append(_legacy_text(each.sampled))
            form["token_logprobs"].append(_finite(each.sampled.value))
            # Likeliest first, and the sampled one always, as OpenAI does.
            every = {_legacy_text(other): _finite(other.value) for other in each.top}
            every.setdefault(_legacy_text(each.sampled), _finite(each.sampled.value))
            form["top_logprobs"].append(every)
            form["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(each.sampled.raw))
        return form


def _legacy_text(logprob: Logprob) -> str:
    """A part of a character as OpenAI spells it: texts are keys here and must not collide."""
    try:
        logprob.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.raw)
    return logprob.text


def _text(choice: Collected) -> dict[str, Any]:
    told = None if choice.logprobs is None else _LegacyLogprobs().of(choice.logprobs)
    return {"text": choice.text, "logprobs": told, "finish_reason": choice.reason}


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def error_event(body: Mapping[str, Any]) -> bytes:
    """An error inside a stream; after it the body ends cleanly and without `[DONE]`."""
    return b"data: " + _json(body) + b"\n\n"


def recoveries(count: int) -> bytes:
    """The comment that tells how often another worker has gone on with the stream, if any has."""
    return b": recoveries %d\n\n" % count if count else b""


PING = b": ping\n\n"
