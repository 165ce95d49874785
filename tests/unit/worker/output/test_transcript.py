"""worker.output.transcript: text, reasoning and calls of a choice, the same however often it is
replayed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.wire.frames import Calling, Chat, Generate, Schema, Text, Tokens
from tests.helpers.dialects import (
    AUTO,
    GEMMA4,
    GPT_OSS,
    HERMES,
    KIMI_K3,
    LONGCAT,
    MUSE,
    PLAIN,
    THINKING,
    TOOLS,
    F,
    Model,
    Pieces,
    Seen,
    everywhere,
    make,
    read,
    transcripts,
    wrapper,
)
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.output.transcript import (
    AnyTranscript,
    OutputDelta,
    PlainTranscript,
    Transcript,
    TranscriptFactory,
)

DEMO = Path(__file__).parents[4] / "worker" / "demo" / "model"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>'

# ── reasoning ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "start", "end"),
    [
        (THINKING, "<think>", "</think>"),
        (LONGCAT, "<longcat_think>", "</longcat_think>"),
        (GEMMA4, "<|channel>thought", "<channel|>"),
        (KIMI_K3, "<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ],
)
def test_reasoning_is_told_apart(model: Model, start: str, end: str) -> None:
    expected = Seen("Yes.\n", [], "stop", "Is it? <b>\n\nIt is.")
    text = f"\nIs it? <b>\n\nIt is.\n{end}\n\nYes.\n"
    for calling in (None, AUTO):
        assert everywhere(model, start + text, calling) == expected
        assert everywhere(model, "\n" + start + text, calling) == expected
        # the prompt has opened it
        assert everywhere(model, text, calling, prompt=f"x{start}\n") == expected
        assert everywhere(model, start + text, calling, prompt=f"x{start}") == expected


def test_a_think_marker_in_a_message_opens_nothing() -> None:
    prompt = "<|im_start|>user\nwhat is <think><|im_end|>\n<|im_start|>assistant\n"
    assert everywhere(THINKING, "A marker.", prompt=prompt) == Seen("A marker.", [], "stop")
    prompt = "<think>x<think>\n\n</think>\n\n"
    assert everywhere(THINKING, "A marker.", prompt=prompt) == Seen("A marker.", [], "stop")


def test_behind_the_prompts_own_empty_block_white_space_is_dropped() -> None:
    seen = everywhere(THINKING, "\n\nHello.", None, prompt="<think>\n\n</think>")
    assert seen.text == "Hello."
    assert everywhere(THINKING, "\n\nHello.", None).text == "\n\nHello."
    # All that templates write there is there: what follows is the answer, to the letter.
    for text in (" world", "    return 1", "\n\nHello."):
        assert everywhere(THINKING, text, None, prompt="<think>\n\n</think>\n\n").text == text


def test_reasoning_that_never_ends_stays_reasoning() -> None:
    assert everywhere(THINKING, "<think>I wonder </thi") == Seen("", [], "stop", "I wonder </thi")


def test_a_call_ends_reasoning() -> None:
    seen = everywhere(THINKING, f"<think>I must call.\n{CALL}\nDone.")
    assert seen == Seen("Done.", [F], "tool_calls", "I must call.")
    # without tools it is what the model thinks
    seen = everywhere(THINKING, f"<think>I must call.\n{CALL}</think>", None)
    assert seen == Seen("", [], "stop", f"I must call.\n{CALL}")


def test_what_is_no_call_in_reasoning_stays_reasoning() -> None:
    seen = everywhere(THINKING, "<think>Say <tool_call>x</tool_call> maybe.</think>No.")
    assert seen == Seen("No.", [], "stop", "Say <tool_call>x</tool_call> maybe.")


def test_white_space_at_a_marker_belongs_to_neither_side() -> None:
    seen = everywhere(THINKING, f"One. \n<think> a </think>\n two\n\n{CALL}\n\n{CALL}\n three \n")
    assert seen == Seen("One. \n two\n\n three \n", [F, F], "tool_calls", "a")
    for end in ("", " ", "\n\n", " \n\t"):
        assert everywhere(THINKING, f"<think>a</think>{end}{CALL}{end}").text == ""


def test_the_indentation_of_what_follows_a_marker_is_the_texts() -> None:
    code = "    return 1\n"
    for space in ("", "\n", "\n\n", " \r\n \n"):
        assert everywhere(THINKING, f"<think>a</think>{space}{code}", None).text == code
        seen = everywhere(THINKING, f"{CALL}{space}{code}", AUTO)
        assert (seen.text, seen.calls) == (code, [F])
    channel = "<|channel|>final<|message|>"
    assert everywhere(GPT_OSS, f"{channel}{code}").text == code


def test_blocks_of_reasoning_are_apart() -> None:
    seen = everywhere(THINKING, "<think>a</think><think>b</think>c")
    assert (seen.reasoning, seen.text) == ("a\nb", "c")


def test_harmonys_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm. <b><|end|><|start|>assistant<|channel|>commentary"
        "<|message|>I look.<|end|><|start|>assistant<|channel|>analysis<|message|>So.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is\n42. <|return|>"
    )
    for calling in (None, AUTO):
        assert everywhere(GPT_OSS, text, calling) == Seen(
            "I look.\nIt is\n42.", [], "stop", "Hm. <b>\nSo."
        )
    assert everywhere(GPT_OSS, "Just text.", None).text == "Just text."
    assert everywhere(GPT_OSS, '{"a": 1}', None).text == '{"a": 1}'
    assert everywhere(GPT_OSS, "<|channel|>final<|mess", None).text == ""
    broken_off = "<|channel|>analysis<|start|>assistant<|channel|>final<|message|>42"
    assert everywhere(GPT_OSS, broken_off, None) == Seen("42", [], "stop")


def test_a_harmony_message_to_a_function_without_json_is_text() -> None:
    text = "<|channel|>commentary to=functions.f<|message|>print(1)<|call|>"
    assert everywhere(GPT_OSS, text) == Seen("to=functions.f print(1)", [], "stop")


def test_a_parser_with_headers() -> None:
    """Muse Spark's tokenizer brings a table of its own, in a state that is all markup."""
    from mlx_lm.chat_templates.muse_spark import RESPONSE_FORMAT

    theirs = wrapper(MUSE).wrapper
    old = theirs._response_format
    theirs._response_format = RESPONSE_FORMAT
    try:
        made = TranscriptFactory(wrapper(MUSE))
    finally:
        theirs._response_format = old
    text = (
        "to=self<|message|>Hm.<|eom|>to=user<|message|>Look: <|eom|><atem:function_calls>"
        '<atem:invoke name="f"><atem:parameter name="a">1</atem:parameter></atem:invoke>'
        "</atem:function_calls>"
    )
    for pieces in ([text], list(text)):
        request = Generate("r", Chat([], TOOLS), 0.0, calling=AUTO)
        delta = everything(made.make(request, []), pieces)
        assert (delta.text, delta.reasoning) == ("Look:", "Hm.")
        assert [(call.name, call.arguments) for call in delta.calls] == [("f", '{"a": 1}')]
        delta = everything(made.make(Generate("r", Chat([]), 0.0), []), pieces)
        assert delta.calls == ()
        assert delta.text.startswith('Look: <atem:function_calls><atem:invoke name="f">')
    assert everything(made.make(Generate("r", Chat([]), 0.0), []), list("hello")).text == "hello"


