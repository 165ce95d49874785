"""worker.output.tools.json_repair: what is told is JSON, however broken what came was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.output.tools.json_repair import RepairingScanner, repaired_object
from worker.output.tools.json_scanner import NotJSON

patient = settings(deadline=None, max_examples=150)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]),
        max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
        max_size=3),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


def scanned(text: str) -> tuple[RepairingScanner, bool]:
    """The scanner behind as much of the text as it takes, and whether that is all."""
    scanner = RepairingScanner()
    for letter in text:
        try:
            scanner.push(letter)
        except NotJSON:
            return scanner, False
        if scanner.done:
            break
    return scanner, True


@patient
@given(objects, st.sampled_from([None, 1]), st.integers(0, 4))
def test_json_is_left_as_it_is(value: Any, indent: int | None, first: int) -> None:
    text = json.dumps(value, indent=indent)
    assert repaired_object(f" {text}\n") == text
    for size in range(first, len(text), 5):
        with pytest.raises(NotJSON):
            repaired_object(text[:size])
    with pytest.raises(NotJSON):
        repaired_object(text + "}")


@patient
@given(objects, st.data())
def test_brackets_that_are_missing_are_closed(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    scanner, _ = scanned(text[: data.draw(st.integers(1, len(text)))].rstrip(", "))
    whole = scanner.close()
    told = scanner.take()
    if whole:
        assert isinstance(json.loads(told), dict)
    stripped = text.rstrip("]}")
    scanner, _ = scanned(stripped)
    # But of a string that itself ends so the end has gone as well.
    if scanner.close():
        assert json.loads(scanner.take()) == value


@patient
@given(st.text(alphabet='{}[]",:\\ud12.-eTrueFalsNonl\n', max_size=24))
@example('{"a": 1,}')
@example('{"a": 1\n}')
@example('{"a": [1\n<')
@example('{"a": [True\n"b"')
@example('{"a": "\\u1"}')
@example('{"a": "\\u"\n"b": 1,\n}')
@example('{"a": 1\n,\n"b": 2}')
@example('{"a": 1,\n\n"b": [2\n,]}')
def test_what_it_tells_is_json(text: str) -> None:
    for body in (text, '{"a": ' + text, '{"a": "' + text):
        scanner, whole = scanned(body)
        done = scanner.done
        closed = not done and scanner.close()
        told = scanner.take()
        if done or closed:
            assert isinstance(json.loads(told), dict)
        try:
            known = json.loads(body)
        except ValueError:
            continue
        if isinstance(known, dict) and not {"NaN", "Infinity"} & set(body.split('"')[::2]):
            assert whole
            assert json.loads(told) == known


def test_how_it_is_cut_does_not_matter() -> None:
    text = r'{"a": "plain \d é", "b\q": [True' + "\n1,]"
    single, _ = scanned(text)
    runs = RepairingScanner()
    at = 0
    while at < len(text):
        size = runs.push_plain(text, at)
        if not size:
            runs.push(text[at])
        at += size or 1
    assert runs.close()
    assert single.close()
    assert runs.take() == single.take() == r'{"a": "plain \\d é", "b\\q": [true' + "\n,1]}"


@pytest.mark.parametrize(
    "text", ['{"a": "b', '{"a": 1,', '{"a":', '{"a"', '{"', '{"a": -', '{"a": "\\', '{"a": Tru', ""]
)
def test_what_may_lack_more_than_brackets_is_not_closed(text: str) -> None:
    scanner, _ = scanned(text)
    assert not scanner.close()
