"""worker.output.tools.json_scanner: one JSON object, letter by letter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.output.tools.json_scanner import JSONScanner, NotJSON


def object_text(text: str) -> str:
    reader = JSONScanner()
    out = []
    for letter in text.strip():
        if reader.done:
            raise NotJSON
        out.append(reader.push(letter))
    if not reader.done:
        raise NotJSON
    return "".join(out)


patient = settings(deadline=None, max_examples=120)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
        max_size=3),
    max_leaves=8,
)  # fmt: skip
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


@patient
@given(objects, st.sampled_from([None, 1]), st.booleans())
def test_every_json_object_is_read_whole(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if not ascii_only and any("\ud800" <= letter <= "\udfff" for letter in text):
        return
    assert object_text(text) == text
    for size in range(len(text)):
        with pytest.raises(NotJSON):
            object_text(text[:size])
    with pytest.raises(NotJSON):
        object_text(text + "}")


@patient
@given(st.text(alphabet='{}[]",:\\ 01.-+eEtrufalsn\n', max_size=14))
@example('{"a": 01}')
@example('{"a": 1,}')
@example('{"a": [1,]}')
@example('{"a": +1}')
@example('{"a" 1}')
@example('{,"a": 1}')
@example('{"a": tru}')
@example('{"a": 1.}')
@example('{"a": [}')
@example('{"a": "\\x"}')
@example('{"a": "\\u00g0"}')
def test_what_it_takes_for_json_is_json(text: str) -> None:
    for body in (text, '{"a": ' + text + "}"):
        try:
            read_as = object_text(body)
        except NotJSON:
            try:
                known = json.loads(body)
            except ValueError:
                continue
            assert not isinstance(known, dict)
        else:
            assert isinstance(json.loads(read_as), dict)


def test_the_states_of_json() -> None:
    reader = JSONScanner()
    seen = []
    for letter in '{"a": [1]}':
        reader.push(letter)
        seen.append((reader.state, reader.depth))
    assert seen == [
        ("key or end", 1), ("string", 1), ("string", 1), ("colon", 1), ("value", 1), ("value", 1),
        ("value or end", 2), ("scalar", 2), ("comma", 1), ("done", 0),
    ]  # fmt: skip
