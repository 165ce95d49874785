"""Calls of strict functions in the model's own words: grammar, transcript and tokenizer
together."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from supervisor.errors import ClientError, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Schema
from tests.helpers.dialects import (
    FUNCTION_GEMMA,
    GEMMA4,
    GLM,
    GPT_OSS,
    HERMES,
    KIMI_K2,
    KIMI_K3,
    LLAMA,
    LONGCAT,
    MINICPM,
    MINIMAX,
    MISTRAL,
    MUSE,
    PLAIN,
    PYTHONIC,
    QWEN_CODER,
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
from worker.grammar.vocabulary import Vocabulary

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
    schema = None if structure is None else Schema(json.dumps(structure))
    calling = Calling("auto", tuple(function["name"] for function in functions))
    request = Generate("r", Chat([], tools), 0.0, calling=calling, structure=schema)
    tokens = written(model, prompt) if prompt else []
    transcript = transcripts(model).make(request, tokens)
    return grammars(model).compile(request, tokens), transcript


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


# ── what a model writes that knows nothing ───────────────────────────────────────────────────────

NAMES = ("get", "get_weather", "a.b", "x-y", "true", "functions.f", "name", "call")
"""One is the beginning of another, others are words of JSON or of the forms."""
FUNCTIONS = [{"name": name, "parameters": {}, "strict": name == "x-y"} for name in NAMES]
OLD_MISTRAL = Model(MISTRAL.template, ("[TOOL_CALLS]",))
STARTS = {
    "hermes": (HERMES, "Hi <tool_call>"),
    "hermes-list": (HERMES, "<tool_call>["),
    "spelled": (SPELLED, "<tool_call>"),
    "thinking": (THINKING, "<think>x</think><tool_call>"),
    "thought": (THINKING, "<think>I use <tool_call>{"),
    "thought-list": (THINKING, "<think>x<tool_call>[{"),
    "llama": (LLAMA, '{"name": "'),
    "llama-type": (LLAMA, '{"type": "function", "'),
    "llama-tag": (LLAMA, "x<|python_tag|>"),
    "llama-second": (LLAMA, '{"name": "get", "parameters": {}}; {"name": '),
    "mistral": (BOTH, "[TOOL_CALLS]"),
    "mistral-old": (OLD_MISTRAL, "[TOOL_CALLS]"),
    "mistral-list": (BOTH, "[TOOL_CALLS] [{"),
    "kimi": (KIMI, "<|tool_calls_section_begin|>"),
    "harmony": (GPT_OSS, "<|channel|>commentary to="),
    "harmony-first": (GPT_OSS, " to="),
}


def random_calls(form: str, seed: int) -> list[tuple[str, str]]:
    """The calls in an answer that begins as one of STARTS and goes on by chance until it ends. As
    soon as nothing binds it, it does."""
    model, start = STARTS[form]
    ends = set(wrapper(model).eos_token_ids)
    grammar, transcript = begin(model, FUNCTIONS)
    choose = Chooser(wrapper(model), seed, patience=15.0)
    found: dict[int, tuple[str, str]] = {}

    def push(token: int) -> None:
        grammar.push(token)
        take(transcript.push(token))

    def take(delta: Any) -> None:
        for call in delta.calls:
            name, arguments = found.get(call.index, ("", ""))
            found[call.index] = name + call.name, arguments + call.arguments

    for token in written(model, start):
        assert token in allowed(grammar)
        push(token)
    for length in range(500):
        tokens = allowed(grammar)
        token = choose(tokens if grammar.binds else sorted(ends), length)
        if token in ends:
            take(transcript.finish())
            assert grammar.incomplete_error(called=True) is None
            return list(found.values())
        push(token)
    return []  # cut: not judged


@pytest.mark.parametrize("form", STARTS)
def test_whatever_a_model_writes_a_call_is_of_a_declared_function(form: str) -> None:
    judged = [call for seed in range(8) for call in random_calls(form, seed)]
    assert len(judged) > 4
    for name, arguments in judged:
        assert name in NAMES
        assert isinstance(json.loads(arguments), dict)
    assert len({name for name, _ in judged}) > 1


HEADS = {
    "glm": (GLM, "<tool_call>", "\n"),
    "glm-close": (GLM, "<tool_call>", "<arg_key>"),
    "qwen": (QWEN_CODER, "<tool_call>\n<function=", ">"),
    "minimax": (MINIMAX, '<minimax:tool_call>\n<invoke name="', '"'),
    "gemma": (GEMMA4, "<|tool_call>call:", "{"),
    "function-gemma": (FUNCTION_GEMMA, "<start_function_call>call:", "{"),
    "longcat": (LONGCAT, "<longcat_tool_call>", "\n"),
    "pythonic": (PYTHONIC, "<|tool_call_start|>[", "("),
    "minicpm": (MINICPM, '<function name="', '"'),
    "muse": (MUSE, '<atem:function_calls><atem:invoke name="', '"'),
    "kimi-k3": (KIMI_K3, '<|open|>tools<|sep|><|open|>call tool="', '"'),
}


@pytest.mark.parametrize("form", HEADS)
def test_where_calls_are_no_json_the_name_is_a_declared_one(form: str) -> None:
    model, before, behind = HEADS[form]
    for name in ("get", "get_weather"):
        grammar, _ = begin(model, [{"name": "get"}, {"name": "get_weather"}])
        follow(grammar, written(model, before))
        blanks = set(written(model, " \n\r\t"))
        assert set(allowed(grammar)) - blanks == set(written(model, "g"))
        follow(grammar, written(model, name))
        assert grammar.binds
        assert set(allowed(grammar)) & set(written(model, "x1}")) == set()
        follow(grammar, written(model, behind))
        assert not grammar.binds


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Rome"}',
        "{}",
        "{ x",
        '{\n  "names": []}',
        '{"type": "circle", "radius": 5}',
        '\n{"a": {"name": "g", "parameters": {}}}',
        '{"name": "f", "parameters": {}}\n{"b"',
    ],
)
def test_json_that_is_no_call_is_an_answer_like_any(text: str) -> None:
    """Llama's calls have no marker."""
    grammar, transcript = begin(LLAMA, [{"name": "f"}])
    follow(grammar, written(LLAMA, text))
    assert not grammar.binds
    if "f" not in text:
        shown = "".join(transcript.push(token).text for token in written(LLAMA, text))
        assert (shown + transcript.finish().text).strip() == text.strip()