def everything(transcript: AnyTranscript, pieces: Sequence[str]) -> OutputDelta:
    assert not isinstance(transcript, PlainTranscript)
    transcript._decoder = Pieces(pieces)
    deltas = [transcript.push(token) for token in range(len(pieces))] + [transcript.finish()]
    return joined(deltas)


def joined(deltas: Sequence[OutputDelta]) -> OutputDelta:
    return OutputDelta(
        "".join(delta.text for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        tuple(call for delta in deltas for call in delta.calls),
    )


# ── stop strings ─────────────────────────────────────────────────────────────────────────────────


def test_stop_strings_are_looked_for_in_the_text_alone() -> None:
    text = "<think>\n\nEND of it\n\n</think>\n\nAn answer.\n\nMore."
    assert everywhere(THINKING, text, stop=["\n\n"]) == Seen("An answer.", [], "stop", "END of it")
    call = CALL.replace('"x"', '"END"')
    seen = everywhere(THINKING, f"{call} A b END c", stop=["END"])
    assert (seen.text, seen.reason) == (" A b ", "tool_calls")
    assert seen.calls == [("f", '{"a": 1, "b": "END"}')]


def test_a_stop_string_may_be_a_marker_where_no_call_is_meant() -> None:
    assert everywhere(THINKING, f"A {CALL}", None, stop=["<tool_call>"]).text == "A "
    assert everywhere(THINKING, f"A {CALL}", AUTO, stop=["<tool_call>"]).calls == [F]


def test_a_text_that_only_began_a_stop_string_comes_before_the_call() -> None:
    seen = everywhere(HERMES, f"A EN{CALL}", stop=["END"])
    assert seen == Seen("A EN", [F], "tool_calls")
    transcript = make(HERMES, AUTO, stop=["END"])
    transcript._decoder = Pieces(["A EN<tool_call>", '{"name": "f"}'])
    assert transcript.push(0) == OutputDelta("A EN")


def test_after_the_stop_nothing_changes() -> None:
    transcript = make(THINKING, AUTO, stop=["b"])
    transcript._decoder = Pieces(["abc", CALL, "x"])
    assert transcript.push(0) == OutputDelta("a")
    assert transcript.stopped
    assert transcript.push(1) == transcript.push(2) == transcript.finish() == OutputDelta()
    assert transcript.finish_reason == "stop"


@pytest.mark.parametrize("calling", [None, AUTO])
def test_the_stop_that_came_is_told(calling: Calling | None) -> None:
    transcript = make(THINKING, calling, stop=["zz", "bc", "c"])
    transcript._decoder = Pieces(["ab", "", "cd", "zz"])
    seen = []
    for token in range(4):
        transcript.push(token)
        seen.append(transcript.stop)
    assert seen == ["", "", "bc", "bc"]


# ── which requests have parts ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prompt", [Text("<think>"), Tokens((1, 2))])
def test_plain_prompts_are_continued_with_plain_text(prompt: Text | Tokens) -> None:
    made = transcripts(THINKING).make(Generate("r", prompt, 0.0), [])
    assert isinstance(made, PlainTranscript)


def test_a_model_without_marks_has_plain_answers() -> None:
    request = Generate("r", Chat([]), 0.0, stop=("b",))
    made = transcripts(PLAIN).make(request, [])
    assert isinstance(made, PlainTranscript)
    tokens = wrapper(PLAIN).encode("xab", add_special_tokens=False)
    assert [made.push(token) for token in tokens] == [
        OutputDelta("x"),
        OutputDelta("a"),
        OutputDelta(),
    ]
    assert (made.stopped, made.finish_reason, made.reasoning_tokens) == (True, "stop", 0)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def test_reasoning_tokens_are_counted_with_their_markers() -> None:
    tokenizer = wrapper(THINKING)
    tokens = tokenizer.encode("a<think>bcd</think>ef", add_special_tokens=False)
    transcript = make(THINKING, None)
    for token in tokens:
        transcript.push(token)
    assert transcript.reasoning_tokens == 5


@pytest.mark.parametrize("model", [THINKING, PLAIN])
def test_a_token_without_a_text_has_none(model: Model) -> None:
    made = transcripts(model).make(Generate("r", Chat([]), 0.0), [])
    for token in (10**9, 2**70, len(wrapper(model)), len(wrapper(model)) + 1):
        assert set(made.push(token).text) <= {"!"}  # mlx-lm's own mark for padding


@pytest.fixture(scope="module")
def demo() -> Any:
    from mlx_lm import tokenizer_utils

    load: Any = tokenizer_utils.load
    return model_tokenizer(load(DEMO))


def test_the_demo_models_answers(demo: Any) -> None:
    made = TranscriptFactory(demo)
    text = f"<think>\nThe weather.\n</think>\n\n{CALL}\n{CALL}<|im_end|>"
    chat = Chat([{"role": "user", "content": "x"}], TOOLS, {"enable_thinking": True})
    request = Generate("r", chat, 0.0, calling=AUTO)
    transcript = made.make(request, demo.encode("<|im_start|>assistant\n"), calls_held=lambda: True)
    tokens = demo.encode(text, add_special_tokens=False)[:-1]
    deltas = [transcript.push(token) for token in tokens] + [transcript.finish()]
    total = joined(deltas)
    assert (total.text, total.reasoning) == ("", "The weather.")
    assert [call.index for call in total.calls if call.name] == [0, 1]
    assert "".join(call.arguments for call in total.calls if call.index) == F[1]
    assert transcript.finish_reason == "tool_calls"
    assert transcript.reasoning_tokens == tokens.index(demo.think_end_id) + 1
    assert len(total.calls) > 6  # told as they grew


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(0, 1100), max_size=12),
    st.lists(
        st.sampled_from(["<think>", "</think>", "<tool_call>", '{"name": "f", ', "</tool_call>",
                         '"arguments": {"a": [', "1]}}", "text ", "\n\n", "é😀"]), max_size=8
    ),
    st.integers(0, 60),
    st.sampled_from([None, AUTO, Calling("auto", (), parallel=False), Calling("required", ("f",))]),
    st.sampled_from([(), ("a",), ("\n", "ex")]),
    st.sampled_from(["", "<think>\n", "<think>\n\n</think>\n\n"]),
    st.sampled_from([None, Schema("{}")]),
    st.booleans(),
)  # fmt: skip
def test_replaying_tokens_gives_the_same_state(
    demo: Any,
    noise: list[int],
    words: list[str],
    cut: int,
    calling: Calling | None,
    stop: tuple[str, ...],
    prompt: str,
    structure: Schema | None,
    constrained: bool,
) -> None:
    tokens = [*demo.encode("".join(words), add_special_tokens=False), *noise]
    made = TranscriptFactory(demo)
    request = Generate("r", Chat([], TOOLS), 0.0, stop=stop, calling=calling, structure=structure)
    opened = demo.encode(prompt, add_special_tokens=False) if prompt else []
    first, again = (made.make(request, opened, calls_held=lambda: constrained) for _ in range(2))
    before = [first.push(token) for token in tokens]
    replayed = [again.push(token) for token in tokens[:cut]]
    assert replayed == before[:cut]
    assert [again.push(token) for token in tokens[cut:]] == before[cut:]
    assert again.finish() == first.finish()
    for state in ("stopped", "finish_reason", "reasoning_tokens"):
        assert getattr(again, state) == getattr(first, state)


