"""The rules of tool calls, in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from supervisor.errors import InvalidValue
from supervisor.wire.frames import Chat, Generate
from worker.grammar.schema import compilable
from worker.output.tools.call_forms import CallJSON, ForcedForm
from worker.output.tools.harmony import harmony_rules

MAX_CALLS = 16
"""Tool calls in one forced answer: a model that can't stop calling would never end."""
_EDGES = "LEAD: /[ \\n\\r\\t]{1,2}/\nTAIL: /[ \\n\\r\\t]{1,4}/\n"
"""White space that a token may have around the JSON that begins or ends in it."""


class CallableTool(NamedTuple):
    """A function that may be called. `schema` is as llguidance takes it, `place` where the request
    has the one it was made of."""

    name: str
    schema: str
    place: str


def tools(request: Generate, *, enforced: bool) -> list[CallableTool]:
    """The functions that may be called. `enforced`: of those that are not strict all of the schema
    that can be; else any object will do. Raises InvalidValue or UnsupportedValue."""
    found: list[CallableTool] = []
    shown = request.prompt.tools if isinstance(request.prompt, Chat) else []
    calling = request.calling
    assert calling is not None
    names = set(calling.names)
    for index, tool in enumerate(shown):
        function = tool.get("function")
        if not isinstance(function, dict) or function.get("name") not in names:
            continue
        name = str(function["name"])
        names.remove(name)
        number = calling.places[index] if index < len(calling.places) else index
        place = f"tools[{number}].function.parameters"
        strict = function.get("strict") is True
        parameters = function.get("parameters")
        if not strict and not enforced:
            parameters = True
        elif parameters is None:
            # OpenAI's rule: a function without them takes none.
            parameters = {"properties": {}, "additionalProperties": False}
        if parameters is True:
            parameters = {}
        if not isinstance(parameters, dict) or not _object(parameters.get("type", "object")):
            raise InvalidValue(
                f"A function's parameters must be an object's schema (at {place}).", param=place
            )
        # Only strict tools promise their schema; of others all is enforced that can be.
        schema = compilable({**parameters, "type": "object"}, place, lenient=not strict)
        found.append(CallableTool(name, schema, place))
    if not found:
        raise InvalidValue("There is no tool that may be called.", param="tools")
    return found


def _object(types: object) -> bool:
    return types == "object" or (isinstance(types, list) and "object" in types)


def forced_rules(
    tools: Sequence[CallableTool], marker: Callable[[str], str], *, form: ForcedForm, several: bool
) -> str:
    """The rule `calls`: calls alone, in one of the forms that are forced on models. `marker` makes
    a terminal of a marker's text."""
    heads = [f'{{"name": {_json(tool.name)}, "arguments": ' for tool in tools]
    call = " | ".join(f'{literal(head)} args{i} "}}"' for i, head in enumerate(heads))
    more = MAX_CALLS - 1 if several else 0
    if form == "harmony":
        rules, call = harmony_rules([tool.name for tool in tools], marker)
    elif form == "hermes":
        opening, closing = marker("<tool_call>"), marker("</tool_call>")
        rules = [
            f'calls: call ("\\n" call){{0,{more}}}' if more else "calls: call",
            f'call: {opening} "\\n" object "\\n" {closing}',
        ]
    else:
        rules = [
            f'calls: "[" object (", " object){{0,{more}}} "]"' if more else 'calls: "[" object "]"'
        ]
    rules.append(f"object: {call}")
    rules += [f"args{i}: %json {tool.schema}" for i, tool in enumerate(tools)]
    return "\n".join(rules) + "\n"


def call_json_rules(
    tools: Sequence[CallableTool], form: CallJSON
) -> Mapping[str, tuple[str, Sequence[CallableTool]]]:
    """The rules of JSON in calls of the model's own form, and the tools in them, by what
    `json_expected` tells: "" = a call object, a name = the function's arguments."""
    rules: dict[str, tuple[str, Sequence[CallableTool]]] = {}
    if form.named:
        for tool in tools:
            text = f"start: LEAD? args TAIL?\nargs: %json {tool.schema}\n{_EDGES}"
            rules[tool.name] = text, [tool]
    if form.arguments:
        calls = [
            f'call{i}: "{{" kind? {_key("name")} {literal(_json(tool.name))} "," " "? '
            f'{_key(form.arguments)} args{i} "}}"\nargs{i}: %json {tool.schema}\n'
            for i, tool in enumerate(tools)
        ]
        choice = " | ".join(f"call{i}" for i in range(len(tools)))
        kind = f'kind: {_key("type")} {literal(_json("function"))} "," " "?\n'
        rules[""] = f"start: LEAD? ({choice}) TAIL?\n{''.join(calls)}{kind}{_EDGES}", tools
    return rules


def _key(name: str) -> str:
    return f'{literal(_json(name) + ":")} " "?'


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def literal(text: str) -> str:
    """A Lark string. Its escapes are JSON's."""
    return json.dumps(text)
