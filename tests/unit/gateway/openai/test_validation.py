"""gateway.openai.validation: JSON in, the contract's words out, and never the client's own."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gateway.openai.validation import VALUES_MAX, Body, convert, parse_object
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

SECRET = "what-the-client-said"
patient = settings(deadline=None, max_examples=100)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"{}", {}),
        (b' {"a": 1} \n', {"a": 1}),
        (
            b'{"a": null, "b": false, "c": 0, "d": "", "e": []}',
            {"b": False, "c": 0, "d": "", "e": []},
        ),
        (b'{"a": 1, "a": 2}', {"a": 2}),  # as every other server reads it: the last one counts
        (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "é😀"}'.encode(), {"a": "é😀"}),
        (b'{"a": "\\u0000"}', {"a": "\0"}),
        (b'{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
    ],
)
def test_an_object_is_read_and_null_means_absent(body: bytes, value: dict[str, Any]) -> None:
    assert parse_object(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"a": tru',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 1} x',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00x"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\xff"}',
        b"\xff\xfe{\0}\0",
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "line\nbreak"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b'{"a":' * 100_000,
        SECRET.encode(),
        b'{"' + SECRET.encode() + b'": ' + SECRET.encode() + b"}",
    ],
)
def test_what_is_no_json_is_a_400_that_quotes_nothing(body: bytes) -> None:
    with pytest.raises(InvalidJSON) as caught:
        parse_object(body)
    assert caught.value.status == 400
    assert SECRET not in caught.value.message


def test_a_position_in_broken_json_is_told() -> None:
    with pytest.raises(InvalidJSON, match="byte 6"):
        parse_object(b'{"a": }')


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1e999}', "a number that is out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number that is out of range"),
        (b'{"a": "\\ud800 and more"}', "half of a surrogate pair at byte"),
        (b'{"a": "\\ud800"}', r"ends within a value or a `\\u` escape"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\xff', "not UTF-8"),
        (b'{"a": 1', "ends within a value"),
    ],
)
def test_what_is_wrong_with_broken_json_is_told(body: bytes, words: str) -> None:
    with pytest.raises(InvalidJSON, match=words):
        parse_object(body)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null", b"true"])
def test_what_is_no_object_is_a_type_error(body: bytes) -> None:
    with pytest.raises(InvalidType, match="JSON object"):
        parse_object(body)


@patient
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0d8tfn1e+-. ', max_size=60).map(str.encode)
)
def test_arbitrary_bytes_are_an_object_or_a_400(body: bytes) -> None:
    with contextlib.suppress(InvalidJSON, InvalidType):
        value = parse_object(body)
        assert value == {k: v for k, v in json.loads(body).items() if v is not None}


# ── members ──────────────────────────────────────────────────────────────────────────────────────


class Fields(msgspec.Struct):
    model: Any = None


BODY = Body(
    Fields,
    harmless=frozenset({"user"}),
    neutral={"n": (1,), "echo": (False,), "top_k": (0, -1), "bias": ({},)},
    fates={},
)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ({}, {}),
        ({"model": 5}, {"model": 5}),
        ({"user": {"any": "thing"}}, {}),
        ({"n": 1, "echo": False, "top_k": -1, "bias": {}}, {}),
        ({"top_k": 0}, {}),
    ],
)
def test_what_asks_for_nothing_is_dropped(raw: dict[str, Any], kept: dict[str, Any]) -> None:
    assert BODY.known(raw) == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),  # equal to 1 in Python alone
        ("n", 1.0),
        ("n", SECRET),
        ("echo", True),
        ("echo", 0),
        ("bias", {"1": 5}),
        ("bias", []),
        ("unknown", SECRET),
        ("Model", "m"),
        ("", 1),
    ],
)
def test_what_asks_for_something_unsupported_is_refused(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        BODY.known({name: value})
    assert caught.value.param == name
    assert f"`{name}`" in caught.value.message
    assert SECRET not in caught.value.message


def test_a_long_name_is_shown_in_part() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        BODY.known({"x" * 10_000: 1})
    assert len(caught.value.message) < 200
    assert len(caught.value.param or "") < 100


# ── types ────────────────────────────────────────────────────────────────────────────────────────


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["a", "b"]
    text: str = ""


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    items: Annotated[list[Inner], Meta(min_length=1, max_length=2)]
    size: Annotated[int, Meta(ge=1, le=10)] | None = None
    share: Annotated[float, Meta(ge=0, le=1)] | None = None
    name: Annotated[str, Meta(min_length=1)] | list[str] | None = None
    flag: bool = False
    inner: Inner | None = None


GOOD: dict[str, Any] = {"items": [{"kind": "a"}]}


def test_what_fits_is_converted() -> None:
    raw = {**GOOD, "size": 3, "share": 1, "name": ["x"], "flag": True}
    expected = Outer(items=[Inner("a")], size=3, share=1.0, name=["x"], flag=True)
    assert convert(raw, Outer) == expected


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        ({}, MissingParameter, "items"),
        ({"items": [{}]}, MissingParameter, "items[0].kind"),
        ({"items": [{"kind": "a"}, {"text": SECRET}]}, MissingParameter, "items[1].kind"),
        ({**GOOD, "inner": {}}, MissingParameter, "inner.kind"),
        ({"items": [{"kind": "a", "x": SECRET}]}, UnsupportedParameter, "items[0].x"),
        ({"items": SECRET}, InvalidType, "items"),
        ({"items": [SECRET]}, InvalidType, "items[0]"),
        ({"items": [{"kind": 5}]}, InvalidType, "items[0].kind"),
        ({"items": [{"kind": "a", "text": 5}]}, InvalidType, "items[0].text"),
        ({**GOOD, "size": SECRET}, InvalidType, "size"),
        ({**GOOD, "size": 1.5}, InvalidType, "size"),
        ({**GOOD, "size": True}, InvalidType, "size"),
        ({**GOOD, "share": SECRET}, InvalidType, "share"),
        ({**GOOD, "name": 5}, InvalidType, "name"),
        ({**GOOD, "name": ["x", 5]}, InvalidType, "name[1]"),
        ({**GOOD, "flag": 1}, InvalidType, "flag"),
        ({**GOOD, "flag": SECRET}, InvalidType, "flag"),
        ({"items": [{"kind": SECRET}]}, UnsupportedValue, "items[0].kind"),
        ({"items": []}, InvalidValue, "items"),
        ({"items": [{"kind": "a"}] * 3}, InvalidValue, "items"),
        ({**GOOD, "size": 0}, InvalidValue, "size"),
        ({**GOOD, "size": 11}, InvalidValue, "size"),
        ({**GOOD, "size": 2**70}, InvalidValue, "size"),
        ({**GOOD, "share": -0.1}, InvalidValue, "share"),
        ({**GOOD, "share": 1.1}, InvalidValue, "share"),
        ({**GOOD, "name": ""}, InvalidValue, "name"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(
    raw: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    with pytest.raises(BulkheadError) as caught:
        convert(raw, Outer)
    assert type(caught.value) is kind
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message
    assert SECRET not in caught.value.message


def test_a_value_nested_beyond_all_bounds_is_a_400() -> None:
    tree: list[Any] = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(BulkheadError) as caught:
        convert({"items": tree}, Outer)
    assert caught.value.status == 400
    while tree:
        tree = tree.pop()


def test_a_body_of_millions_of_values_is_not_read() -> None:
    body = b'{"prompt": [1' + b",1" * VALUES_MAX + b"]}"
    assert len(parse_object(body)["prompt"]) == VALUES_MAX + 1
    with pytest.raises(RequestTooLarge):
        parse_object(body.replace(b"]", b",1]"))


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    value = parse_object(b'{"a": 4.0, "b": 4.5, "c": 1e300, "d": -0.0}')
    assert value == {"a": 4, "b": 4.5, "c": 1e300, "d": 0}
    assert [type(each) for each in value.values()] == [int, float, float, int]
