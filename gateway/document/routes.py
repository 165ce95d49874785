"""What is served, path by path, with the types of bodies and answers. Pure.

`ROUTES` lists what `gateway.app` serves; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, get_args

import msgspec

from gateway.anthropic import schemas as anthropic
from gateway.anthropic.errors import OVERLOADED, status_of
from gateway.anthropic.request import COUNT_BODY, MESSAGES_BODY
from gateway.openai import schemas
from gateway.openai.chat import CHAT_BODY
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.embeddings import EMBEDDING_BODY
from gateway.openai.validation import Body
from gateway.responses import schemas as responses
from gateway.responses.request import RESPONSE_BODY
from supervisor.errors import BulkheadError
from supervisor.wire.crash import CrashList, CrashReport

_POSTED = (400, 404, 408, 413, 415, 503)
"""A wrong body, an unknown model, a body that stops, is too large or no JSON, no worker."""

_OLLAMA_POSTS = {
    "chat": "Answer a conversation, as Ollama does; a stream of JSON lines unless told otherwise.",
    "generate": "Answer a prompt, as Ollama does; a stream of JSON lines unless told otherwise.",
    "embed": "Turn texts into vectors, as Ollama does.",
    "embeddings": "Turn a text into a vector, as older versions of Ollama do.",
    "show": "What a model is and can.",
    "pull": "Succeeds for what is served; nothing is downloaded.",
}
_OLLAMA_GETS = {
    "tags": "The models that may be asked for, as Ollama lists them.",
    "ps": "The models that are loaded, as Ollama lists them.",
    "version": "The version of Ollama's API, and of Bulkhead.",
}
"""Bodies and answers of both are described by Ollama's own documents; docs/api.md has what
differs."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method."""

    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct] | None
    errors: tuple[int, ...] = (503,)
    """Beside those that any route may answer."""
    body: Body[Any] | None = None
    """What is posted; a model's worker answers it."""
    chunks: tuple[type[msgspec.Struct], ...] = ()
    """What the events of its streams hold: one type, or such as their `type` tells apart."""
    error: type[msgspec.Struct] = schemas.Error
    status_of: Callable[[type[BulkheadError]], int] = attrgetter("status")
    """The status of an error on this route."""
    open: bool = False
    """Answered without a key."""
    events: bool = False
    """The answer is a stream, whatever the request says."""
    posts_object: bool = False
    """What is posted is an object that is not described further, but for its `model`."""


def _routes() -> Iterator[Route]:
    for at in ("/v1", ""):
        yield Route(
            "post",
            f"{at}/chat/completions",
            "Answer a conversation.",
            schemas.ChatCompletion,
            _POSTED,
            body=CHAT_BODY,
            chunks=(schemas.ChatCompletionChunk,),
        )
        yield Route(
            "post",
            f"{at}/completions",
            "Continue a text, without a chat template.",
            schemas.Completion,
            _POSTED,
            body=COMPLETION_BODY,
            chunks=(schemas.CompletionChunk,),
        )
        yield Route(
            "post",
            f"{at}/embeddings",
            "Turn texts into vectors.",
            schemas.EmbeddingList,
            _POSTED,
            body=EMBEDDING_BODY,
        )
        yield Route(
            "post",
            f"{at}/messages",
            "Answer a conversation, in Anthropic's form.",
            anthropic.MessageAnswer,
            (*_POSTED, OVERLOADED),
            body=MESSAGES_BODY,
            chunks=get_args(anthropic.MessageEvent),
            error=anthropic.MessagesError,
            status_of=status_of,
        )
        yield Route(
            "post",
            f"{at}/messages/count_tokens",
            "Count the tokens of a conversation's prompt.",
            anthropic.TokenCount,
            (*_POSTED, OVERLOADED),
            body=COUNT_BODY,
            error=anthropic.MessagesError,
            status_of=status_of,
        )
        yield Route(
            "post",
            f"{at}/responses",
            "Answer a conversation of items.",
            responses.ResponseObject,
            _POSTED,
            body=RESPONSE_BODY,
            chunks=get_args(responses.ResponseEvent),
        )
        one, kept = f"{at}/responses/{{id}}", "A response that is kept"
        yield Route("get", one, f"{kept}.", responses.ResponseObject, (400, 404))
        yield Route("delete", one, f"{kept} is forgotten.", responses.DeletedResponse, (404,))
        items = f"{one}/input_items"
        yield Route("get", items, f"{kept}: its input.", responses.InputItemList, (400, 404))
        yield Route("get", f"{at}/models", "The models that may be asked for.", schemas.ModelList)
        one = "One of them; an alias gives the model it stands for."
        yield Route("get", f"{at}/models/{{id}}", one, schemas.Model, (404, 503))
    for path, summary in _OLLAMA_POSTS.items():
        yield Route(
            "post",
            f"/api/{path}",
            summary,
            None,
            _POSTED,
            error=schemas.OllamaError,
            posts_object=True,
        )
    for path, summary in _OLLAMA_GETS.items():
        yield Route("get", f"/api/{path}", summary, None, error=schemas.OllamaError)
    actions = {
        "load": "Load a model; answered when it is ready.",
        "unload": "Unload a model once its running requests have ended.",
        "pin": "Keep a model loaded, whoever else wants the memory.",
        "unpin": "Let a model be unloaded again.",
    }
    for action, summary in actions.items():
        path = f"/admin/models/{{id}}/{action}"
        yield Route("post", path, summary, schemas.ManagedModel, (400, 404, 503))
    happens = "What happens to models from now on, as server-sent events."
    yield Route("get", "/admin/events", happens, None, events=True)
    yield Route("get", "/admin/crashes", "Crash reports, newest first.", CrashList)
    yield Route("get", "/admin/crashes/{id}", "One crash report, whole.", CrashReport, (404, 503))
    state = "The server's state: 200 while requests can be accepted, else 503."
    yield Route("get", "/health", state, schemas.Health, open=True)
    yield Route("get", "/", state, schemas.Health)
    yield Route("get", "/openapi.json", "This document.", None, ())


ROUTES = tuple(_routes())
