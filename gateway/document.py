"""The API as an OpenAPI 3.1 document, made of the types that validate requests. Pure.

`ROUTES` lists what `gateway.app` serves; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from operator import attrgetter
from typing import Any, get_args

import msgspec

from gateway.anthropic import schemas as anthropic
from gateway.anthropic.errors import OVERLOADED, status_of
from gateway.anthropic.request import COUNT_BODY, MESSAGES_BODY
from gateway.openai import schemas
from gateway.openai.chat import CHAT_BODY
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.embeddings import EMBEDDING_BODY, INPUTS_MAX
from gateway.openai.parameters import CHOICES_MAX
from gateway.openai.validation import Body
from gateway.responses import schemas as responses
from gateway.responses.items import HOSTED_ITEMS
from gateway.responses.request import RESPONSE_BODY
from gateway.responses.tools import HOSTED_TOOLS
from supervisor.errors import BulkheadError
from supervisor.wire.crash import CrashList, CrashReport

Schema = dict[str, Any]
_REF = "#/components/schemas/{name}"
_NULL: Schema = {"type": "null"}
_JSON = "application/json"
_EVENTS = "text/event-stream"
_LINES = "application/x-ndjson"
_ANY_ROUTE = (403, 500)
"""A foreign Host or Origin; a bug of ours."""
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


def document(*, keys: bool) -> Schema:
    """The whole document. `keys`: a key is wanted on every route but the open ones."""
    paths: dict[str, Schema] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    bearer = {"type": "http", "scheme": "bearer"}
    header = {"type": "apiKey", "in": "header", "name": "x-api-key"}
    # Without configured keys any is accepted, and none as well.
    security: list[Schema] = [{"bearer": []}, {"header": []}]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bulkhead",
            "version": version("mlx-bulkhead"),
            "description": "An OpenAI endpoint with every MLX model in a process of its own.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": bearer, "header": header},
        },
        "security": security if keys else [{}, *security],
    }


def _operation(route: Route) -> Schema:
    operation: Schema = {"summary": route.summary}
    name = route.path.rpartition("/")[2] if "{" not in route.path else "model"
    if "/responses/" in route.path:
        name = "response" if route.path.endswith("}") else "response_input_items"
    if route.path.startswith("/v1"):
        style = "chat_completion" if "/chat/" in route.path else "completion"
        operation["operationId"] = f"{route.method}_{name}".replace("completions", style)
    if route.open:
        operation["security"] = [{}]
    if "{id}" in route.path:
        described = "A name or an alias. It may hold `/` and `:`, encoded or not."
        if route.answer is CrashReport:
            described = "One of those that the list has."
        elif "/responses/" in route.path:
            described = "What the response has as its `id`."
        operation["parameters"] = [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": described,
                "schema": {"type": "string", "minLength": 1},
            }
        ]
    if route.body is not None:
        schema = {"$ref": _ref(route.body.kind)}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    if route.posts_object:
        posted = {"type": "object", "properties": {"model": {"type": "string"}}}
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": posted}}}
    operation["responses"] = {"200": _success(route)} | {
        str(status): _failure(status, route)
        for status in sorted({*route.errors, *_ANY_ROUTE, *(() if route.open else (401,))})
    }
    return operation


def _success(route: Route) -> Schema:
    schema: Schema = {"type": "object"} if route.answer is None else {"$ref": _ref(route.answer)}
    content: Schema = {_JSON: {"schema": schema}}
    if route.path in ("/api/chat", "/api/generate", "/api/pull"):
        content[_LINES] = {"schema": {"type": "string"}}
    if route.events:
        content = {_EVENTS: {"schema": {"type": "string"}}}
    description = "OK"
    if route.chunks:
        kind, *others = (each.__name__ for each in route.chunks)
        description = (
            f"OK. With `stream`, server-sent events: each event's data is a {kind}, and the last "
            "one's is `[DONE]`; or, after a failure, the last one's is an Error."
        )
        if others:
            description = (
                "OK. With `stream`, server-sent events, each with the name that is its data's "
                f"`type`: {', '.join([kind, *others])}."
            )
        content[_EVENTS] = {"schema": {"type": "string"}}
    headers = {
        "x-request-id": "The client's own if it sent a sane one, else a new one.",
        "openai-processing-ms": "Milliseconds until the answer, or the stream's first token.",
    }
    if route.body is not None:
        headers["x-bulkhead-model"] = "The served name."
        headers["x-bulkhead-worker"] = "`name#generation`."
        headers["x-bulkhead-recoveries"] = "How often another worker went on, if ever."
        headers["x-bulkhead-ignored"] = (
            "The parameters of other local servers that were sent and change nothing here."
        )
        headers["x-bulkhead-fallback"] = "The model that was asked for, if its fallback answers."
    return {"description": description, "headers": _headers(headers), "content": content}


def _failure(status: int, route: Route) -> Schema:
    codes = ", ".join(sorted(f"`{code}`" for code in _codes(status, route)))
    phrase = "Overloaded" if status == OVERLOADED else HTTPStatus(status).phrase
    description = f"{phrase}: {codes}."
    schema: Schema = {"$ref": _ref(route.error)}
    if route.answer is schemas.Health and status == 503:
        schema = {"$ref": _ref(schemas.Health)}
        description = "Requests can't be accepted at the moment."
    headers = {}
    if status in (503, OVERLOADED):
        headers["Retry-After"] = "Seconds, 1 to 59."
        headers["x-should-retry"] = "`true` or `false`, where the status alone would mislead."
    return {
        "description": description,
        "headers": _headers(headers),
        "content": {_JSON: {"schema": schema}},
    }


def _headers(described: Mapping[str, str]) -> Schema:
    return {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in described.items()
    }


def _codes(status: int, route: Route) -> set[str]:
    """The codes of the errors that have that status there."""
    kinds, codes = [BulkheadError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if not kind.__subclasses__() and route.status_of(kind) == status:
            codes.add(kind.code)
    return codes


def _ref(kind: type[msgspec.Struct]) -> str:
    return _REF.format(name=kind.__name__)


def _schemas() -> dict[str, Schema]:
    bodies = {route.body.kind: route.body for route in ROUTES if route.body is not None}
    answers = [
        each
        for route in ROUTES
        for each in (route.answer, route.error, *route.chunks)
        if each is not None
    ]
    kinds = [*bodies, *dict.fromkeys(answers)]
    _, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    for body in bodies.values():
        _complete(components[body.kind.__name__], body)
    _tell_roles_apart(components["Message"])
    _name_kinds(components, "HostedTool", HOSTED_TOOLS)
    _name_kinds(components, "HostedItem", HOSTED_ITEMS)
    _unmix(components["CompletionRequest"]["properties"]["prompt"], 1, CHOICES_MAX)
    _unmix(components["EmbeddingRequest"]["properties"]["input"], 1, INPUTS_MAX)
    return components


def _name_kinds(components: dict[str, Schema], name: str, kinds: Iterable[str]) -> None:
    """What is taken as the component `name`, which is one type here, has one of these types."""
    mine, reference = components[name]["properties"], _REF.format(name=name)
    (own,) = mine["type"]["enum"]
    mine["type"] = {"enum": sorted(kinds)}
    trees: list[Any] = [components]
    while trees:
        tree = trees.pop()
        trees += tree.values() if isinstance(tree, dict) else tree
        trees = [each for each in trees if isinstance(each, dict | list)]
        mapping = tree.get("mapping") if isinstance(tree, dict) else None
        if isinstance(mapping, dict) and mapping.get(own) == reference:
            del mapping[own]
            mapping |= dict.fromkeys(sorted(kinds), reference)


def _tell_roles_apart(message: Schema) -> None:
    """An assistant may be without content, and alone has calls; no type can say so."""
    properties = dict(message.pop("properties"))
    content = {"anyOf": [each for each in properties["content"]["anyOf"] if each != _NULL]}
    others = [role for role in properties["role"]["enum"] if role != "assistant"]
    told = {"role": {"enum": others}, "content": content, "tool_calls": {"enum": [[], None]}}
    del message["type"], message["required"]
    message["anyOf"] = [
        {
            "type": "object",
            "properties": {**properties, "role": {"enum": ["assistant"]}},
            "required": ["role"],
        },
        {
            "type": "object",
            "properties": {**properties, **told},
            "required": ["role", "content"],
        },
    ]


def _unmix(schema: Schema, least: int, most: int) -> None:
    """A list of texts, of token ids or of lists of those, and not of all together."""
    text, mixed = schema["anyOf"][0], schema["anyOf"][1]
    kinds = {each["type"]: each for each in mixed["items"]["anyOf"]}
    ids = kinds["array"] | {"minItems": 1}
    lists = [{"type": "array", "items": kinds["string"], "minItems": least, "maxItems": most}]
    lists += [ids, {"type": "array", "items": ids, "minItems": least, "maxItems": most}]
    schema["anyOf"] = [text, *lists]


def _complete(schema: Schema, body: Body[Any]) -> None:
    """What is accepted beside the type's fields, and nulls, which mean absent."""
    required = schema.get("required", [])
    properties = {
        name: member if name in required else _nullable(member)
        for name, member in schema["properties"].items()
    }
    for name, values in body.neutral.items():
        properties[name] = {
            "enum": [*values, None],
            "description": "Not supported: only what asks for nothing is accepted.",
        }
    for name in body.harmless:
        properties[name] = {"description": "Accepted, without effect."}
    schema["properties"] = dict(sorted(properties.items()))
    schema["additionalProperties"] = False
    told = schema.get("description", "")  # none where Python drops docstrings: PYTHONOPTIMIZE=2
    schema["description"] = told + (
        " What is taken besides, of other local servers' parameters, is in Bulkhead's docs/api.md."
    )


def _nullable(schema: Schema) -> Schema:
    if any(choice.get("type") == "null" for choice in schema.get("anyOf", ())):
        return schema
    return {"anyOf": [schema, {"type": "null"}]}