@pytest.mark.parametrize("key", ["id", "parameters", "arguments"])
def test_a_bare_call_begins_with_its_name(key: str) -> None:
    grammar, _ = begin(LLAMA, [{"name": "f"}])
    follow(grammar, written(LLAMA, f'{{"{key}'))
    assert written(LLAMA, '"')[0] not in allowed(grammar)


def test_what_a_call_may_be_written_like() -> None:
    for arguments in (
        '{\n    "a": [1, -0.5e3, "\\u00e9\\ud83d\\ude00 \\/ é"],\n    "b": {}\n  }', "{ }"
    ):  # fmt: skip
        text = f'<tool_call>\n{{\n  "name": "g",\n  "arguments": {arguments}\n}}\n</tool_call>'
        grammar, _ = begin(HERMES, [G])
        follow(grammar, written(HERMES, text))
        assert not grammar.binds
        assert calls(HERMES, text, [G]) == [("g", arguments)]
    for wrong in (
        '{"a": 1,,}',
        "{,",
        '{"a": 1 "b"',
        '{"a": truE',
        '{"a": NaN',
        '{"a": "\\ud800"',
        '"{',
        "{'a",
        '{"a": 07',
        '{"a": 1.}',
    ):
        grammar, _ = begin(HERMES, [G])
        *tokens, last = written(HERMES, f'<tool_call>{{"name": "g", "arguments": {wrong}')
        refused = False
        for token in [*tokens, last]:
            refused = refused or token not in allowed(grammar)
            grammar.push(token)
        assert refused


@pytest.mark.parametrize(
    ("written_as", "meant"),
    [
        (r"\d+", r"\d+"),
        (r"C:\Users\me", r"C:\Users\me"),
        (r"\\d \n \" \é", '\\d \n " \\é'),
        ("if x:\n\ty\r\n", "if x:\n\ty\r\n"),
    ],
)
def test_what_a_string_in_a_call_may_have_is_made_json(written_as: str, meant: str) -> None:
    text = f'<tool_call>{{"name": "g", "arguments": {{"a": "{written_as}"}}}}</tool_call>'
    grammar, _ = begin(HERMES, [G])
    follow(grammar, written(HERMES, text))
    ((_, arguments),) = calls(HERMES, text, [G])
    assert json.loads(arguments) == {"a": meant}


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        ('{"name": "g", "arguments": {"a": 1,}}', {"a": 1}),
        ('{"name": "g", "arguments": {"a": [1, 2 , ] , }}', {"a": [1, 2]}),
        ('{"name": "g", "arguments": {"a": 1\n"b": [1\n 2]}}', {"a": 1, "b": [1, 2]}),
        ('{"name": "g", "arguments": {"a": True, "b": [None]}}', {"a": True, "b": [None]}),
        ('{"name": "g", "arguments": {"a": 1}', {"a": 1}),
        ('{"name": "g", "arguments": {"a": 1', {"a": 1}),
        ('{"name": "g", "arguments": {}', {}),
    ],
)
def test_what_can_be_mended_may_be_written(call: str, meant: dict[str, Any]) -> None:
    text = f"<tool_call>\n{call}\n</tool_call>"
    grammar, _ = begin(HERMES, [G])
    follow(grammar, written(HERMES, text))
    assert not grammar.binds
    ((name, arguments),) = calls(HERMES, text, [G])
    assert (name, json.loads(arguments)) == ("g", meant)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("written_as", "meant"),
    [
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1\n2]\n"b": "\\d"}', {"a": [1, 2], "b": "\\d"}),
        ('{"a": [True, None, ]}', {"a": [True, None]}),
    ],
)
def test_every_form_that_is_json_may_be_mended(
    form: str, written_as: str, meant: dict[str, Any]
) -> None:
    model, before, behind = FORMS[form]
    text = f"{before}{written_as}{behind}".replace("F", "g", 1)
    grammar, _ = begin(model, [G])
    follow(grammar, written(model, text))
    *_, (name, arguments) = calls(model, text, [G])
    assert (name, json.loads(arguments)) == ("g", meant)


