"""worker.output.tools: every form of tool calls, cut in every way; what is no call stays in the
text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.wire.frames import Calling, Chat, Generate
from tests.helpers.dialects import (
    AUTO,
    FORCED,
    FORMS,
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    GPT_OSS,
    HERMES,
    KIMI_K2,
    KIMI_K3,
    LLAMA,
    LONGCAT,
    MINIMAX,
    MISTRAL,
    ONE,
    PLAIN,
    PYTHONIC,
    QWEN_CODER,
    THINKING,
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
from worker.output.tools.call_forms import forced_form
from worker.output.transcript import Transcript


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_however_it_is_cut(form: str) -> None:
    """omlx#882: calls were dropped while streaming."""
    model, text, calls = FORMS[form]
    for constrained in (False, True):
        seen = everywhere(model, text, constrained=constrained)
        assert seen == Seen("", calls, "tool_calls")


@pytest.mark.parametrize("form", [form for form in FORMS if "llama" not in form])
def test_text_before_calls_is_text(form: str) -> None:
    model, text, calls = FORMS[form]
    if model is GPT_OSS:
        text = f"<|channel|>final<|message|>So < be it. <|end|><|start|>assistant{text}"
    else:
        text = f"So < be it. \n\n{text}"
    assert everywhere(model, text) == Seen("So < be it.", calls, "tool_calls")


@pytest.mark.parametrize("form", FORMS)
def test_without_tools_it_is_text(form: str) -> None:
    """Not a letter of it is lost, but for harmony's control tokens."""
    model, text, _ = FORMS[form]
    if model is GPT_OSS:
        seen = everywhere(model, text, None)
        assert seen.calls == []
        assert seen.text.startswith("to=functions.f")
        assert "<|" not in seen.text
        return
    request = Generate("r", Chat([]), 0.0)
    made = transcripts(model).make(request, [])
    pieces = Pieces([text])
    if isinstance(made, Transcript):
        made._decoder = pieces
        assert made.push(0).text + made.finish().text == text
        assert made.finish_reason == "stop"
    else:  # the model has no parts at all
        assert made.finish_reason != "tool_calls"


@pytest.mark.parametrize("form", [form for form in FORMS if "two" in form or form == "pythonic"])
def test_the_first_call_ends_the_answer_when_one_is_asked_for(form: str) -> None:
    model, text, calls = FORMS[form]
    assert everywhere(model, text, ONE) == Seen("", calls[:1], "tool_calls")


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_lost_where_the_answer_breaks_off(form: str) -> None:
    """At every place: what was told are whole calls; the rest is text. Under a grammar what was
    told of the last call is its beginning."""
    model, text, calls = FORMS[form]
    for size in range(len(text)):
        seen = everywhere(model, text[:size], cut=True) if size % 7 == 0 else read(
            model, [text[:size]], cut=True
        )  # fmt: skip
        assert seen.calls == calls[: len(seen.calls)]
        assert (seen.reason == "tool_calls") == bool(seen.calls)
        if not seen.calls and model is not GPT_OSS:
            assert seen.text.strip() == text[:size].strip()
        seen = read(model, [text[:size]], cut=True, constrained=True)
        for (name, arguments), (whole_name, whole) in zip(seen.calls, calls, strict=False):
            assert name == whole_name
            assert whole.startswith(arguments)


# ── what is no call, or not a whole one ──────────────────────────────────────────────────────────

OPEN = "<tool_call>"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (HERMES, "<tool_call>\nI would rather not.\n</tool_call>"),
        (HERMES, '<tool_call>{"nom": "f", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": 7, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": 7}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>'),
        (HERMES, "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>"),
        (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"function": {"name": "\\ud800", "arguments": {}}}</tool_call>'),
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call></tool_call>"),
        (HERMES, "a</tool_call>b"),
        (HERMES, "<tool_cal"),
        (LLAMA, '{"name": "Ada", "age": 36}'),
        (LLAMA, '{"city": "Paris"}'),
        (LLAMA, '{"name": "Ada", "age": 36, "parameters": {}}'),
        (LLAMA, '{"name": "f"}'),
        (LLAMA, '{"parameters": {"a": 1}}'),
        (LLAMA, "{not json}"),
        (LLAMA, '<|python_tag|>print("x")'),
        (LLAMA, 'Here: {"name": "f", "parameters": {}}'),
        (MISTRAL, "[TOOL_CALLS]what now"),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]no"),
        (MISTRAL, "[TOOL_CALLS]f"),
        (MISTRAL, "[TOOL_CALLS]" + 300 * "f"),
        (MISTRAL, '[TOOL_CALLS][{"nom": 1}]'),
        (KIMI_K2, "<|tool_calls_section_begin|>so be it<|tool_calls_section_end|>"),
        (KIMI_K2, "<|tool_calls_section_begin|><|tool_calls_section_end|>"),
        (GLM, "<tool_call>let me see what I can do</tool_call>"),
        (QWEN_CODER, "<tool_call>\n<function=f>\n<parameter=a>\nmany\n</function>\n</tool_call>x"),
        (QWEN_CODER,
            "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter></function></tool_call>"),
        (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>1</tool_call>"),
        (PYTHONIC, "<|tool_call_start|>[f(a={1, 2})]<|tool_call_end|>"),
        (GEMMA4, "<|tool_call>call:f{<tool_call|>"),
        (FUNCTION_GEMMA, "<start_function_call>call:f{a<end_function_call>"),
        (LONGCAT, "<longcat_tool_call>f</longcat_tool_call>"),
        (MINIMAX,
            '<minimax:tool_call><invoke name="f"></invoke><invoke name="g"></minimax:tool_call>'),
    ],
)  # fmt: skip
def test_what_is_no_call_stays_in_the_text(model: Model, text: str) -> None:
    for around in (text, f"{text} and so on") if text != "<tool_cal" else (text,):
        assert everywhere(model, around) == Seen(around, [], "stop")


