"""The rules of tool calls, in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from supervisor.errors import InvalidValue, UnsupportedValue
from supervisor.wire.frames import Chat, Generate
from worker.grammar.schema import compilable
from worker.output.parts import CallPlace
from worker.output.tools.call_forms import CallForm, ForcedForm
from worker.output.tools.harmony import harmony_rules

MAX_CALLS = 16
"""Tool calls in one forced answer: a model that can't stop calling would never end."""
_LETTER = r'[^"\\\x00-\x1f]|\\["\\\/bfnrt]'
_MENDED_LETTER = r'[^"\\\x00-\x08\x0b\x0c\x0e-\x1f]|\\[^u\x00-\x1f]'
_ESCAPE = (
    r"\\u([0-9abcefABCEF][0-9a-fA-F]|[dD][0-7])[0-9a-fA-F]{2}"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_OBJECT = r"""
members: member (next member)*
member: STRING WS? ":" WS? value
NUMBER: /-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?/
"""
"""Runs of digits are bounded: a model that falls into one would spend its tokens there."""
_VALUE = 'value: any_object | array | STRING | NUMBER | "true" | "false" | "null"'
ANY_OBJECT = rf"""
any_object: "{{" WS? (members WS?)? "}}"
array: "[" WS? (value (next value)* WS?)? "]"
next: WS? "," WS?
{_VALUE}
STRING: /"({_LETTER}|{_ESCAPE})*"/
{_OBJECT}"""
"""A JSON object of any kind. Half a surrogate pair is not Unicode text."""
MENDED_OBJECT = rf"""
any_object: "{{" WS? (members (WS? ",")? WS?)? "}}"
open_object: "{{" WS? members
array: "[" WS? (value (next value)* (WS? ",")? WS?)? "]"
next: WS? "," WS? | LINE
LINE: /[ \t\r]{{0,20}}\n[ \n\r\t]{{0,20}}/
{_VALUE} | "True" | "False" | "None"
STRING: /"({_MENDED_LETTER}|{_ESCAPE})*"/
{_OBJECT}"""
"""The same with what `worker.output.tools.json_repair` mends, so that a model which writes that is
not led astray. For calls that are read when they are whole."""
_SPACE = "WS: /[ \\n\\r\\t]{1,40}/\n"
"""White space between the parts of JSON, bounded for the same reason."""
_REST = "REST: /(.|\\n)+/\n"
"""What a token may have behind that with which the grammar ends."""
_LEAD = "LEAD: /[ \\n\\r\\t;,]{1,40}/\n"
"""What a token may have before the JSON that begins in it."""
_NO_CALL = r"""
no_call: OTHER_KEY REST? | NO_KEY REST?
    | "\"type\"" WS? ":" WS? OTHER_KIND WS? "," WS? OTHER_KEY REST?
OTHER_KEY: /"[^"\\]*"/ & ~/"(name|type|id|arguments|parameters)"/
OTHER_KIND: /"[^"\\]*"/ & ~/"function"/
NO_KEY: /[^"\s]/
"""
"""How an object goes on that is none of the calls that nothing marks: as soon as it has a key that
they don't have, it is text."""


class CallableTool(NamedTuple):
    """A function that may be called. `schema` is as llguidance takes it, "" = any object will do;
    `place` is where the request has the one it was made of."""

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
        schema = ""
        if function.get("strict") is True:
            schema = _schema(function.get("parameters"), place, strict=True)
        elif enforced:
            with suppress(UnsupportedValue):
                schema = _schema(function.get("parameters"), place, strict=False)
        found.append(CallableTool(name, schema, place))
    if not found:
        raise InvalidValue("There is no tool that may be called.", param="tools")
    return found


def _schema(parameters: object, place: str, *, strict: bool) -> str:
    """A function's parameters as llguidance takes them."""
    if parameters is None:
        # OpenAI's rule: a function without them takes none.
        parameters = {"properties": {}, "additionalProperties": False}
    if parameters is True:
        parameters = {}
    if not isinstance(parameters, dict) or not _object(parameters.get("type", "object")):
        raise InvalidValue(
            f"A function's parameters must be an object's schema (at {place}).", param=place
        )
    # Only strict tools promise their schema; of others all is enforced that can be.
    return compilable({**parameters, "type": "object"}, place, lenient=not strict)


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
    rules += [f"args{i}: {_arguments(tool.schema)}" for i, tool in enumerate(tools)]
    loose = "" if all(tool.schema for tool in tools) else ANY_OBJECT + _SPACE
    return "\n".join(rules) + "\n" + loose


def native_rules(
    tools: Sequence[CallableTool], form: CallForm, marker: Callable[[str], str]
) -> Mapping[CallPlace, str]:
    """The grammars of calls in the model's own form, by the place from which on they hold."""
    # Tools without a schema share a rule: there may be a hundred of them.
    groups: dict[str, list[str]] = {}
    for tool in tools:
        groups.setdefault(tool.schema, []).append(tool.name)
    names = list(groups.values())
    arguments = "".join(f"args{i}: {_arguments(schema)}\n" for i, schema in enumerate(groups))
    shared = f"{arguments}{MENDED_OBJECT}{_SPACE}"
    listed = 'WS? (object | "[" WS? object (WS? "," WS? object)* WS? "]")'
    start, end = (marker(text) if text else "" for text in (form.start, form.end))
    match form.kind:
        case "hermes":
            objects = f"{_object_rules(names)}{shared}"
            # Some models end the answer where the end marker should be.
            section = (
                f"start: {listed} (WS? {end})? | WS? unclosed WS? {end}\n"
                f"{_unclosed_rules(names, list(groups))}{objects}"
            )
            inner = f"start: LEAD? object WS?\n{objects}{_LEAD}"
            return {"section": section, "thought": inner, "object": inner}
        case "llama":
            objects = f"{_object_rules(names)}{shared}"
            bare = (
                f'start: LEAD? (object WS? | "{{" WS? no_call)\n{objects}{_LEAD}{_NO_CALL}{_REST}'
            )
            return {"section": f"start: WS? object WS?\n{objects}", "object": bare}
        case "mistral":
            calls = _named(names, "id? {opening} WS?", {"opening": marker("[ARGS]")})
            section = (
                f"start: WS? named (WS? {start}? WS? named)* WS? | {listed} WS?\n{calls}"
                f"id: {marker('[CALL_ID]')} /[a-zA-Z0-9_-]{{1,64}}/\n"
                f"{_object_rules(names)}{shared}"
            )
            return {"section": section}
        case "kimi_k2":
            opening = marker("<|tool_call_argument_begin|>")
            calls = _named(names, '":" /[0-9]{{1,4}}/ {opening} WS?', {"opening": opening})
            begin, stop = marker("<|tool_call_begin|>"), marker("<|tool_call_end|>")
            section = (
                f"start: WS? call (WS? call)* WS? {end}\n"
                f'call: {begin} WS? "functions." named WS? {stop}\n{calls}{shared}'
            )
            return {"section": section}
        case "harmony":
            return {"recipient": _harmony(names, marker) + shared}
    before = " ".join(map(marker, form.before))
    behind = " | ".join(each if each.startswith("/") else marker(each) for each in form.behind)
    every = _choice([tool.name for tool in tools])
    return {"section": f"start: WS? {before} ({every}) ({behind}) REST?\n{_SPACE}{_REST}"}


def _harmony(names: Sequence[Sequence[str]], marker: Callable[[str], str]) -> str:
    """What follows `to=` in a header: a function, the rest of the header, and the arguments."""
    channel, constrain = marker("<|channel|>"), marker("<|constrain|>")
    calls = _named(names, "rest WS?", {})
    return (
        f'start: "functions." named WS?\n{calls}'
        f'rest: (" "? {channel} " "? ("commentary" | "analysis"))? kind? " "? '
        f"{marker('<|message|>')}\n"
        f'kind: " "? {constrain} " "? ("json" | "code") | " " ("json" | "code")\n'
    )


def _arguments(schema: str) -> str:
    return f"%json {schema}" if schema else "any_object"


def _named(names: Sequence[Sequence[str]], between: str, marks: Mapping[str, str]) -> str:
    """The rule `named`: a name, what stands between, and the arguments."""
    middle = between.format(**marks)
    calls = " | ".join(f"({_choice(group)}) {middle} args{i}" for i, group in enumerate(names))
    return f"named: {calls}\n"


def _choice(names: Sequence[str]) -> str:
    return " | ".join(map(literal, names))


def _object_rules(names: Sequence[Sequence[str]]) -> str:
    """The rule `object`: a call as JSON."""
    bodies = " | ".join(f"body{i}" for i in range(len(names)))
    rules = [
        f'object: "{{" WS? kind? "\\"name\\"" WS? ":" WS? ({bodies}) id_member? WS? "}}"',
        'kind: "\\"type\\"" WS? ":" WS? "\\"function\\"" WS? "," WS?',
        'id_member: WS? "," WS? "\\"id\\"" WS? ":" WS? STRING',
        'arguments: WS? "," WS? ("\\"arguments\\"" | "\\"parameters\\"") WS? ":" WS?',
    ]
    for i, group in enumerate(names):
        rules.append(f"body{i}: ({_choice([_json(name) for name in group])}) arguments args{i}")
    return "\n".join(rules) + "\n"


def _unclosed_rules(names: Sequence[Sequence[str]], schemas: Sequence[str]) -> str:
    """The rule `unclosed`: a call whose last bracket is missing, or, if any object will do for its
    arguments, the last two. An end marker has to follow: nothing else says that it is over."""
    bodies = " | ".join(f"open{i}" for i in range(len(names)))
    rules = [f'unclosed: "{{" WS? kind? "\\"name\\"" WS? ":" WS? ({bodies})']
    for i, (group, schema) in enumerate(zip(names, schemas, strict=True)):
        given = f"args{i}" if schema else f"(args{i} | open_object)"
        choice = _choice([_json(name) for name in group])
        rules.append(f"open{i}: ({choice}) arguments {given}")
    return "\n".join(rules) + "\n"


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def literal(text: str) -> str:
    """A Lark string. Its escapes are JSON's."""
    return json.dumps(text)
