"""The API as an OpenAPI 3.1 document, made of the types that validate requests. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec

from gateway.anthropic.errors import OVERLOADED
from gateway.document.routes import ROUTES, Route
from gateway.openai import schemas
from gateway.openai.embeddings import INPUTS_MAX
from gateway.openai.parameters import CHOICES_MAX
from gateway.openai.validation import Body
from gateway.responses.items import HOSTED_ITEMS
from gateway.responses.tools import HOSTED_TOOLS
from supervisor.errors import BulkheadError
from supervisor.wire.crash import CrashReport

Schema = dict[str, Any]
_REF = "#/components/schemas/{name}"
_NULL: Schema = {"type": "null"}
_JSON = "application/json"
_EVENTS = "text/event-stream"
_LINES = "application/x-ndjson"
_ANY_ROUTE = (403, 500)
"""A foreign Host or Origin; a bug of ours."""


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
