"""A response's answer, whole and as OpenAI's sequence of events. Pure.

The answer is a list of items: what the model thought, a message, calls. In a stream each is
announced, grows and is completed before the next one begins; all events are numbered from 0.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from gateway.dialect import AnswerHead, ChoiceBuffer, Usage
from gateway.openai.render import logprob_object
from gateway.openai.sse import EVENT_STREAM, in_one_line, named_event, recoveries_comment
from gateway.responses.output import Item, MessageItem, ReasoningItem, call_item
from gateway.responses.request import ParsedResponse
from gateway.responses.tools import told_choice
from supervisor.errors import BulkheadError
from supervisor.wire.frames import Call, End, Logprobs, Token

Status = Literal["in_progress", "completed", "incomplete", "failed"]

_json = msgspec.json.Encoder().encode


class ResponseRenderer:
    """The `Renderer` of responses. `keep` is told of an answer that is complete."""

    content_type = EVENT_STREAM

    def __init__(
        self,
        parsed: ParsedResponse,
        head: AnswerHead,
        keep: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._parsed = parsed
        self._keep = keep
        self._head = _head(parsed, head)
        self._number = 0
        """Of the next event."""
        self._items: list[Item] = []
        """Those that are complete, and the last one, which may still grow."""
        self._growing: Item | None = None
        self._call: int | None = None
        """The number of the call that grows."""
        self._undecided: list[Logprobs] = []
        """Of tokens whose text is not known yet."""
        self._cut = False

    # ── a stream ─────────────────────────────────────────────────────────────────────────────────

    def begin(self, prompt_tokens: int) -> bytes:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def echo(self, choice: int, text: str) -> None:
        """A response has no echo."""

    def token(self, choice: int, token: Token) -> bytes:
        """The events of one token; none while it is undecided what it belongs to."""
        events = b""
        if token.reasoning:
            events += self._grow_reasoning(token.reasoning)
        if token.logprobs is not None:
            self._undecided.append(token.logprobs)
        if token.text:
            events += self._grow_message(token.text)
        for call in token.calls:
            events += self._grow_call(call)
        if token.reasoning or token.calls:
            self._undecided.clear()
        return events

    def finish(self, choice: int, end: End) -> bytes:
        self._cut = end.finish_reason == "length"
        empty = b"" if self._items else self._begin(self._message())  # clients look for one
        return empty + self._complete(cut=self._cut)

    def done(self, usage: Usage, recoveries: int) -> bytes:
        """The stream's last event, with the whole response. A comment before it tells how often
        another worker has gone on with the stream."""
        response = self._finished(usage)
        return recoveries_comment(recoveries) + self._event(
            f"response.{response['status']}", response=response
        )

    def ping(self) -> bytes:
        """An event, since many clients count nothing else as a sign of life."""
        return self._event("response.in_progress", response=self._response("in_progress"))

    def error(self, error: BulkheadError) -> bytes:
        error = self._parsed.in_its_words(error)
        told = {
            "code": error.code,
            "message": error.message,
            "type": error.type,
            "param": error.param,
        }
        response = self._response("failed") | {"error": told}
        return self._event("response.failed", response=response)

    def _grow_reasoning(self, text: str) -> bytes:
        events = b""
        if not isinstance(self._growing, ReasoningItem):
            item = ReasoningItem(encrypted=self._parsed.asked.wants_encrypted)
            events = self._begin(item)
        return events + self._told(self._growing, text)

    def _grow_message(self, text: str) -> bytes:
        events = b""
        if not isinstance(self._growing, MessageItem):
            events = self._begin(self._message())
        assert isinstance(self._growing, MessageItem)
        told = [_logprobs(each) for each in self._undecided]
        self._undecided.clear()
        self._growing.logprobs += told
        return events + self._told(self._growing, text, told)

    def _grow_call(self, call: Call) -> bytes:
        events = b""
        if self._call != call.index:
            events = self._begin(call_item(self._parsed.names.called(call.name)))
            self._call = call.index
        return events + self._told(self._growing, call.arguments) if call.arguments else events

    def _message(self) -> MessageItem:
        return MessageItem(logprobs=self._parsed.asked.alternatives is not None)

    def _begin(self, item: Item) -> bytes:
        events = self._complete()
        self._growing = item
        self._items.append(item)
        place = len(self._items) - 1
        events += self._event(
            "response.output_item.added", output_index=place, item=item.announced()
        )
        for kind, members in item.begin():
            events += self._event(kind, item_id=item.id, output_index=place, **members)
        item.prepare_deltas(place)
        return events

    def _told(self, item: Item | None, text: str, logprobs: Sequence[Any] = ()) -> bytes:
        """The event of a piece of an item."""
        assert item is not None
        item.pieces.append(text)
        if not (text := item.told(text)):
            return b""
        before, between, after = item.delta_bytes
        number = self._number
        self._number += 1
        if logprobs:
            after = after.replace(b'"logprobs":[]', b'"logprobs":' + in_one_line(_json(logprobs)))
        return b"%b%d%b%b%b" % (before, number, between, in_one_line(_json(text)), after)

    def _complete(self, *, cut: bool = False) -> bytes:
        """The events that complete what grows. `cut`: by the length."""
        item, self._growing, self._call = self._growing, None, None
        if item is None:
            return b""
        if not item.end(cut=cut):
            self._items.pop()
            return b""
        place = len(self._items) - 1
        events = b"".join(
            self._event(kind, item_id=item.id, output_index=place, **members)
            for kind, members in item.last()
        )
        return events + self._event(
            "response.output_item.done", output_index=place, item=item.whole()
        )

    def _event(self, kind: str, **members: Any) -> bytes:
        number = self._number
        self._number += 1
        return named_event(kind, _json({"type": kind, "sequence_number": number, **members}))

    # ── the response ─────────────────────────────────────────────────────────────────────────────

    def answer(self, choices: Sequence[ChoiceBuffer], usage: Usage) -> bytes:
        """The body of a request that is not streamed."""
        choice = choices[0]
        asked = self._parsed.asked
        self._cut = choice.reason == "length"
        if choice.reasoning:
            thought: Item = ReasoningItem(encrypted=asked.wants_encrypted)
            thought.pieces += choice.reasoning
            self._items.append(thought)
        if choice.text or not (choice.reasoning or choice.calls):
            message = self._message()
            message.pieces += choice.texts
            message.logprobs += [_logprobs(each) for each in choice.text_logprobs]
            self._items.append(message)
        for _, (name, pieces) in sorted(choice.calls.items()):
            call = call_item(self._parsed.names.called(name))
            call.pieces += pieces
            self._items.append(call)
        last = self._items[-1]
        for item in self._items[:]:
            if not item.end(cut=self._cut and item is last):
                self._items.remove(item)
        return _json(self._finished(usage))

    def _finished(self, usage: Usage) -> dict[str, Any]:
        status: Status = "incomplete" if self._cut else "completed"
        response = self._response(status) | {"usage": usage_object(usage)}
        if self._cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = self._head["created_at"]
        if self._keep is not None:
            self._keep(response)
        return response

    def _response(self, status: Status) -> dict[str, Any]:
        """The response as it is, without an item that still grows."""
        done = [item.whole() for item in self._items if item is not self._growing]
        return {**self._head, "status": status, "output": done}


def _head(parsed: ParsedResponse, head: AnswerHead) -> dict[str, Any]:
    """What stays the same of a response from its first event to its last."""
    asked = parsed.asked
    text = asked.text
    return {
        "id": f"resp_{secrets.token_hex(24)}",
        "object": "response",
        "created_at": int(head.created),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.limit,
        "max_tool_calls": asked.max_tool_calls,
        "model": head.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": _reasoning(parsed),
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "text": {
            "format": asked.told_format,
            "verbosity": (text and text.verbosity) or "medium",
        },
        "tool_choice": told_choice(asked.tool_choice),
        # Encoded once: agents send dozens of kilobytes of them.
        "tools": msgspec.Raw(_json(parsed.raw_tools)),
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": asked.user,
        "metadata": _metadata(asked.metadata or {}),
    }


def _metadata(given: Mapping[str, Any]) -> dict[str, str]:
    """As it came; what is no text is told as JSON, since clients expect texts."""
    return {
        name: each if isinstance(each, str) else _json(each).decode()
        for name, each in given.items()
    }


def _reasoning(parsed: ParsedResponse) -> dict[str, Any]:
    given = parsed.asked.reasoning
    if given is None:
        return {"effort": parsed.asked.reasoning_effort, "summary": None}
    summary = given.summary or given.generate_summary
    return {"effort": given.effort, "summary": None if summary == "none" else summary}


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _logprobs(told: Logprobs) -> Mapping[str, Any]:
    top = [logprob_object(each) for each in told.top]
    return {**logprob_object(told.sampled), "top_logprobs": top}
