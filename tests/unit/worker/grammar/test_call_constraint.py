"""Calls of strict functions in the model's own words: grammar, transcript and tokenizer
together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from supervisor.errors import ClientError, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Structure
from tests.helpers.dialects import (
    GLM,
    GPT_OSS,
    HERMES,
    KIMI_K2,
    LLAMA,
    MISTRAL,
    PLAIN,
    THINKING,
    Model,
    transcripts,
    wrapper,
)
from tests.helpers.grammars import CLOSED, encode, follow
from tests.property.structured import Chooser, allowed, fault
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.call_constraint import CallConstraint
from worker.grammar.compile import ConstraintCompiler

AUTO = Calling("auto", ("f", "g"))
F: dict[str, Any] = {"name": "f", "parameters": CLOSED, "strict": True}
G: dict[str, Any] = {"name": "g", "parameters": CLOSED}
SPELLED = Model(HERMES.template, (">{", ">\n", "> x", '{"x', '\n{"n', '[{"'))
"""Markers are no tokens, and some tokens go on behind them."""
BOTH = Model(MISTRAL.template, ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"))
KIMI = Model(KIMI_K2.template, (*KIMI_K2.tokens, "<|tool_call_argument_begin|>"))
ARGUMENTS = '{"a": 1}'
FORMS = {
    "hermes": (HERMES, '<tool_call>\n{"name": "F", "arguments": ', "}\n</tool_call>"),
    "hermes-close": (HERMES, '<tool_call>{"name":"F","arguments":', "}</tool_call>"),
    "hermes-list": (HERMES, '<tool_call>[{"name": "F", "arguments": ', "}]</tool_call>"),
    "spelled": (SPELLED, '<tool_call>\n{"name": "F", "arguments": ', "}\n</tool_call>"),
    "thinking": (THINKING, '<think>Hm.</think>\n\n<tool_call>\n{"name": "F", "arguments": ', "}"),
    "in-thoughts": (THINKING, '<think>Hm.<tool_call>\n{"name": "F", "arguments": ', "}"),
    "second": (
        HERMES,
        'I do.<tool_call>{"name": "g", "arguments": {}}</tool_call>\n<tool_call>\n'
        '{"name": "F", "arguments": ',
        "}</tool_call>",
    ),
    "llama": (LLAMA, '{"name": "F", "parameters": ', "}"),
    "llama-blank": (LLAMA, '\n\n{"type": "function", "name": "F", "parameters": ', "}"),
    "llama-tag": (LLAMA, 'Well.<|python_tag|>{"name": "F", "parameters": ', "}"),
    "llama-second": (
        LLAMA,
        '{"name": "g", "parameters": {"x": [{}]}}; {"name": "F", "parameters": ',
        "}",
    ),
    "mistral": (BOTH, "[TOOL_CALLS]F[ARGS]", ""),
    "mistral-id": (BOTH, "Now.[TOOL_CALLS]F[CALL_ID]123456789[ARGS] ", ""),
    "mistral-list": (BOTH, '[TOOL_CALLS] [{"name": "F", "arguments": ', "}]"),
    "kimi": (
        KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.F:0<|tool_call_argument_begin|>",
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "harmony": (
        GPT_OSS,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.F <|constrain|>json<|message|>",
        "<|call|>",
    ),
    "harmony-first": (GPT_OSS, " to=functions.F<|channel|>commentary json<|message|>", ""),
}


def written(model: Model, text: str) -> list[int]:
    """The text as the tokenizer has it, but for tokens that lead on behind a marker."""
    texts = re.split(r"(?<=>)(?=[{\n])", text) if model is SPELLED else [text]
    return [token for each in texts for token in encode(wrapper(model), each)]


@cache
def grammars(model: Model) -> ConstraintCompiler:
    return ConstraintCompiler(wrapper(model), len(wrapper(model)))


def begin(
    model: Model,
    functions: Sequence[dict[str, Any]] = (F, G),
    *,
    structure: object = None,
    prompt: str = "",
) -> tuple[Any, Any]:
    """The constraint and the transcript of an answer."""
    tools = [{"type": "function", "function": function} for function in functions]
    schema = None if structure is None else Structure(json.dumps(structure))
    request = Generate("r", Chat([], tools), 0.0, calling=AUTO, structure=schema)
    tokens = written(model, prompt) if prompt else []
    return grammars(model).compile(request, tokens), transcripts(model).make(request, tokens)


def calls(
    model: Model, text: str, functions: Sequence[dict[str, Any]] = (F, G)
) -> list[tuple[str, str]]:
    _, transcript = begin(model, functions)
    found: dict[int, tuple[str, str]] = {}
    deltas = [transcript.push(token) for token in written(model, text)]
    for call in (call for delta in [*deltas, transcript.finish()] for call in delta.calls):
        name, arguments = found.get(call.index, ("", ""))
        found[call.index] = name + call.name, arguments + call.arguments
    return list(found.values())


@pytest.mark.parametrize("form", FORMS)
def test_arguments_follow_the_schema_of_a_strict_function(form: str) -> None:
    model, before, after = FORMS[form]
    ends = set(wrapper(model).eos_token_ids)
    before = before.replace("F", "f")
    grammar, _ = begin(model)
    assert isinstance(grammar, CallConstraint)
    follow(grammar, written(model, before))
    for text, wrong in (("{", "}1"), ('"', "b"), ('a":', '"{['), (" ", '"['), ("1", ', "')):
        follow(grammar, written(model, text))
        assert not set(written(model, wrong)) & set(allowed(grammar))
        assert not ends & set(allowed(grammar))
    follow(grammar, written(model, "}"))
    follow(grammar, written(model, after))
    assert ends <= set(allowed(grammar))
    assert calls(model, f"{before}{ARGUMENTS}{after}")[-1] == ("f", ARGUMENTS)
    grammar.push(min(ends))
    assert grammar.incomplete_error(called=True) is None
    assert allowed(grammar) == sorted(ends)


@pytest.mark.parametrize("form", FORMS)
def test_a_function_that_is_not_strict_takes_any_object(form: str) -> None:
    model, before, after = FORMS[form]
    grammar, _ = begin(model)
    loose = '{"é": [{"b": "<tool_call>{"}], "a": null}'
    follow(grammar, written(model, before.replace("F", "g")))
    assert not set(written(model, '["1')) & set(allowed(grammar))
    for letter in loose:
        follow(grammar, written(model, letter))
    follow(grammar, written(model, after))


@pytest.mark.parametrize("model", [HERMES, THINKING, SPELLED, MISTRAL, KIMI, GPT_OSS, LLAMA])
def test_all_else_is_free(model: Model) -> None:
    tokenizer = wrapper(model)
    grammar, _ = begin(model)
    everything = set(range(len(tokenizer)))
    braces = set(written(model, "{"))
    assert everything - set(allowed(grammar)) <= (braces if model is LLAMA else set())
    for text in ('Well {"name": "f", "arguments": 5} [x] <b> é', "<think>{", "</tool_call> {}"):
        follow(grammar, written(model, text))
        assert set(allowed(grammar)) == everything
        assert not grammar.binds or model is SPELLED


def test_a_token_may_not_lead_into_a_call_and_on() -> None:
    """What it says behind the marker would be unwatched."""
    grammar, _ = begin(SPELLED)
    tokenizer = wrapper(SPELLED)
    longer = set(tokenizer.convert_tokens_to_ids(list(SPELLED.tokens)))
    beyond = set(tokenizer.convert_tokens_to_ids([">{", ">\n", "> x"]))
    follow(grammar, written(SPELLED, "<tool_call"))
    assert set(range(len(tokenizer))) - set(allowed(grammar)) == beyond
    follow(grammar, written(SPELLED, "s"))
    assert longer <= set(allowed(grammar))
    # Where a call begins it is the grammar's.
    follow(grammar, written(SPELLED, "<tool_call>"))
    assert longer & set(allowed(grammar)) == set(tokenizer.convert_tokens_to_ids(['\n{"n', '[{"']))


def test_a_model_that_thinks_in_llamas_form_may_call_behind_it() -> None:
    model = Model(LLAMA.template, (*LLAMA.tokens, "<think>", "</think>"))
    for prompt, thought in (("", "<think>Hm. {</think>\n"), ("x<think>\n", "Hm. {</think>\n")):
        grammar, _ = begin(model, prompt=prompt)
        follow(grammar, written(model, f'{thought}{{"name": "f", "parameters": {{"'))
        assert allowed(grammar) == written(model, "a")


@pytest.mark.parametrize("seed", range(4))
def test_sampled_arguments_are_valid(seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]},
            "b": {"type": "array", "items": {"type": "null"}}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }  # fmt: skip
    form = list(FORMS)[seed * 4]
    model, before, _ = FORMS[form]
    before = before.replace("F", "f")
    grammar, _ = begin(model, [{"name": "f", "parameters": schema, "strict": True}])
    tokens = written(model, before)
    follow(grammar, tokens)
    choose = Chooser(wrapper(model), seed, patience=20.0)
    first = len(tokens)
    while fault({}, text := wrapper(model).decode(tokens[first:])):
        token = choose(allowed(grammar), len(tokens) - first)
        assert token not in wrapper(model).eos_token_ids
        grammar.push(token)
        tokens.append(token)
    assert not fault(schema, text)


@pytest.mark.parametrize("form", ["hermes", "mistral", "mistral-list", "kimi", "harmony"])
def test_beside_a_schema_for_the_answer(form: str) -> None:
    model, before, after = FORMS[form]
    grammar, _ = begin(model, structure={"type": "object"})
    assert isinstance(grammar, AnswerConstraint)
    before = before.replace("Now.", "").replace("F", "f")
    follow(grammar, written(model, before + '{"a": '))
    assert not set(written(model, '"[{')) & set(allowed(grammar))
    follow(grammar, written(model, "1}" + after))
    assert set(wrapper(model).eos_token_ids) <= set(allowed(grammar))
    assert grammar.incomplete_error(called=True) is None
    answer, _ = begin(model, structure={"type": "object"})
    follow(answer, written(model, '{"x": 1}'))
    assert answer.complete


def test_what_kimis_other_reader_would_find_is_no_call() -> None:
    """Where the text was given up as this form, no grammar holds."""
    text = FORMS["kimi"][1].replace("functions", " " * 300 + "functions").replace("F", "f")
    text += f'{{"a": "x"}}{FORMS["kimi"][2]}'
    assert calls(KIMI, text, [G | {"name": "f"}]) == [("f", '{"a": "x"}')]
    assert calls(KIMI, text, [F]) == []


def test_where_nothing_tells_a_call_nothing_is_watched() -> None:
    assert begin(PLAIN, [G])[0] is None


def test_what_a_strict_function_can_t_promise_is_refused() -> None:
    odd = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(
        UnsupportedValue, match=r"\(at tools\[1\]\.function\.parameters/properties/x\)"
    ) as caught:
        begin(HERMES, [G, {**F, "parameters": odd}])
    assert caught.value.param == "tools[1].function.parameters"
    with pytest.raises(ClientError):
        begin(GPT_OSS, [{**F, "parameters": {"type": "string"}}])
    assert begin(HERMES, [F, {**G, "parameters": odd}])[0] is not None


def test_the_same_tokens_lead_to_the_same_state() -> None:
    model, before, after = FORMS["second"]
    tokens = written(model, before.replace("F", "f") + ARGUMENTS + after)
    grammar, _ = begin(model)
    for at, token in enumerate(tokens):
        again, _ = begin(model)
        for earlier in tokens[:at]:
            again.push(earlier)
        assert allowed(again) == allowed(grammar)
        grammar.push(token)


def test_an_end_within_a_call_is_a_fault() -> None:
    model, before, _ = FORMS["hermes"]
    grammar, _ = begin(model)
    for token in [*written(model, before.replace("F", "f")), 10**9]:
        grammar.push(token)
    assert allowed(grammar) == sorted(wrapper(model).eos_token_ids)
    error = grammar.incomplete_error(called=True)
    assert error is not None
    assert error.param == "tools"
