"""Ollama's chat and generate: a body becomes the worker's requests. Pure.

A body is put into the terms of OpenAI's chat, which knows Ollama's parameters as those of another
local server: `options`, `format`, `think` and the rest have their fates in
`gateway.openai.local_servers`. What is Ollama's alone is here. `gateway.ollama.render` has the
answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from gateway.ollama import keep_alive
from gateway.ollama.messages import no_images, to_openai, tools_to_openai, want_text
from gateway.openai.chat import CHAT_BODY, ChatRequest, parse_chat
from gateway.openai.validation import invalid_value
from supervisor.errors import InvalidType, UnsupportedParameter
from supervisor.wire.frames import Generate, Schema, Text

_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "suffix": (("",), "nothing is filled in between two texts"),
    "template": (("",), "the model's own is used"),
    "context": (([],), "send the conversation to /api/chat"),
    "width": ((0,), "no images are made"),
    "height": ((0,), "no images are made"),
    "steps": ((0,), "no images are made"),
}
"""Of generate: accepted with these values alone, which ask for nothing."""
_WITHOUT_EFFECT = frozenset({"embedding_only"})
"""Members of `options` that Ollama's SDKs have, beside those that other local servers know."""


@dataclass(frozen=True, slots=True)
class OllamaRequest:
    """The body of POST /api/chat or /api/generate."""

    model: str
    stream: bool
    keep_alive: float | None
    """As `Acquire`'s."""
    ignored: tuple[str, ...] = ()
    """Parameters that change nothing here."""
    chat: ChatRequest | None = None
    """None = there is nothing to answer: the model is to be loaded, or unloaded."""
    raw: str | None = None
    """A prompt without a template, in place of the chat's messages."""
    has_format: bool = False
    """Whether `format` has the schema, so that an error names it."""

    @property
    def n(self) -> int:
        return 1

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """The worker's request. Raises the contract's 400."""
        assert self.chat is not None
        (one,) = self.chat.choices(request_id, now, seed)
        if self.raw is not None:
            one = replace(one, prompt=Text(self.raw), calling=None)
        if self.has_format and isinstance(one.structure, Schema):
            one = replace(one, structure=replace(one.structure, place="format"))
        return [one]


def parse_chat_body(raw: Mapping[str, Any]) -> OllamaRequest:
    """POST /api/chat. Raises the contract's 400 that names the parameter."""
    body = dict(raw)
    messages = body.pop("messages", [])
    if messages == []:
        return _request(body, None)
    if "tools" in body:
        body["tools"] = tools_to_openai(body["tools"])
    return _request(body, to_openai(messages))


def parse_generate_body(raw: Mapping[str, Any]) -> OllamaRequest:
    """POST /api/generate. Raises the contract's 400 that names the parameter."""
    body = dict(raw)
    prompt = want_text(body.pop("prompt", None), "prompt")
    system = want_text(body.pop("system", None), "system")
    if body.pop("images", []):
        raise no_images("images")
    for name, (values, why) in _REFUSED.items():
        if name in body and body.pop(name) not in values:
            raise UnsupportedParameter(
                f"`{name}` would change the answer and is not supported: {why}.", param=name
            )
    for name in ("messages", "tools", "tool_choice"):
        if body.pop(name, []) != []:
            raise UnsupportedParameter(f"`{name}` belongs to /api/chat.", param=name)
    is_raw = _flag(body, "raw", default=False)
    if is_raw and system:
        raise invalid_value("system", "a raw prompt is sent as it is, without one.")
    if not prompt:
        return _request(body, None)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    return _request(body, messages, prompt if is_raw else None)


def _request(
    body: dict[str, Any], messages: list[dict[str, Any]] | None, raw: str | None = None
) -> OllamaRequest:
    """`body` has what chat and generate share. With `messages` None, which ask for nothing, all
    else is checked nevertheless."""
    stays = keep_alive.seconds(body.pop("keep_alive", None))
    stream = _flag(body, "stream", default=True)
    if body.pop("n", 1) != 1:
        raise UnsupportedParameter("An answer of Ollama's API has one choice.", param="n")
    if "stream_options" in body:
        raise UnsupportedParameter(
            "`stream_options` are OpenAI's: the last line always has the figures.",
            param="stream_options",
        )
    if "options" in body:
        body["options"] = _options(body["options"])
    nothing = [{"role": "user", "content": ""}]
    plain = {**body, "messages": nothing if messages is None else messages}
    # Whether calls may be told while they grow: here arguments are objects, and told whole.
    ignored, chat = CHAT_BODY.ignored(plain), parse_chat({**plain, "stream": False})
    given = chat if messages is not None else None
    has_format = bool(body.get("format")) and "format" not in ignored
    return OllamaRequest(chat.model, stream, stays, ignored, given, raw, has_format)


def _flag(body: dict[str, Any], name: str, *, default: bool) -> bool:
    value = body.pop(name, default)
    if not isinstance(value, bool):
        raise InvalidType(f"Invalid type for `{name}`: expected `bool`.", param=name)
    return value


def _options(options: object) -> object:
    """Ollama takes a `num_predict` of 0 and below for no limit."""
    if not isinstance(options, dict):
        return options
    kept = {name: each for name, each in options.items() if name not in _WITHOUT_EFFECT}
    limit = kept.get("num_predict")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and limit <= 0:
        kept["num_predict"] = -1
    return kept
