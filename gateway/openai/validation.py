"""JSON to typed requests: msgspec checks the types, its errors become the contract's. Pure.

Messages name the parameter and the types, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from gateway.openai.fates import Fate, Translated, translate, unknown_parameter
from supervisor.errors import (
    BulkheadError,
    InvalidJSON,
    InvalidType,
    InvalidValue,
    MissingParameter,
    RequestTooLarge,
    UnsupportedParameter,
    UnsupportedValue,
)

S = TypeVar("S", bound=msgspec.Struct)

_PATH = re.compile(r" - at (?:`key` in )?`(?:key in )?\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>[^`]*)`")
_TYPE = re.compile(r"^Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`$")
_NAME_MAX = 64
VALUES_MAX = 2_000_000
"""About how many values a body may hold: all streams wait while it is parsed, 0.1 s a million."""
NESTING_MAX = 100
"""Levels of objects and arrays in what no type describes: encoders, templates and grammar compilers
recurse into it."""

_ABSENT_DEPTH = 8
"""Levels at which absent members are looked for: deeper than any parameter of ours."""
_LIST_MAX = 128
_VERBATIM = frozenset({"schema", "parameters", "input_schema", "input_examples", "json", "value"})
_VERBATIM_OUTSIDE = frozenset(
    {"messages", "prompt", "input", "json_schema", "format", "guided_json"}
)


class StrictStruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what takes no other members than its fields."""


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`, without the members that are null, or objects of nulls alone: both
    mean absent, at every depth but inside of a message's content and of schemas.

    Raises InvalidJSON, InvalidType or RequestTooLarge.
    """
    if body.count(b",") > VALUES_MAX:
        raise RequestTooLarge(f"The body holds more than {VALUES_MAX} values.")
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = _describe_json_error(error, body)
        raise InvalidJSON(f"The body is not valid JSON: {what}.") from None
    except RecursionError:
        raise InvalidJSON("The body is not usable JSON: it is nested too deeply.") from None
    if not isinstance(value, dict):
        raise InvalidType("The body must be a JSON object.")
    present = _present(value)
    assert isinstance(present, dict)
    if isinstance(messages := present.get("messages"), list):
        present["messages"] = [_without_absent(each) for each in messages]
    return present


def _without_absent(message: object) -> object:
    """A message as it came, but for its absent members: of its content nothing is changed."""
    if not isinstance(message, dict):
        return message
    return {name: each for name, each in message.items() if not _is_absent(name, each, 1)}


def _is_absent(name: str, value: object, depth: int) -> bool:
    """Null, or an object that holds nothing else. An empty object is one."""
    if not isinstance(value, dict) or not value or _is_verbatim(name, depth):
        return value is None
    if depth == _ABSENT_DEPTH:
        return False
    return all(_is_absent(inner, each, depth + 1) for inner, each in value.items())


def _present(value: object, depth: int = 0) -> object:
    """`value` without what counts as absent, and with integral numbers as integers."""
    if isinstance(value, float):
        return _integral(value)
    if depth > _ABSENT_DEPTH:
        return value
    if isinstance(value, list) and len(value) <= _LIST_MAX:
        return [_present(member, depth + 1) for member in value]
    if not isinstance(value, dict):
        return value
    return {
        name: member if _is_verbatim(name, depth) else _present(member, depth + 1)
        for name, member in value.items()
        if not _is_absent(name, member, depth)
    }


def _is_verbatim(name: str, depth: int) -> bool:
    """Whether the member holds what null is a value of, or that no parameter of ours is inside."""
    return name in _VERBATIM or (depth == 0 and name in _VERBATIM_OUTSIDE)


def _integral(value: float) -> float:
    """4.0 is an integer to JSON Schema, and to clients whose language has one kind of number."""
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _all_integral(value: Any) -> Any:
    """`value` with integral numbers as integers, at any depth."""
    match value:
        case float():
            return _integral(value)
        case list():
            return [_all_integral(each) for each in value]
        case dict():
            return {name: _all_integral(each) for name, each in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Body(Generic[S]):
    """What an endpoint takes: the struct that validates it, and the parameters beside its fields.

    `harmless` ones are dropped. Those in `neutral` are dropped when their value asks for nothing,
    and refused otherwise. `fates` are what becomes of parameters of other local servers. Every
    other is refused: what a client asks for is never silently ignored.
    """

    kind: type[S]
    harmless: frozenset[str]
    neutral: Mapping[str, tuple[object, ...]]
    fates: Mapping[str, Fate]

    def parse(self, raw: Mapping[str, Any]) -> S:
        """Raises the contract's 400 that names the parameter."""
        translated = self._translated(raw)
        try:
            return convert(self.known(translated.members), self.kind)
        except BulkheadError as error:
            raise translated.in_the_clients_words(error) from None

    def ignored(self, raw: Mapping[str, Any]) -> tuple[str, ...]:
        """The parameters of other servers that change nothing. Raises as `parse`."""
        return tuple(self._translated(raw).ignored)

    def _translated(self, raw: Mapping[str, Any]) -> Translated:
        own = frozenset(self.kind.__struct_fields__) | self.harmless | self.neutral.keys()
        return translate(raw, own, self.fates)

    def known(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The members of `raw` that are fields. Raises UnsupportedParameter for any other."""
        kept = {}
        for name, value in raw.items():
            if name in self.kind.__struct_fields__:
                kept[name] = value
            elif name in self.neutral:
                accepted = self.neutral[name]
                if not any(value == each and type(value) is type(each) for each in accepted):
                    raise UnsupportedParameter(
                        f"`{name}` is not supported by Bulkhead.", param=name
                    )
            elif name not in self.harmless:
                raise unknown_parameter(name[:_NAME_MAX])
        return kept


def convert(raw: Mapping[str, Any], kind: type[S]) -> S:
    """`raw` as the struct `kind`. Raises the contract's error for the first thing that is off."""
    try:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            if not str(error).startswith("Expected `int"):
                raise
            return msgspec.convert(_all_integral(raw), kind)  # lists of token ids, mostly
    except msgspec.ValidationError as error:
        raise contract_error(str(error)) from None
    except RecursionError:
        raise InvalidJSON("The body is not usable JSON: it is nested too deeply.") from None