def test_the_end_of_an_answer_may_stand_for_the_end_of_a_call() -> None:
    text = '<|tool_call_start|>[f(a=1, b="x")]'
    assert everywhere(PYTHONIC, text) == Seen("", [F], "tool_calls")
    assert everywhere(PYTHONIC, text, cut=True) == Seen(text, [], "stop")
    text = "<|channel|>commentary to=functions.f<|message|>"
    assert everywhere(GPT_OSS, text) == Seen("", [("f", "{}")], "tool_calls")
    assert everywhere(GPT_OSS, text, cut=True).calls == []
    text += '{"a": 1, "b": "x"}\n\n'
    assert everywhere(GPT_OSS, text) == Seen("", [F], "tool_calls")


def test_what_is_too_long_for_a_name_does_not_wait() -> None:
    transcript = make(MISTRAL, AUTO)
    transcript._decoder = Pieces(["[TOOL_CALLS]", 300 * "f"])
    transcript.push(0)
    assert transcript.push(1).text == "[TOOL_CALLS]" + 300 * "f"


def test_a_whole_call_counts_though_another_is_broken() -> None:
    good = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    seen = everywhere(HERMES, f"{good}\n<tool_call>oops</tool_call>")
    assert seen == Seen("<tool_call>oops</tool_call>", [("f", "{}")], "tool_calls")


def test_a_marker_in_an_argument_is_an_argument() -> None:
    arguments = '{"b": "</tool_call><think>{\\"}"}'
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>Done.'
    assert everywhere(THINKING, text) == Seen("Done.", [("f", arguments)], "tool_calls")


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('"arguments": {}', "{}"),
        ('"arguments": null', "{}"),
        ('"arguments": ""', "{}"),
        ('"arguments": "{\\"a\\": 1}"', '{"a": 1}'),
        ('"arguments": {"a": -1.5e+3, "b": [true, null, ""]}',
            '{"a": -1.5e+3, "b": [true, null, ""]}'),
        ('"arguments": {"b": "two\nlines"}', '{"b": "two\\nlines"}'),
        ('"arguments": {"b": "\\ud83d\\ude00 \\ud800"}', '{"b": "\\ud83d\\ude00 \\ud800"}'),
        ('"id": 7, "more": [{}], "arguments": {"a": 1}', '{"a": 1}'),
        ('"parameters": {"a": 1}', '{"a": 1}'),
        ('"id": 7', "{}"),
    ],
)  # fmt: skip
def test_arguments_are_one_json_object(written: str, told: str) -> None:
    for fields in (f'"name": "any", {written}', f'{written}, "name": "any"'):
        seen = everywhere(HERMES, f"<tool_call>{{{fields}}}</tool_call>")
        assert seen == Seen("", [("any", told)], "tool_calls")
        assert isinstance(json.loads(told), dict)


def test_arguments_that_a_grammar_holds_to_are_told_as_they_grow() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "x"}}</tool_call>'
    transcript = make(HERMES, AUTO, constrained=True)
    transcript._decoder = Pieces(list(text))
    told = [transcript.push(token).calls for token in range(len(text))]
    begins = text.index('{"a"')
    assert not any(told[:begins])
    assert [(piece.name, piece.arguments) for (piece,) in filter(None, told)] == [
        ("" if at else "f", letter) for at, letter in enumerate('{"a": 1, "b": "x"}')
    ]


def test_deep_arguments_are_read_without_recursion() -> None:
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    text = f'<tool_call>{{"name": "f", "arguments": {deep}}}</tool_call>'
    assert read(HERMES, [text]) == Seen("", [("f", deep)], "tool_calls")
    quoted = json.dumps(deep)
    text = f'<tool_call>{{"name": "f", "arguments": {quoted}}}</tool_call>'
    assert read(HERMES, [text]).calls == [("f", deep)]
    nested = "[" * 100_000
    text = f'<tool_call>{{"function": {nested}'
    assert read(HERMES, [text]) == Seen(text, [], "stop")


