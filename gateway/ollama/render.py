"""Ollama's answers, whole and as lines of JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from gateway.dialect import (
    AnswerHead,
    ChoiceBuffer,
    ErrorAnswer,
    Usage,
    arguments_object,
    new_call_id,
)
from gateway.openai.render import logprob_object
from gateway.openai.sse import in_one_line
from supervisor.errors import BulkheadError
from supervisor.wire.frames import Call, End, Logprobs, Token

NDJSON = "application/x-ndjson"
_MARK = "\0"
"""Stands in a line for the text that a token will bring."""
_QUOTED = re.compile(r"`([^`]*)`")

_json = msgspec.json.Encoder().encode


class Durations(NamedTuple):
    """Of one answer, in nanoseconds."""

    total: int = 0
    load: int = 0
    """Until a worker had the request: waiting, and a load if there was one."""
    prompt: int = 0
    """From then to the first token."""
    eval: int = 0
    """From the first token to the last."""


class Content(Protocol):
    """The part of a line that tells the answer: of a chat or of a generation."""

    def __call__(
        self, text: str, thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]: ...


def of_chat(
    text: str, thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = list(calls)
    return {"message": message}


def of_generation(
    text: str, thinking: str = "", calls: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A generation has no tools; what a client has sent of them is in the text."""
    return {"response": text, "thinking": thinking} if thinking else {"response": text}


class OllamaRenderer:
    """The `Renderer` of Ollama's chats and generations, which have one choice.

    A call is told when it is whole: its arguments are an object. `durations` are those up to now.
    """

    content_type = NDJSON

    def __init__(
        self, content: Content, head: AnswerHead, durations: Callable[[], Durations]
    ) -> None:
        self._content = content
        self._head = head_members(head.model, head.created)
        self._durations = durations
        self._calls: dict[int, tuple[str, list[str]]] = {}
        """Number → (name, pieces of the arguments) of those that are not told yet."""
        self._reason = "stop"
        self._around_text = self._line(content(_MARK)).rsplit(_json(_MARK), 1)
        """Encoded once: most lines hold text alone."""

    def begin(self, prompt_tokens: int) -> bytes:
        """Nothing."""
        return b""

    def echo(self, choice: int, text: str) -> None:
        """There is none."""

    def token(self, choice: int, token: Token) -> bytes:
        """The line of one token; nothing while what it brings is undecided, unless its log
        probability is wanted."""
        if token.text and not (token.reasoning or token.calls or token.logprobs):
            return in_one_line(_json(token.text)).join(self._around_text)
        for call in token.calls:
            self._add(call)
        ready = [number for number in self._calls if self._is_whole(number)]
        content = self._content(token.text, token.reasoning, self._take(ready))
        if token.logprobs is not None:
            return self._line({**content, "logprobs": [_entry(token.logprobs)]})
        return self._line(content) if token.text or token.reasoning or ready else b""

    def finish(self, choice: int, end: End) -> bytes:
        """The calls that are still to be told. One that the length has cut is none."""
        self._reason = "length" if end.finish_reason == "length" else "stop"
        calls = self._take(list(self._calls), cut=self._reason == "length")
        return self._line(self._content("", "", calls)) if calls else b""

    def done(self, usage: Usage, recoveries: int) -> bytes:
        last = {**self._content(""), **self._end(usage)}
        return _in_a_line({**self._head, **last})

    def ping(self) -> bytes:
        """A piece of text without a character, for which no client shows anything."""
        return self._line(self._content(""))

    def error(self, error: BulkheadError) -> bytes:
        return _in_a_line(error_members(error))

    def answer(self, choices: Sequence[ChoiceBuffer], usage: Usage) -> bytes:
        """The body of a request that is not streamed."""
        (choice,) = choices
        self._reason = "length" if choice.reason == "length" else "stop"
        self._calls = dict(choice.calls)
        calls = self._take(sorted(choice.calls), cut=self._reason == "length")
        whole = self._content(choice.text, "".join(choice.reasoning), calls)
        if choice.logprobs is not None:
            whole["logprobs"] = [_entry(each) for each in choice.logprobs]
        return _json({**self._head, **whole, **self._end(usage)})

    def _end(self, usage: Usage) -> dict[str, Any]:
        times = self._durations()
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": times.total,
            "load_duration": times.load,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": times.prompt,
            "eval_count": usage.completion,
            "eval_duration": times.eval,
        }

    def _line(self, content: Mapping[str, Any]) -> bytes:
        return _in_a_line({**self._head, **content, "done": False})

    # ── calls ────────────────────────────────────────────────────────────────────────────────────

    def _add(self, call: Call) -> None:
        self._calls.setdefault(call.index, (call.name, []))[1].append(call.arguments)

    def _is_whole(self, number: int) -> bool:
        pieces = self._calls[number][1]
        # Asked at every token: what ends otherwise is not worth joining.
        return pieces[-1].endswith("}") and arguments_object("".join(pieces)) is not None

    def _take(self, numbers: Iterable[int], *, cut: bool = False) -> list[dict[str, Any]]:
        """The calls with these numbers, which are told now."""
        calls = []
        for number in numbers:
            name, pieces = self._calls.pop(number)
            arguments = arguments_object("".join(pieces))
            if arguments is None and cut:
                continue
            function = {"index": number, "name": name, "arguments": arguments or {}}
            calls.append({"id": new_call_id(), "function": function})
        return calls


def head_members(model: str, created: float) -> dict[str, Any]:
    """What every line begins with; `created` in seconds since the epoch."""
    return {"model": model, "created_at": timestamp(created)}


def timestamp(at: float) -> str:
    """RFC 3339, from seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def loaded(content: Content, model: str, created: float, *, unloaded: bool) -> bytes:
    """The answer to a request that asks for nothing, which loads the model, or unloads it."""
    reason = "unload" if unloaded else "load"
    members = {**head_members(model, created), **content(""), "done": True, "done_reason": reason}
    return _json(members)


def error_members(error: BulkheadError) -> dict[str, Any]:
    """Ollama's clients read `error` as text; what the contract has besides stands beside it."""
    told = error.body()["error"]
    return {"error": _message(error), **{name: told[name] for name in ("type", "param", "code")}}


def error_form(error: BulkheadError, request_id: str) -> ErrorAnswer:
    """The `ErrorForm` of Ollama's API."""
    return ErrorAnswer(error.status, _json(error_members(error)))


def _message(error: BulkheadError) -> str:
    """Of an unknown model in Ollama's own words first, which programs look for."""
    named = _QUOTED.search(error.message)
    if error.code != "model_not_found" or named is None:
        return error.message
    return f'model "{named[1]}" not found: {error.message}'


def _entry(logprobs: Logprobs) -> dict[str, Any]:
    top = [logprob_object(each) for each in logprobs.top]
    return {**logprob_object(logprobs.sampled), **({"top_logprobs": top} if top else {})}


def _in_a_line(members: Mapping[str, Any]) -> bytes:
    return in_one_line(_json(members)) + b"\n"
