"""worker.output.decoders: the text of a prompt and its output is the prompt's and the output's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.dialects import PLAIN, wrapper
from tests.helpers.tiny_tokenizers import DECODERS, tiny_tokenizer
from worker.output.decoders import ContextDecoder, TokenDecoder, TokenDecoders
from worker.output.token_bytes import TokenBytes
from worker.prompt.tokenizer import ModelTokenizer

SPELLINGS = {
    "bytes": "bytes",
    "bytes-sequence": "bytes",
    "llama": "pieces",
    "gemma": "pieces",
    "metaspace-always": "pieces",
    "metaspace-first": "pieces",
    "metaspace-never": "pieces",
    "wordpiece": "other",
    "wordpiece-raw": "other",
    "suffixes": "other",
}


def told(decoder: TokenDecoder, tokens: list[int]) -> str:
    return "".join([decoder.push(token) for token in tokens]) + decoder.finish()


def ids(tokenizer: ModelTokenizer, *pieces: str) -> list[int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return [vocabulary[piece] for piece in pieces]


@pytest.mark.parametrize("kind", DECODERS)
def test_how_a_vocabulary_spells_text(kind: str) -> None:
    assert tiny_tokenizer(kind).spelling == SPELLINGS[kind]


@settings(deadline=None, max_examples=250)
@given(
    st.sampled_from(sorted(DECODERS)),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=6),
    st.lists(st.integers(0, 10**9), max_size=12),
)
def test_prompt_and_tokens_are_the_text(kind: str, numbers: list[int], more: list[int]) -> None:
    tokenizer = tiny_tokenizer(kind)
    prompt = [number % len(tokenizer) for number in numbers]
    tokens = [number % len(tokenizer) for number in more]
    before, text = tokenizer.text(prompt), tokenizer.text(prompt + tokens)
    got = told(TokenDecoders(tokenizer).behind(prompt), tokens)
    # Of what is no text, or cut between prompt and answer, there are many readings.
    if "\ufffd" not in before + text:
        assert before + got == text
        if tokenizer.spelling != "other":
            raw = TokenBytes(tokenizer).raw
            assert b"".join(map(raw, tokens)).decode() == got
    # A replayed prefix is the same state.
    decoder = TokenDecoders(tokenizer).behind(prompt)
    half = len(tokens) // 2
    first = "".join([decoder.push(token) for token in tokens[:half]])
    assert first + told(decoder, tokens[half:]) == got


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if SPELLINGS[kind] == "pieces"])
def test_the_first_space_of_pieces_stays(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    for prompt in (ids(tokenizer, "▁def"), ids(tokenizer, "<s>"), ids(tokenizer, "[INST]")):
        behind = TokenDecoders(tokenizer).behind
        assert told(behind(prompt), ids(tokenizer, "▁world", "▁world")) == " world world"
        assert told(behind(prompt), ids(tokenizer, "▁▁▁▁", "def")) == "    def"
        assert told(behind(prompt), ids(tokenizer, "\n", "▁▁▁▁", "a")) == "\n    a"


def test_the_first_space_of_bytes_stays_and_comes_at_once() -> None:
    tokenizer = tiny_tokenizer("bytes")
    decoder = TokenDecoders(tokenizer).behind(ids(tokenizer, "def"))
    tokens = ids(tokenizer, "ĠĠĠĠ", "Ġworld", "Ġ.")
    assert [decoder.push(token) for token in tokens] == ["    ", " world", " ."]


def test_every_letter_of_ascii_is_text() -> None:
    tokenizer = wrapper(PLAIN)
    text = "".join(map(chr, range(128)))
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert told(TokenDecoders(tokenizer).behind([]), tokens) == text


@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_a_character_comes_with_its_last_byte(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    raw = TokenBytes(tokenizer).raw
    single = {raw(token): token for token in range(len(tokenizer))}
    tokens = [single[bytes([byte])] for byte in "😀".encode()]
    decoder = TokenDecoders(tokenizer).behind([0])
    assert [decoder.push(token) for token in tokens] == ["", "", "", "😀"]
    assert [decoder.push(token) for token in tokens[:3]] == ["", "", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


@pytest.mark.parametrize("kind", DECODERS)
def test_a_token_that_the_vocabulary_does_not_have_has_no_text(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    decoder = TokenDecoders(tokenizer).behind([0])
    unknown = [len(tokenizer), 10**9, 2**70, -1]
    assert {decoder.push(token) for token in unknown} == {""}
    assert TokenBytes(tokenizer).raw(2**70) == b""
    (a,) = ids(tokenizer, "a")
    assert told(decoder, [a]).strip() == "a"


def test_what_never_becomes_a_character_does_not_wait_for_ever() -> None:
    tokenizer = tiny_tokenizer("llama")
    decoder = ContextDecoder(tokenizer, ids(tokenizer, "<s>"))
    tokens = ids(tokenizer, "<0xA9>") * 40
    shown = [decoder.push(token) for token in tokens]
    assert sum(map(len, shown)) >= 32
    assert set("".join(shown)) == {"\ufffd"}
    assert decoder.push(*ids(tokenizer, "def")).endswith("def")
