"""Tokens by their texts."""

from __future__ import annotations

import pytest

from tests.helpers.dialects import HERMES, Model
from tests.helpers.dialects import wrapper as byte_level
from tests.property.structured import wrapper
from worker.grammar.token_texts import TokenTexts

TOKENS = (">{", ">\n", "> x", " {", '{"', '; {"name', "[{", "x{")


def texts(tokens: tuple[str, ...] = TOKENS) -> tuple[TokenTexts, dict[str, int]]:
    tokenizer = byte_level(Model(HERMES.template, tokens))
    found = tokenizer.get_vocab()
    return TokenTexts(tokenizer), {text: found[text] for text in tokens}


def test_a_marker_is_passed_by_what_goes_on_behind_it() -> None:
    known, ids = texts()
    beyond = {ids[">{"], ids[">\n"], ids["> x"]}
    assert known.past("<tool_call>", "so: <tool_call") == beyond
    for tail in ("", "<tool_cal", "tool_call", "<tool_call>", "x"):
        assert not known.past("<tool_call>", tail)


def test_a_token_may_hold_a_whole_marker() -> None:
    known, ids = texts(("a[X]b", "a[X]"))
    assert known.past("[X]", "") == {ids["a[X]b"]}
    assert known.past("[X]", "any text") == {ids["a[X]b"]}


def test_openers() -> None:
    known, ids = texts()
    brace = byte_level(Model(HERMES.template, TOKENS)).get_vocab()["{"]
    bare = {brace, ids[" {"], ids['{"'], ids['; {"name']}
    assert known.openers() == bare | {ids["[{"]}
    found, telling = known.bare_openers()
    assert found == bare
    assert telling  # one has the key's beginning
    assert texts(('{"', "{}", "{ x"))[0].bare_openers()[1] is False


@pytest.mark.parametrize("kind", ["bytes", "spm"])
def test_bytes_and_spaces_are_read_in_every_spelling(kind: str) -> None:
    tokenizer = wrapper(kind)
    vocabulary = tokenizer.get_vocab()
    found = TokenTexts(tokenizer).openers()
    assert vocabulary["Ġ{" if kind == "bytes" else "▁{"] in found
    if kind == "spm":
        assert vocabulary["<0x7B>"] in found


def test_marks_are_told_from_what_only_looks_like_them() -> None:
    tokenizer = byte_level(HERMES)
    known = TokenTexts(tokenizer)
    assert known.token("<tool_call>") == tokenizer.get_vocab()["<tool_call>"]
    assert known.token("[ARGS]") is None