# ── forced calls ─────────────────────────────────────────────────────────────────────────────────


def test_which_form_a_grammar_forces() -> None:
    assert forced_form(wrapper(HERMES)) == "hermes"
    assert forced_form(wrapper(GPT_OSS)) == "harmony"
    others = (LLAMA, MISTRAL, GLM, QWEN_CODER, PLAIN, GEMMA4, KIMI_K2, KIMI_K3, PYTHONIC)
    assert {forced_form(wrapper(model)) for model in others} == {"array"}


ARRAY = '[{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g", "arguments": {}}]'


@pytest.mark.parametrize(
    "model", [LLAMA, MISTRAL, GLM, QWEN_CODER, PLAIN, GEMMA4, KIMI_K2, KIMI_K3, PYTHONIC]
)
def test_a_forced_array_is_calls(model: Model) -> None:
    assert everywhere(model, ARRAY, FORCED) == Seen("", [F, ("g", "{}")], "tool_calls")
    one = Calling("required", ("f",), parallel=False)
    assert everywhere(model, ARRAY, one) == Seen("", [F], "tool_calls")
    assert everywhere(model, ARRAY) == Seen(ARRAY, [], "stop")  # nobody forced it
    seen = everywhere(model, ARRAY[:36], FORCED, cut=True)
    assert seen == Seen("", [("f", '{"a": 1,')], "stop")


@pytest.mark.parametrize("form", ["hermes-two", "harmony"])
def test_forms_that_models_write_by_themselves_are_forced(form: str) -> None:
    model, text, calls = FORMS[form]
    assert everywhere(model, text, FORCED) == Seen("", calls, "tool_calls")


# ── anything at all ──────────────────────────────────────────────────────────────────────────────

PARTS = [
    "{", "}", "[", "]", '"', ":", ",", ";", "f", " ", "\n", '{"name": "f", "', 'arguments": {}}',
    'parameters": {"a": [1', "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>",
    "</think>", "<|channel|>", "commentary to=functions.f", "final", "<|message|>", "<|end|>",
    "<|start|>", "<|call|>", "<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_begin|>", "functions.f:0", "<|tool_calls_section_end|>", "<|python_tag|>",
    "<|tool_call>", "call:f{a:1}", "<tool_call|>", "<function=f>", "</function>", "<arg_key>",
    "<|open|>tools<|sep|>", "<|open|>call tool=\"f\"<|sep|>", "<|close|>call<|sep|>", "é😀",
    '{"name": "f", "arguments": {"a": "', "cabin 5}}", "\\d", "\\u12", "NaN", "True", ",\n}", "}}",
]  # fmt: skip
MODELS = [HERMES, THINKING, LLAMA, MISTRAL, KIMI_K2, KIMI_K3, GPT_OSS, GLM, QWEN_CODER, GEMMA4]


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(MODELS),
    st.lists(st.sampled_from(PARTS), max_size=14).map("".join),
    st.sampled_from([AUTO, ONE, FORCED, None]),
    st.booleans(),
    st.sampled_from([(), ("f",), ("\n", '"}'), ("<tool_call>",)]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_however_a_text_is_cut_it_means_the_same(
    model: Model,
    text: str,
    calling: Calling | None,
    cut: bool,
    stop: tuple[str, ...],
    constrained: bool,
    random: Any,
) -> None:
    if calling is None and model in (HERMES, LLAMA, MISTRAL, KIMI_K2, GLM, QWEN_CODER):
        return  # no parts
    places = sorted(random.sample(range(len(text) + 1), min(3, len(text))))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    whole, letters, cuts = (
        read(model, each, calling, cut=cut, stop=stop, constrained=constrained)
        for each in ([text], list(text), pieces)
    )
    assert whole == letters == cuts
    assert whole.reason == "tool_calls" or not any(_is_object(text) for _, text in whole.calls)
    growing = constrained or calling is FORCED
    for name, arguments in whole.calls:
        assert name
        if not growing:
            assert _is_object(arguments)
        assert arguments.startswith("{") or (cut and calling is FORCED and not arguments)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@pytest.mark.parametrize("name", FORMS)
def test_what_calls_a_function_that_is_not_there_is_text(name: str) -> None:
    model, text, calls = FORMS[name]
    seen = everywhere(model, text, Calling("auto", ("nobody",)))
    assert (seen.calls, seen.reason) == ([], "stop")
    assert all(called in seen.text for called, _ in calls)


@pytest.mark.parametrize("name", [name for name in FORMS if {c for c, _ in FORMS[name][2]} > {"f"}])
def test_a_known_function_beside_it_is_called(name: str) -> None:
    model, text, calls = FORMS[name]
    seen = everywhere(model, text, Calling("auto", ("f",)))
    assert seen.calls == [call for call in calls if call[0] == "f"]
