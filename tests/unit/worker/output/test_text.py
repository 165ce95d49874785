"""worker.output.text: what is shown never depends on how the text was cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.dialects import Pieces
from tests.helpers.tiny_llama import make_llama
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.output.decoders import TokenDecoders
from worker.output.text import StopStrings
from worker.output.transcript import PlainTranscript

patient = settings(deadline=None, max_examples=200)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the stop string that is complete first, and whether there is one.

    Of two that are complete with the same letter, the one that began first counts.
    """
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def undecided(text: str, stops: Sequence[str]) -> int:
    """How much of the text's end may yet become a stop string."""
    starts = [
        length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])
    ]
    return max(starts, default=0)


letters = st.text(alphabet="ab \né😀", max_size=6)
stop_lists = st.lists(st.text(alphabet="ab \né😀", max_size=4), max_size=4)


@patient
@given(st.lists(letters, max_size=8), letters, stop_lists)
@example(["aab"], "", ["ab"])
@example(["a", "a", "b"], "", ["aab", "ab"])
@example(["abcd"], "", ["abcd", "c"])
@example(["abc", "d"], "", ["abcd", "c"])
@example(["a", "b"], "c", ["bc"])
@example(["x", "", "y"], "", ["", "y"])
def test_what_is_shown_is_the_text_up_to_the_first_stop(
    pieces: list[str], tail: str, stops: list[str]
) -> None:
    stream = PlainTranscript(Pieces(pieces, tail), stops)
    text = shown = ""
    for token, piece in enumerate(pieces):
        text += piece
        shown += stream.push(token).text
        expected, stopped = cut_at_stop(text, stops)
        assert stream.stopped == stopped
        if not stopped:  # as much as is sure, and no less
            expected = text[: len(text) - undecided(text, stops)]
        assert shown == expected
    shown += stream.finish().text
    assert (shown, stream.stopped) == cut_at_stop(text + tail, stops)


@patient
@given(st.lists(letters, max_size=8), stop_lists, st.integers(0, 8))
def test_replaying_the_tokens_gives_the_same_state(
    pieces: list[str], stops: list[str], cut: int
) -> None:
    undisturbed = PlainTranscript(Pieces(pieces), stops)
    expected = [undisturbed.push(token).text for token in range(len(pieces))]
    died, resumed = (PlainTranscript(Pieces(pieces), stops) for _ in range(2))
    before = [died.push(token).text for token in range(len(pieces))[:cut]]
    replayed = [resumed.push(token).text for token in range(len(pieces))[:cut]]
    after = [resumed.push(token).text for token in range(len(pieces))[cut:]]
    assert replayed == before
    assert before + after == expected
    assert resumed.finish().text == undisturbed.finish().text
    assert resumed.stopped == undisturbed.stopped


def test_after_a_stop_nothing_is_shown() -> None:
    stream = PlainTranscript(Pieces(["one", "STOPtwo", "three"], "four"), ["STOP"])
    assert [stream.push(token).text for token in range(3)] == ["one", "", ""]
    assert stream.finish().text == ""
    assert stream.stopped


def test_a_token_is_not_compared_with_all_of_a_stop_that_another_one_keeps_waiting() -> None:
    compared = []

    class Watched(str):
        def __getitem__(self, index: SupportsIndex | slice) -> str:
            if isinstance(index, slice):
                compared.append(index)
            return super().__getitem__(index)

    stops = StopStrings(
        ["a" * 1023 + "b", Watched("b" + "a" * 1023), Watched("a" * 500 + "c" * 500)]
    )
    for _ in range(1100):
        stops.feed("a")
    assert len(compared) < 5000


def test_held_text_comes_out_when_it_turns_out_to_be_none() -> None:
    stream = PlainTranscript(Pieces(["a<", "/s", "tep"]), ["</stop>"])
    assert [stream.push(token).text for token in range(3)] == ["a", "", "</step"]
    assert not stream.stopped


# ── a real tokenizer ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlx_lm import tokenizer_utils

    folder: Path = make_llama(tmp_path_factory.mktemp("text") / "model")
    load: Any = tokenizer_utils.load
    return model_tokenizer(load(folder))


def shown_by(tokenizer: Any, text: str, stops: Sequence[str] = ()) -> tuple[list[str], str]:
    stream = PlainTranscript(TokenDecoders(tokenizer).behind([]), stops)
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) == len(text.encode())  # in this tokenizer every byte is a token
    return [stream.push(token).text for token in tokens], stream.finish().text


@pytest.mark.parametrize("text", ["hello world", "naïve 模型", "😀😀", "a\n\n  b ", "e\u0301"])
def test_a_character_is_shown_with_its_last_byte(tokenizer: Any, text: str) -> None:
    pushed, rest = shown_by(tokenizer, text)
    assert "".join(pushed) + rest == text
    assert "\ufffd" not in "".join(pushed)
    for token, shown in enumerate(pushed):
        whole = text.encode()[: token + 1].decode("utf-8", "ignore")
        assert "".join(pushed[:token]) + shown in (whole, whole.rstrip(" "))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("say 模型 now", "型", "say 模"),
        ("one 😀 two", "😀 t", "one "),
        ("one 😀 two", "😁", "one 😀 two"),  # differs in its last byte alone
        ("abc", "abc", ""),
    ],
)
def test_a_stop_string_is_found_across_cut_characters(
    tokenizer: Any, text: str, stop: str, expected: str
) -> None:
    pushed, rest = shown_by(tokenizer, text, [stop])
    assert "".join(pushed) + rest == expected


def test_a_request_never_sees_anothers_half_character(tokenizer: Any) -> None:
    decoders = TokenDecoders(tokenizer)
    first, second = (PlainTranscript(decoders.behind([])) for _ in range(2))
    cut = tokenizer.encode("😀", add_special_tokens=False)[:2]
    (letter,) = tokenizer.encode("x", add_special_tokens=False)
    assert [first.push(token).text for token in cut] == ["", ""]
    assert second.push(letter).text + second.finish().text == "x"


def test_a_character_that_stays_cut_is_told_as_such(tokenizer: Any) -> None:
    stream = PlainTranscript(TokenDecoders(tokenizer).behind([]))
    cut = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    assert [stream.push(token).text for token in cut] == ["a", "", "", ""]
    assert set(stream.finish().text) == {"\ufffd"}