def invalid_value(param: str, why: str) -> InvalidValue:
    return InvalidValue(f"Invalid value for `{param}`: {why}", param=param)


def missing_parameter(param: str) -> MissingParameter:
    return MissingParameter(f"Missing required parameter: `{param}`.", param=param)


def check_plain(value: object, param: str) -> None:
    """Check a part of the request that no type describes.

    Raises InvalidValue for JSON that later stages can't carry: nested deeper than `NESTING_MAX`, or
    with an integer that 64 bits don't hold.
    """
    level: list[object] = [value]
    for _ in range(NESTING_MAX + 1):
        for each in level:
            if isinstance(each, int) and not -(2**63) <= each < 2**64:
                raise invalid_value(param, "it holds an integer beyond 64 bits.")
        holders = [each for each in level if isinstance(each, dict | list)]
        if not holders:
            return
        level = [
            inner
            for each in holders
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    raise invalid_value(param, f"nested deeper than {NESTING_MAX} levels.")


def contract_error(message: str) -> BulkheadError:
    """msgspec's error message as the contract's error.

    Null means absent at every depth. Optional members take it: where it does not fit, a required
    member is missing.
    """
    place = _PATH.search(message)
    path = place["path"] if place else ""
    sentence = message[: place.start()] if place else message
    if missing := _MISSING.match(sentence):
        return missing_parameter(_join(path, missing["name"]))
    if unknown := _UNKNOWN.match(sentence):
        return unknown_parameter(_join(path, unknown["name"][:_NAME_MAX]))
    at = path or None
    label = f"`{path}`" if path else "the body"
    if wrong := _TYPE.match(sentence):
        expected, got = wrong["expected"], wrong["got"].replace("NoneType", "null")  # of a tag
        if got == "null" and path and not path.endswith("]"):
            return missing_parameter(path)
        if expected == "null":  # a member that is known for its null alone
            return UnsupportedParameter(f"{label} is not supported by Bulkhead.", param=at)
        return InvalidType(f"Invalid type for {label}: expected {expected}, got {got}.", param=at)
    if sentence.startswith(("Invalid enum value", "Invalid value")):
        # A choice or a tag; the sentence quotes the value.
        return UnsupportedValue(f"Unsupported value for {label}.", param=at)
    if sentence.startswith("Expected"):
        wanted = sentence.removeprefix("Expected ").replace("`", "")
        return InvalidValue(f"Invalid value for {label}: expected {wanted}.", param=at)
    return InvalidValue(f"Invalid value for {label}.", param=at)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _describe_json_error(error: Exception, body: bytes | bytearray) -> str:
    """What is wrong with the JSON and where, as far as it is known, without the text around it."""
    message = str(error)
    try:
        # Of a byte that begins no character the parser may say that its string does not end.
        body.decode()
    except UnicodeDecodeError:
        return "it holds a string that is not UTF-8"
    if "out of range" in message:
        return "it holds a number that is out of range"
    what = "half of a surrogate pair" if "surrogate" in message else "error"
    found = re.search(r"\(byte (\d+)\)", message)
    # The parser says the same of half of a surrogate pair in the last characters.
    return f"{what} at byte {found[1]}" if found else "it ends within a value or a `\\u` escape"
