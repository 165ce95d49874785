"""Answers under a grammar from their first token: grammar, preamble and transcript together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Schema
from tests.helpers.dialects import (
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    GPT_OSS,
    HERMES,
    KIMI_K3,
    LLAMA,
    LONGCAT,
    MISTRAL,
    PLAIN,
    THINKING,
    TOOLS,
    F,
    G,
    Model,
    Seen,
    transcripts,
    wrapper,
)
from tests.property import structured_served
from tests.property.structured import allowed
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.compile import ConstraintCompiler
from worker.output.preamble import MarkerTokens
from worker.output.transcript import AnyTranscript, TranscriptFactory

AUTO = Calling("auto", ("f", "g"))
FORCED = Calling("required", ("f", "g"))
ONE = Calling("auto", ("f", "g"), parallel=False)
TAGGED = '{"tag": "<think>", "b": 1}'
CALLED = '{"name": "f", "parameters": {"a": 1, "b": "x"}}'
GLM_MARKED = Model(GLM.template, ("<tool_call>", "</tool_call>"))
GLM_THINKING = Model(GLM.template, (*GLM_MARKED.tokens, "<think>", "</think>"))
GLM_CALL = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>'
HERMES_CALLS = (
    HERMES_CALL
    + '\n<tool_call>\n{"name": "g", "arguments": {"list": [1, {"k": null}]}}\n</tool_call>'
)


@cache
def grammars(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(wrapper(model), len(wrapper(model)))


def spelled(model: Model, text: str) -> list[int]:
    """The text in letters alone, as a model that means no marker would spell it."""
    tokenizer = wrapper(model)
    return [
        token for letter in text for token in tokenizer.encode(letter, add_special_tokens=False)
    ]


def written(model: Model, text: str) -> list[int]:
    """The text as the tokenizer has it, markers being tokens."""
    tokens: list[int] = wrapper(model).encode(text, add_special_tokens=False)
    return tokens


def begin(
    model: Model,
    schema: object,
    calling: Calling | None = None,
    *,
    prompt: str = "",
    stop: Sequence[str] = (),
) -> tuple[AnswerConstraint, AnyTranscript]:
    """`schema` None = none."""
    request = asked(schema, calling, stop)
    tokens = written(model, prompt) if prompt else []
    grammar = grammars(model).compile(request, tokens)
    assert isinstance(grammar, AnswerConstraint)
    return grammar, transcripts(model).make(request, tokens)


def asked(schema: object, calling: Calling | None = None, stop: Sequence[str] = ()) -> Generate:
    """The request for it."""
    structure = None if schema is None else Schema(json.dumps(schema))
    return Generate(
        "r", Chat([], TOOLS), 0.0, stop=tuple(stop), calling=calling, structure=structure
    )


def follow(
    model: Model,
    tokens: Sequence[int],
    schema: object,
    calling: Calling | None = None,
    *,
    cut: bool = False,
    **options: Any,
) -> tuple[Seen, AnswerConstraint]:
    """What a client sees of tokens that are all allowed, and of the same told once more to a
    transcript made anew, which is what a replay is, wherever the cut was."""
    grammar, transcript = begin(model, schema, calling, **options)
    for token in tokens:
        assert token in allowed(grammar), wrapper(model).decode([token])
        grammar.push(token)
    before = [transcript.push(token) for token in tokens]
    whole = [*before, transcript.finish(cut=cut)]
    _, again = begin(model, schema, calling, **options)
    assert [*map(again.push, tokens), again.finish(cut=cut)] == whole
    assert again.reasoning_tokens == transcript.reasoning_tokens
    calls: list[tuple[str, str]] = []
    for call in (call for delta in whole for call in delta.calls):
        if call.name:
            calls.append((call.name, ""))
        calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    text, reasoning = ("".join(part) for part in zip(*[delta[:2] for delta in whole], strict=True))
    return Seen(text, calls, transcript.finish_reason, reasoning), grammar


# ── an answer is taken as it stands ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [THINKING, HERMES, GPT_OSS, KIMI_K3, PLAIN, GLM_THINKING])
@pytest.mark.parametrize("calling", [None, AUTO])
@pytest.mark.parametrize("marked", [False, True])
def test_markers_in_an_answer_are_text(model: Model, calling: Calling | None, marked: bool) -> None:
    if calling and model in (KIMI_K3, PLAIN):
        return  # refused, see below
    markers = "<think></think><tool_call></tool_call><|channel|>final<|message|><|im_start|>"
    for value in ({"tag": markers, "b": 1}, markers, [markers], {markers: 1}):
        text = json.dumps(value, separators=(",", ":"))
        schema = {"const": value}
        seen, grammar = follow(model, spelled(model, text), schema, calling)
        assert seen == Seen(text, [], "stop")
        assert grammar.complete
        assert grammar.incomplete_error(called=False) is None
    if not marked:
        return
    # The tokens of markers that are no special tokens may stand in strings as well.
    grammar, transcript = begin(model, {"type": "string"}, calling)
    text = '"<think></think><tool_call>"'
    tokens = written(model, text)
    for token in tokens:
        if token not in allowed(grammar):
            return
        grammar.push(token)
    assert "".join([*(transcript.push(t).text for t in tokens), transcript.finish().text]) == text


@pytest.mark.parametrize("text", [TAGGED, CALLED, '{"b": "[TOOL_CALLS]"}'])
@pytest.mark.parametrize("model", [LLAMA, MISTRAL, THINKING])
def test_an_answer_that_looks_like_a_call_is_none(model: Model, text: str) -> None:
    seen, _ = follow(model, spelled(model, text), {"type": "object"})
    assert seen == Seen(text, [], "stop")


def test_stop_strings_hold_in_an_answer() -> None:
    _, transcript = begin(THINKING, {"type": "object"}, stop=["END"])
    told = [transcript.push(t).text for t in spelled(THINKING, '{"a": "x END y"}')]
    assert "".join(told) == '{"a": "x '
    assert transcript.stopped
    assert transcript.finish().text == ""


# ── what comes before it ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("calling", [None, AUTO])
def test_thinking_ends_with_its_token_and_not_with_its_letters(calling: Calling | None) -> None:
    thought = [
        *written(THINKING, "<think>"),
        *spelled(THINKING, "a </think> {"),
        *written(THINKING, "é</think>\n"),
    ]
    tokens = [*thought, *spelled(THINKING, TAGGED)]
    seen, grammar = follow(THINKING, tokens, {"type": "object"}, calling)
    assert seen.text == TAGGED
    assert seen.reasoning.startswith("a")
    assert seen.reasoning.endswith("{é")
    assert grammar.complete
    tokens.remove(written(THINKING, "<think>")[0])
    again, _ = follow(THINKING, tokens, {"type": "object"}, calling, prompt="x<think>\n")
    assert again == seen
    transcript = begin(THINKING, {"type": "object"}, calling)[1]
    for token in thought:
        transcript.push(token)
    assert transcript.reasoning_tokens == len(thought) - 1


def test_thinking_of_several_tokens() -> None:
    tokens = written(GEMMA4, "<|channel>thought\nHm.<channel|>{}")
    seen, _ = follow(GEMMA4, tokens, {"type": "object"})
    assert seen == Seen("{}", [], "stop", "Hm.")
    seen, _ = follow(
        KIMI_K3, written(KIMI_K3, "<|open|>think<|sep|>Hm.<|close|>think<|sep|>{}"), {}
    )
    assert seen == Seen("{}", [], "stop", "Hm.")
    seen, _ = follow(GEMMA4, written(GEMMA4, "{}"), {}, prompt="<|channel>thought\n<channel|>")
    assert seen == Seen("{}", [], "stop")


HARMONY = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.mark.parametrize("header", ["final", "final <|constrain|>json", " final"])
@pytest.mark.parametrize("calling", [None, AUTO])
def test_harmonys_answer_stands_in_the_final_channel(header: str, calling: Calling | None) -> None:
    """Only there does the grammar hold, whatever other channels say."""
    text = '{"a": "<|channel|>analysis<|message|>"}'
    final = f"<|channel|>{header}<|message|>"
    note = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    for before, reasoning in (("", ""), (HARMONY, "Hm."), (HARMONY + note, "Hm.\nI look.")):
        tokens = [*written(GPT_OSS, before + final), *spelled(GPT_OSS, text)]
        seen, grammar = follow(GPT_OSS, tokens, {"type": "object"}, calling)
        assert seen == Seen(text, [], "stop", reasoning)
        assert grammar.complete
    seen, _ = follow(GPT_OSS, spelled(GPT_OSS, text), {"type": "object"}, calling)
    assert seen.text == text


def test_an_answer_cut_while_it_is_undecided_is_lost_to_nobody() -> None:
    seen, grammar = follow(GEMMA4, written(GEMMA4, "<|channel>tho"), {}, cut=True)
    assert seen.reasoning + seen.text == "<|channel>tho"
    assert not grammar.complete
    seen, _ = follow(THINKING, written(THINKING, "<think>Hm"), {}, cut=True)
    assert seen == Seen("", [], "stop", "Hm")


# ── answers or calls ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "text", "calls"),
    [
        (HERMES, HERMES_CALL, [F]),
        (HERMES, HERMES_CALLS, [F, G]),
        (THINKING, f"<think>I call.</think>\n\n{HERMES_CALLS}", [F, G]),
        (THINKING, f"<think>I call.{HERMES_CALL}", [F]),
        (GLM_MARKED, GLM_CALL, [("f", '{"a": 1}')]),
        (GLM_MARKED, f"{GLM_CALL}\n{GLM_CALL}", [("f", '{"a": 1}')] * 2),
        (GLM_THINKING, f"<think>I call.</think>\n{GLM_CALL}", [("f", '{"a": 1}')]),
        (GLM_THINKING, f"<think>I call.{GLM_CALL}", [("f", '{"a": 1}')]),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}', [F]),
        (
            GPT_OSS,
            HARMONY + "<|channel|>commentary to=functions.f <|constrain|>json<|message|>" + F[1],
            [F],
        ),
    ],
)
def test_the_model_may_call_instead(model: Model, text: str, calls: list[Any]) -> None:
    tokens = written(model, text)
    seen, grammar = follow(model, tokens, {"type": "object"}, AUTO)
    assert (seen.text, seen.calls, seen.reason) == ("", calls, "tool_calls")
    assert seen.reasoning in ("", "I call.", "Hm.")
    if text.startswith("<think>I call.<"):
        _, transcript = begin(model, {"type": "object"}, AUTO)
        for token in tokens:
            transcript.push(token)
        markers = 2 if "</think>" in text else 1
        assert transcript.reasoning_tokens == len("I call.") + markers
    assert set(wrapper(model).eos_token_ids) <= set(allowed(grammar))
    assert grammar.incomplete_error(called=True) is None
    _, one = begin(model, {"type": "object"}, ONE)
    for token in tokens:
        if one.stopped:
            break
        one.push(token)
    one.finish()
    assert one.finish_reason == "tool_calls"


def test_a_grammar_describes_hermes_calls() -> None:
    grammar, _ = begin(HERMES, {"type": "array"}, AUTO)
    for token in written(HERMES, '<tool_call>\n{"name": "'):
        assert token in allowed(grammar)
        grammar.push(token)
    assert set(allowed(grammar)) == {*spelled(HERMES, "f"), *spelled(HERMES, "g")}
    grammar, _ = begin(HERMES, {"type": "array"}, ONE)
    for token in written(HERMES, HERMES_CALL):
        grammar.push(token)
    assert set(allowed(grammar)) == set(wrapper(HERMES).eos_token_ids)


def test_a_call_begins_the_answer_or_does_not_come() -> None:
    (marker,) = written(GLM_MARKED, "<tool_call>")
    grammar, _ = begin(GLM_MARKED, {"type": "object"}, AUTO)
    assert marker in allowed(grammar)
    grammar.push(spelled(GLM_MARKED, "{")[0])
    assert marker not in allowed(grammar)
    assert marker not in allowed(begin(GLM_MARKED, {"type": "object"})[0])


def test_a_call_that_is_none_is_no_answer() -> None:
    seen, grammar = follow(
        GLM_MARKED, written(GLM_MARKED, "<tool_call>f\nlet me see"), {"type": "object"}, AUTO
    )
    assert seen.reason == "stop"
    error = grammar.incomplete_error(called=False)
    assert error is not None
    assert (error.code, error.param) == ("unsupported_value", "response_format")


@pytest.mark.parametrize("model", [LLAMA, PLAIN, KIMI_K3, LONGCAT, FUNCTION_GEMMA])
def test_calls_that_can_t_be_told_from_answers_are_refused(model: Model) -> None:
    with pytest.raises(UnsupportedValue, match="tool calls") as caught:
        begin(model, {"type": "object"}, AUTO)
    assert caught.value.param == "response_format"
    begin(model, {"type": "object"})


# ── calls that are demanded ──────────────────────────────────────────────────────────────────────

ARRAY = '[{"name": "f", "arguments": {"a": 1, "b": "x"}}]'
HARMONY_CALL = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{F[1]}"
UNMARKED = Model(HERMES.template)
"""Its markers are no tokens."""
DEMANDED = [
    (THINKING, "<think>", "</think>\n", HERMES_CALL, [F]),
    (LONGCAT, "<longcat_think>", "</longcat_think>\n", ARRAY, [F]),
    (GEMMA4, "<|channel>thought\n", "<channel|>", ARRAY, [F]),
    (KIMI_K3, "<|open|>think<|sep|>", "<|close|>think<|sep|>", ARRAY, [F]),
    (GPT_OSS, "<|channel|>analysis<|message|>", "<|end|><|start|>assistant", HARMONY_CALL, [F]),
    (GPT_OSS, "<|channel|>analysis<|message|>", "<|end|>", HARMONY_CALL, [F]),
]


@pytest.mark.parametrize(("model", "start", "end", "text", "calls"), DEMANDED)
def test_thinking_before_demanded_calls_ends_with_its_token(
    model: Model, start: str, end: str, text: str, calls: list[Any]
) -> None:
    """Letters spell markers and calls as well: to neither grammar nor transcript do they count."""
    thought = f"a {end.strip()} {text[:36]} {start}b"
    tokens = [*spelled(model, thought), *written(model, end + text)]
    expected = Seen("", calls, "tool_calls", thought)
    seen, grammar = follow(model, [*written(model, start), *tokens], None, FORCED)
    assert seen == expected
    assert grammar.complete
    assert follow(model, tokens, None, FORCED, prompt=f"x{start}")[0] == expected
    # It need not think.
    seen, _ = follow(model, written(model, text), None, FORCED)
    assert seen == Seen("", calls, "tool_calls")


def test_a_call_that_its_grammar_knows_ends_thinking() -> None:
    tokens = [*written(THINKING, "<think>I call."), *written(THINKING, HERMES_CALL)]
    seen, grammar = follow(THINKING, tokens, None, FORCED)
    assert seen == Seen("", [F], "tool_calls", "I call.")
    assert grammar.complete
    # Nothing else is one in a form that the grammar does not describe.
    thought = written(GLM_THINKING, f"<think>I call.{GLM_CALL}")
    seen, grammar = follow(
        GLM_THINKING, [*thought, *written(GLM_THINKING, "</think>" + ARRAY)], None, FORCED
    )
    assert seen == Seen("", [F], "tool_calls", f"I call.{GLM_CALL}")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (HERMES, HERMES_CALLS), (UNMARKED, HERMES_CALL), (PLAIN, ARRAY), (GPT_OSS, HARMONY_CALL),
        (THINKING, f"<think>Hm.</think>{HERMES_CALL}"), (LLAMA, ARRAY), (MISTRAL, ARRAY),
        (GPT_OSS, f"{HARMONY}{HARMONY_CALL}"),
    ],
)  # fmt: skip
def test_a_demanded_call_that_is_cut_is_one_as_far_as_it_came(model: Model, text: str) -> None:
    tokens, told = written(model, text), []
    for size in range(len(tokens) + 1):
        transcript = transcripts(model).make(asked(None, FORCED), [])
        deltas = [*map(transcript.push, tokens[:size]), transcript.finish(cut=True)]
        assert not any(delta.text for delta in deltas)
        pieces = [call for delta in deltas for call in delta.calls]
        told.append([(call.name, call.index) for call in pieces if call.name])
        before = "".join(call.arguments for call in pieces if not call.index)
        assert F[1].startswith(before)
        if model is not GPT_OSS:
            assert bool(told[-1]) == ('"name": "f"' in wrapper(model).decode(tokens[:size]))
    assert told[-1][0] == ("f", 0)
    assert sum(1 for each in told if each) > len(F[1])


def test_harmonys_demanded_call_is_one_of_the_tools() -> None:
    grammar, _ = begin(GPT_OSS, None, FORCED)
    (channel, start), (end,) = written(GPT_OSS, "<|channel|><|start|>"), written(GPT_OSS, "<|end|>")
    assert set(allowed(grammar)) == {channel, start}
    grammar.push(channel)
    assert set(allowed(grammar)) == {*spelled(GPT_OSS, "a"), *spelled(GPT_OSS, "c")}
    for token in spelled(GPT_OSS, "commentary to=functions."):
        grammar.push(token)
    assert set(allowed(grammar)) == {*spelled(GPT_OSS, "f"), *spelled(GPT_OSS, "g")}
    assert (
        MarkerTokens(wrapper(GPT_OSS)).prompt_ending(
            [channel, end, start, *spelled(GPT_OSS, "assistant")]
        )
        == "before"
    )


# ── the prompt's end ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "ending"),
    [
        ("", "before"), ("x", "before"), ("x<think>", "inside"), ("x<think>\n \n\n\n", "inside"),
        ("<think>x", "before"), ("<think>\n\n</think>\n\n\n\n", "after"),
        ("</think><think>", "inside"),
        ("<think>" + " " * 20, "before"), ("<think> </think>x\n", "before"),
    ],
)  # fmt: skip
def test_grammar_and_transcript_know_how_the_prompt_ends(prompt: str, ending: str) -> None:
    tokens = written(THINKING, prompt) if prompt else []
    assert MarkerTokens(wrapper(THINKING)).prompt_ending(tokens) == ending
    grammar, _ = begin(THINKING, {"type": "object"}, prompt=prompt)
    start, brace = written(THINKING, "<think>")[0], spelled(THINKING, "{")[0]
    found = allowed(grammar)
    assert (start in found) == (ending != "after")
    assert (len(found) > 200) == (ending == "inside")
    assert brace in found
    made = TranscriptFactory(wrapper(THINKING)).make(Generate("r", Chat([]), 0.0), tokens)
    made.push(spelled(THINKING, "a")[0])
    assert made.reasoning_tokens == (ending == "inside")


# ── through the engine ───────────────────────────────────────────────────────────────────────────


def test_the_demo_models_answers_are_valid_or_calls() -> None:
    """The short form of `python -m tests.property.structured --served`."""
    wanted = structured_served.answers(1, 2 * len(structured_served.LITERALS), literals=True)
    ended, why = structured_served.run(wanted)
    assert not why
    for kind in ("stop", "stop after thinking", "tool_calls"):
        assert ended[kind]
    assert ended["stop"] + ended["stop after thinking"] > len(wanted) / 4