def test_a_call_without_its_last_bracket_ends_with_the_marker_alone() -> None:
    grammar, _ = begin(HERMES, [G])
    follow(grammar, written(HERMES, '<tool_call>{"name": "g", "arguments": {"a": 1}'))
    assert grammar.binds
    assert not set(wrapper(HERMES).eos_token_ids) & set(allowed(grammar))


def test_white_space_in_a_call_has_an_end() -> None:
    grammar, _ = begin(HERMES, [G])
    follow(grammar, written(HERMES, '<tool_call>{"name": "g", "arguments": {'))
    blank = written(HERMES, " ")[0]
    for _ in range(40):
        assert blank in allowed(grammar)
        grammar.push(blank)
    assert blank not in allowed(grammar)


def test_behind_a_call_comes_its_end_or_another() -> None:
    model, text = HERMES, '<tool_call>{"name": "g", "arguments": {}}'
    ends = set(wrapper(model).eos_token_ids)
    grammar, _ = begin(model, [G])
    follow(grammar, written(model, text))
    close = set(written(model, "</tool_call>"))
    assert set(allowed(grammar)) == ends | close | set(written(model, " \n\r\t"))
    follow(grammar, written(model, "</tool_call>"))
    assert not grammar.binds
    follow(grammar, written(model, "Done. " + text))
    assert grammar.binds


def test_in_thoughts_a_marker_may_be_spoken_of() -> None:
    grammar, _ = begin(THINKING, [G])
    follow(
        grammar,
        written(THINKING, "<think>I call within <tool_call></tool_call> tags, <tool_call> "),
    )
    follow(grammar, written(THINKING, "x {</think> Well"))
    assert not grammar.binds


def test_a_hundred_tools_cost_no_more_than_one() -> None:
    functions = [{"name": f"f{i}"} for i in range(128)]
    grammar, _ = begin(HERMES, functions)
    follow(grammar, written(HERMES, '<tool_call>{"name": "f127", "arguments": {}}</tool_call>'))
    grammar, _ = begin(HERMES, functions)
    follow(grammar, written(HERMES, '<tool_call>{"name": "f12'))
    assert set(allowed(grammar)) == set(written(HERMES, '01234567"'))


# ── when it is made ──────────────────────────────────────────────────────────────────────────────


def test_nobody_waits_for_a_call_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary takes a second. It is made while the prompt is read, and a call waits."""
    may_go = threading.Event()

    def slowly(tokenizer: Any, size: int) -> Vocabulary:
        assert may_go.wait(30)
        return Vocabulary(tokenizer, size)

    monkeypatch.setattr("worker.grammar.compile.Vocabulary", slowly)
    tools = [{"type": "function", "function": G}]
    made = ConstraintCompiler(wrapper(HERMES), len(wrapper(HERMES)))
    grammar: Any = made.compile(Generate("r", Chat([], tools), 0.0, calling=AUTO))
    for token in written(HERMES, "Well < {"):
        assert not grammar.binds
        grammar.push(token)
    caller = threading.Thread(target=grammar.push, args=written(HERMES, "<tool_call>"))
    caller.start()
    assert caller.is_alive()
    may_go.set()
    caller.join(30)
    assert set(allowed(grammar)) == set(written(HERMES, " \n\r\t[{"))


def test_a_vocabulary_that_can_t_be_watched_leaves_calls_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(tokenizer: Any, size: int) -> Vocabulary:
        raise UnsupportedValue("no", param="response_format")

    monkeypatch.setattr("worker.grammar.compile.Vocabulary", never)
    made = ConstraintCompiler(wrapper(HERMES), len(wrapper(HERMES)))
    tools = [{"type": "function", "function": G}]
    grammar: Any = made.compile(Generate("r", Chat([], tools), 0.0, calling=AUTO))
    for token in written(HERMES, '<tool_call>{"name": "unheard", "arg'):
        assert not grammar.binds
        grammar.push(token)
    assert grammar.incomplete_error(called=False) is None


def test_an_answer_without_an_end_has_none() -> None:
    tools = [{"type": "function", "function": G}]
    (end,) = wrapper(HERMES).eos_token_ids
    for endless in (False, True):
        request = Generate("r", Chat([], tools), 0.0, calling=AUTO, ignore_eos=endless)
        grammar: Any = grammars(HERMES).compile(request)
        assert grammar.endless is endless
        grammar.push(end)
        assert grammar.binds is not endless
