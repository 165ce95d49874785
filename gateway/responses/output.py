"""The items of a response's output: what each tells as it begins, grows and ends. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import msgspec

from gateway.dialect import arguments_object, new_call_id
from gateway.openai.custom_tools import CustomInput, input_of
from gateway.openai.thoughts import seal
from gateway.responses.tools import CalledTool

Events = Iterable[tuple[str, Mapping[str, Any]]]
"""Kinds of events with their members beside the item's id and place."""
_json = msgspec.json.Encoder().encode


class Item:
    """One item as it grows. Its text is made of `pieces`."""

    id_prefix: str
    delta: str
    """The kind of event that tells a piece."""
    delta_members: ClassVar[Mapping[str, Any]] = {}
    after_delta: ClassVar[Mapping[str, Any]] = {}

    def __init__(self) -> None:
        self.id = f"{self.id_prefix}{secrets.token_hex(24)}"
        self.status: Literal["in_progress", "completed", "incomplete"] = "in_progress"
        self.pieces: list[str] = []
        self.delta_bytes = (b"", b"", b"")
        """The event of a piece around its number and its text: encoded once."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def prepare_deltas(self, place: int) -> None:
        """The item stands at `place` of the output."""
        told = {"item_id": self.id, "output_index": place, **self.delta_members}
        after = _json(self.after_delta)[1:] if self.after_delta else b"}"
        self.delta_bytes = (
            b'event: %b\ndata: {"type":"%b","sequence_number":' % ((self.delta.encode(),) * 2),
            b',%b,"delta":' % _json(told)[1:-1],
            (b"," if self.after_delta else b"") + after + b"\n\n",
        )

    def told(self, piece: str) -> str:
        """What a stream tells of the next piece."""
        return piece

    def end(self, *, cut: bool) -> bool:
        """It grows no more; `cut` by the length. Whether it is one that can be told."""
        self.status = "incomplete" if cut else "completed"
        return True

    def announced(self) -> dict[str, Any]:
        """As it is before it has any text."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        raise NotImplementedError

    def begin(self) -> Events:
        """What follows its announcement."""
        return ()

    def last(self) -> Events:
        """What comes before it is told whole."""
        return ()


class ReasoningItem(Item):
    """What the model thought. It is told as a summary, which is where clients look for it."""

    id_prefix = "rs_"
    delta = "response.reasoning_summary_text.delta"
    delta_members: ClassVar[Mapping[str, Any]] = {"summary_index": 0}

    def __init__(self, *, encrypted: bool) -> None:
        """`encrypted`: the content that a stateless client sends back was asked for."""
        super().__init__()
        self._encrypted = encrypted

    def announced(self) -> dict[str, Any]:
        return {"id": self.id, "type": "reasoning", "summary": [], "status": "in_progress"}

    def whole(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": self.id,
            "type": "reasoning",
            "summary": [self._part(self.text)],
            "status": self.status,
        }
        if self._encrypted:
            told["encrypted_content"] = seal(self.text)
        return told

    def begin(self) -> Events:
        members = {"summary_index": 0, "part": self._part("")}
        yield "response.reasoning_summary_part.added", members

    def last(self) -> Events:
        text = self.text
        yield "response.reasoning_summary_text.done", {"summary_index": 0, "text": text}
        members = {"summary_index": 0, "part": self._part(text)}
        yield "response.reasoning_summary_part.done", members

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "summary_text", "text": text}


class MessageItem(Item):
    """What the model says. `logprobs` of its tokens are told if they were asked for."""

    id_prefix = "msg_"
    delta = "response.output_text.delta"
    delta_members: ClassVar[Mapping[str, Any]] = {"content_index": 0}
    after_delta: ClassVar[Mapping[str, Any]] = {"logprobs": []}

    def __init__(self, *, logprobs: bool) -> None:
        super().__init__()
        self.logprobs: list[Mapping[str, Any]] = []
        self._tells_logprobs = logprobs

    def announced(self) -> dict[str, Any]:
        return self._item([])

    def whole(self) -> dict[str, Any]:
        return self._item([self._part(self.text)])

    def begin(self) -> Events:
        yield "response.content_part.added", {"content_index": 0, "part": self._part("")}

    def last(self) -> Events:
        text = self.text
        told = {"content_index": 0, "text": text, "logprobs": self.logprobs}
        yield "response.output_text.done", told
        yield "response.content_part.done", {"content_index": 0, "part": self._part(text)}

    def _item(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "status": self.status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        return part | {"logprobs": self.logprobs} if self._tells_logprobs else part


class _CalledItem(Item):
    """A call. Its text is the arguments, one JSON object."""

    def __init__(self, called: CalledTool) -> None:
        super().__init__()
        self._head = {"id": self.id, "call_id": new_call_id()}
        self._head["name"] = called.name
        if called.namespace is not None:
            self._head["namespace"] = called.namespace

    def end(self, *, cut: bool) -> bool:
        """A call that is cut is none: clients run what they are told, whatever comes after it."""
        self.status = "completed"
        return not cut or arguments_object(self.text) is not None


class CallItem(_CalledItem):
    """A call of a function."""

    id_prefix = "fc_"
    delta = "response.function_call_arguments.delta"

    def announced(self) -> dict[str, Any]:
        return self._item("")

    def whole(self) -> dict[str, Any]:
        return self._item(self.text or "{}")

    def last(self) -> Events:
        text = self.text or "{}"
        if not self.text:
            yield self.delta, {"delta": text}
        members = {"name": self._head["name"], "arguments": text}
        yield "response.function_call_arguments.done", members

    def _item(self, arguments: str) -> dict[str, Any]:
        told = {"type": "function_call", "status": self.status, "arguments": arguments}
        return self._head | told


class CustomCallItem(_CalledItem):
    """A call of a custom tool. The model writes its input as JSON; what is told is the text that
    this stands for."""

    id_prefix = "ctc_"
    delta = "response.custom_tool_call_input.delta"

    def __init__(self, called: CalledTool) -> None:
        super().__init__(called)
        self._reader = CustomInput()

    def told(self, piece: str) -> str:
        return self._reader.feed(piece)

    def announced(self) -> dict[str, Any]:
        return self._item("")

    def whole(self) -> dict[str, Any]:
        return self._item(input_of(self.text))

    def last(self) -> Events:
        if rest := self._reader.rest():
            yield self.delta, {"delta": rest}
        yield "response.custom_tool_call_input.done", {"input": input_of(self.text)}

    def _item(self, text: str) -> dict[str, Any]:
        return self._head | {"type": "custom_tool_call", "status": self.status, "input": text}


def call_item(called: CalledTool) -> CallItem | CustomCallItem:
    return CustomCallItem(called) if called.is_custom else CallItem(called)