def test_length_may_end_an_answer_anywhere() -> None:
    seen = read(HERMES, [CALL[:-20]], cut=True, constrained=True)
    assert (seen.text, seen.reason) == ("", "stop")
    assert [name for name, _ in seen.calls] == ["f"]
    assert F[1].startswith(seen.calls[0][1])
    for length in range(1, len(CALL)):
        seen = read(HERMES, [CALL[:length]], cut=True)
        whole = length >= CALL.index("\n</tool_call>")
        assert seen == (Seen("", [F], "tool_calls") if whole else Seen(CALL[:length], [], "stop"))


def test_an_answer_that_can_wait_has_no_half_call() -> None:
    whole = Calling("auto", ("f",), growing=False)
    for length in range(1, len(CALL)):
        seen = read(HERMES, [CALL[:length]], whole, cut=True, constrained=True)
        assert seen == read(HERMES, [CALL[:length]], AUTO, cut=True)
        assert seen.calls in ([], [F])
    assert read(HERMES, [CALL], whole, constrained=True) == Seen("", [F], "tool_calls")


def test_whether_calls_are_held_is_asked_when_one_begins() -> None:
    asked = []

    def held() -> bool:
        asked.append(True)
        return True

    request = Generate("r", Chat([], TOOLS), 0.0, calling=AUTO)
    transcript = transcripts(HERMES).make(request, [], calls_held=held)
    assert isinstance(transcript, Transcript)
    transcript._decoder = Pieces(["Text. <tool_call", ">", CALL.removeprefix("<tool_call>"), CALL])
    transcript.push(0)
    assert not asked
    for token in (1, 2, 3):
        transcript.push(token)
    assert asked == [True]
