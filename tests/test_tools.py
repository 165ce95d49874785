"""worker.tools: every form of tool calls, cut in every way; what is no call stays in the text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.wire.frames import Calling, Chat, Generate
from tests.test_text import Pieces
from worker.text import Decoder
from worker.tools import forced_form
from worker.tools.bounds import LONGEST
from worker.tools.jsontext import JSONText, NotJSON, object_text
from worker.tools.whole import guarded
from worker.transcript import Transcript, Transcripts

patient = settings(deadline=None, max_examples=300)

AUTO = Calling("auto", ())
ONE = Calling("auto", (), parallel=False)
FORCED = Calling("required", ("f",))


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("f", a="integer", b="string"), tool("g", list="array")]


class Model(NamedTuple):
    """What tells a model's form: its chat template and its control tokens."""

    template: str
    tokens: tuple[str, ...] = ()


HERMES = Model(
    "{% if tools %}<tool_call>{{ tool_call.name }}{% endif %}",
    ("<tool_call>", "</tool_call>"),
)
THINKING = Model(HERMES.template, (*HERMES.tokens, "<think>", "</think>"))
LLAMA = Model("{{ tools }}", ("<|python_tag|>", "<|eot_id|>"))
MISTRAL = Model("[TOOL_CALLS]{{ tools }}", ("[TOOL_CALLS]", "[ARGS]"))
KIMI_K2 = Model("<|tool_calls_section_begin|>{{ tools }}", ("<|tool_calls_section_begin|>",))
XTML = ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")
KIMI_K3 = Model("{{ tools }}", XTML)
GPT_OSS = Model(
    "{{ tools }}",
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"),
)
GLM = Model("<arg_key>{{ tools }}")
QWEN_CODER = Model("<tool_call>\n<function={{ tools }}")
MINIMAX = Model("<minimax:tool_call>{{ tools }}")
GEMMA4 = Model("<|tool_call><tool_call|>{{ tools }}", ("<|channel>", "<channel|>"))
FUNCTION_GEMMA = Model("<start_function_call>{{ tools }}")
LONGCAT = Model("<longcat_tool_call>{{ tools }}", ("<longcat_think>", "</longcat_think>"))
PYTHONIC = Model("<|tool_call_start|>{{ tools }}")
MINICPM = Model('<function name="<param name="{{ tools }}')
MUSE = Model("<atem:function_calls>{{ tools }}")
PLAIN = Model("{{ messages[0].content }}")


@cache
def transcripts(model: Model) -> Transcripts:
    return Transcripts(wrapper(model))


@cache
def wrapper(model: Model) -> Any:
    """mlx-lm's wrapper of a byte-level tokenizer with the model's control tokens."""
    from mlx_lm import tokenizer_utils
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in ("<|im_end|>", *model.tokens)]
    )
    with TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "chat_template": model.template,
            "clean_up_tokenization_spaces": False,
        }
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        load: Any = tokenizer_utils.load
        return load(Path(folder))


class Seen(NamedTuple):
    """What a client has at the end."""

    text: str
    calls: list[tuple[str, str]]
    reason: str
    reasoning: str = ""


def make(
    model: Model, calling: Calling | None, *, stop: Sequence[str] = (), prompt: str = ""
) -> Transcript:
    request = Generate("r", Chat([], TOOLS), 0.0, stop=tuple(stop), calling=calling)
    tokens = wrapper(model).encode(prompt, add_special_tokens=False) if prompt else []
    made = transcripts(model).make(request, tokens)
    assert isinstance(made, Transcript)
    return made


def read(
    model: Model,
    pieces: Iterable[str],
    calling: Calling | None = AUTO,
    *,
    cut: bool = False,
    stop: Sequence[str] = (),
    prompt: str = "",
) -> Seen:
    pieces = list(pieces)
    transcript = make(model, calling, stop=stop, prompt=prompt)
    transcript._decoder = Decoder(Pieces(pieces))
    text = reasoning = ""
    calls: list[tuple[str, str]] = []
    for token in range(len(pieces) + 1):
        delta = transcript.finish(cut=cut) if token == len(pieces) else transcript.push(token)
        text += delta.text
        reasoning += delta.reasoning
        for call in delta.calls:
            if call.name:
                assert call.index == len(calls)
                calls.append((call.name, ""))
            assert call.index == len(calls) - 1
            assert call.arguments
            calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
        if transcript.stopped:
            break
    return Seen(text, calls, transcript.finish_reason, reasoning)


def cuts(text: str) -> list[list[str]]:
    """Whole, letter by letter, in twos and fives, and once at every place."""
    chunks = [[text[at : at + size] for at in range(0, len(text), size)] for size in (1, 2, 5)]
    halves = [[text[:at], text[at:]] for at in range(1, len(text))]
    return [[text], *chunks, *halves]


def everywhere(
    model: Model,
    text: str,
    calling: Calling | None = AUTO,
    *,
    cut: bool = False,
    stop: Sequence[str] = (),
    prompt: str = "",
) -> Seen:
    """What is seen, which may not depend on the cut."""
    first, *others = (
        read(model, pieces, calling, cut=cut, stop=stop, prompt=prompt) for pieces in cuts(text)
    )
    for other in others:
        assert other == first
    return first


F = ("f", '{"a": 1, "b": "x"}')
G = ("g", '{"list": [1, {"k": null}]}')

# ── every form: one call, two calls, text around them ────────────────────────────────────────────

FORMS: dict[str, tuple[Model, str, list[tuple[str, str]]]] = {
    "hermes": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>',
        [F],
    ),
    "hermes-two": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {"list": [1, {"k": null}]}}\n</tool_call>',
        [F, G],
    ),
    "hermes-list": (
        HERMES,
        '<tool_call>[{"name": "f", "arguments": {"a": 1, "b": "x"}}, '
        '{"arguments": {"list": [1, {"k": null}]}, "name": "g"}]</tool_call>',
        [F, G],
    ),
    "hermes-openai": (
        HERMES,
        '<tool_call>{"type": "function", "function": '
        '{"name": "f", "arguments": "{\\"a\\": 1}"}}</tool_call>',
        [("f", '{"a": 1}')],
    ),
    "llama": (LLAMA, '{"name": "f", "parameters": {"a": 1, "b": "x"}}', [F]),
    "llama-tag": (LLAMA, '<|python_tag|>{"name": "f", "parameters": {"a": 1, "b": "x"}}', [F]),
    "llama-type": (
        LLAMA,
        '\n{"type": "function", "name": "f", "parameters": {"a": 1, "b": "x"}}',
        [F],
    ),
    "llama-two": (
        LLAMA,
        '{"name": "f", "parameters": {"a": 1, "b": "x"}}; '
        '{"name": "g", "parameters": {"list": [1, {"k": null}]}}',
        [F, G],
    ),
    "mistral-list": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1, "b": "x"}}, '
        '{"name": "g", "arguments": {"list": [1, {"k": null}]}, "id": "abc"}]',
        [F, G],
    ),
    "mistral": (MISTRAL, '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}', [F]),
    "mistral-id": (MISTRAL, '[TOOL_CALLS]f[CALL_ID]123[ARGS]{"a": 1, "b": "x"}', [F]),
    "mistral-two": (
        MISTRAL,
        '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}[TOOL_CALLS]g[ARGS]{"list": [1, {"k": null}]}',
        [F, G],
    ),
    "mistral-repeated": (
        MISTRAL,
        '[TOOL_CALLS]f[ARGS]{"a": 1, "b": "x"}g[ARGS]{"list": [1, {"k": null}]}',
        [F, G],
    ),
    "kimi-k2": (
        KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        '<|tool_call_argument_begin|>{"a": 1, "b": "x"}<|tool_call_end|><|tool_call_begin|>'
        'functions.g:1<|tool_call_argument_begin|>{"list": [1, {"k": null}]}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        [F, G],
    ),
    "kimi-k2-python": (
        KIMI_K2,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        [("f", "{}")],
    ),
    "kimi-k3": (
        KIMI_K3,
        '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>'
        '<|open|>argument key="a" type="number"<|sep|>1<|close|>argument<|sep|>'
        '<|open|>argument key="b" type="string"<|sep|>x<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|>",
        [F],
    ),
    "harmony": (
        GPT_OSS,
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1, "b": "x"}'
        "<|call|>",
        [F],
    ),
    "harmony-recipient-first": (
        GPT_OSS,
        ' to=functions.f<|channel|>commentary json<|message|>{"a": 1, "b": "x"}',
        [F],
    ),
    "harmony-two": (
        GPT_OSS,
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1, "b": "x"}'
        "<|call|><|start|>assistant<|channel|>commentary to=functions.g<|message|>"
        '{"list": [1, {"k": null}]}<|call|>',
        [F, G],
    ),
    "harmony-empty": (
        GPT_OSS,
        "<|channel|>commentary to=functions.f<|message|><|call|>",
        [("f", "{}")],
    ),
    "glm47": (
        GLM,
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        "<arg_key>b</arg_key><arg_value>x</arg_value></tool_call>",
        [F],
    ),
    "glm47-nothing": (GLM, "<tool_call>f</tool_call>", [("f", "{}")]),
    "qwen3-coder": (
        QWEN_CODER,
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n"
        "</parameter>\n</function>\n</tool_call>",
        [F],
    ),
    "minimax-m2": (
        MINIMAX,
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n'
        '<parameter name="b">x</parameter>\n</invoke>\n<invoke name="g">'
        '<parameter name="list">[1, {"k": null}]</parameter></invoke></minimax:tool_call>',
        [F, G],
    ),
    "gemma4": (
        GEMMA4,
        '<|tool_call>call:f{a:1,b:<|"|>x<|"|>}<tool_call|>'
        "<|tool_call>call:g{list:[1,{k:null}]}<tool_call|>",
        [F, G],
    ),
    "function-gemma": (
        FUNCTION_GEMMA,
        "<start_function_call>call:f{a:1,b:<escape>x<escape>}<end_function_call>",
        [F],
    ),
    "longcat": (
        LONGCAT,
        "<longcat_tool_call>f\n<longcat_arg_key>a</longcat_arg_key>"
        "<longcat_arg_value>1</longcat_arg_value><longcat_arg_key>b</longcat_arg_key>"
        "<longcat_arg_value>x</longcat_arg_value></longcat_tool_call>",
        [F],
    ),
    "pythonic": (
        PYTHONIC,
        '<|tool_call_start|>[f(a=1, b="x"), g(list=[1, {"k": null}])]<|tool_call_end|>',
        [F, G],
    ),
    "minicpm5": (
        MINICPM,
        '<function name="f"><param name="a">1</param><param name="b">x</param></function>',
        [F],
    ),
    "muse-spark": (
        MUSE,
        '<atem:function_calls><atem:invoke name="f"><atem:parameter name="a">1'
        '</atem:parameter><atem:parameter name="b">x</atem:parameter></atem:invoke>'
        "</atem:function_calls>",
        [F],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_however_it_is_cut(form: str) -> None:
    model, text, calls = FORMS[form]
    assert everywhere(model, text) == Seen("", calls, "tool_calls")


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
        made._decoder = Decoder(pieces)
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
    """At every place: what was told of calls is the beginning of them; the rest is text."""
    model, text, calls = FORMS[form]
    for size in range(len(text)):
        seen = everywhere(model, text[:size], cut=True) if size % 7 == 0 else read(
            model, [text[:size]], cut=True
        )  # fmt: skip
        for (name, arguments), (whole_name, whole) in zip(seen.calls, calls, strict=False):
            assert name == whole_name
            assert whole.startswith(arguments)
        if not seen.calls and model is not GPT_OSS:
            assert seen.text.strip() == text[:size].strip()


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
        (QWEN_CODER, "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter></function></tool_call>"),
        (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>1</tool_call>"),
        (PYTHONIC, "<|tool_call_start|>[f(a={1, 2})]<|tool_call_end|>"),
        (GEMMA4, "<|tool_call>call:f{<tool_call|>"),
        (FUNCTION_GEMMA, "<start_function_call>call:f{a<end_function_call>"),
        (LONGCAT, "<longcat_tool_call>f</longcat_tool_call>"),
        (MINIMAX, '<minimax:tool_call><invoke name="f"></invoke><invoke name="g"></minimax:tool_call>'),
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
    transcript._decoder = Decoder(Pieces(["[TOOL_CALLS]", 300 * "f"]))
    transcript.push(0)
    assert transcript.push(1).text == "[TOOL_CALLS]" + 300 * "f"


def test_a_call_that_breaks_in_its_arguments_stays_as_far_as_it_was_told() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": nothing}}</tool_call> Sorry.'
    seen = everywhere(HERMES, text)
    assert seen.calls == [("f", '{"a": n')]
    assert (seen.text, seen.reason) == ("othing}}</tool_call> Sorry.", "stop")


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
        ('"arguments": {"a": -1.5e+3, "b": [true, null, ""]}', '{"a": -1.5e+3, "b": [true, null, ""]}'),
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


def test_arguments_are_told_as_they_grow() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "x"}}</tool_call>'
    transcript = make(HERMES, AUTO)
    transcript._decoder = Decoder(Pieces(list(text)))
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


# ── what would take a parser long ────────────────────────────────────────────────────────────────

LONG: dict[str, list[str]] = {
    "gemma4": ["call:a{" * 3000, "call:a{" * 3000 + "}", "call:a{" + "{" * 200 + "}" * 201,
               'call:a{x:<|"|>' * 2000, "call:a{" + '<|"|>' * 9000 + "}", "call:a{" + '<|"|>' * 9001 + "}", "call:a{}" * 9000],
    "function_gemma": ["call:a{" * 3000, "call:a{" + "a:1," * 9000 + "}"],
    "glm47": ["<arg_key>" * 3000 + "</arg_value>" * 3000, "a=1 " * 9000,
              "<arg_key>a</arg_key><arg_value>" * 2000, "x " + "{" * 90_000],
    "longcat": ["<longcat_arg_key>a</longcat_arg_key>" * 2000],
    "kimi_k2": ["<|tool_call_begin|>" * 2000],
    "kimi_k3": ["<|open|>call" * 300, "<|open|>call<|sep|>" * 3000, "<|open|>call" + "a" * 2000 + "<|sep|>"],
    "minicpm5": ["name=" + "," * 60_000, "=" * 300 + ">", '"f">' + "</function>" + "," * 60_000,
                 '"f"><param name="a">' * 2000],
    "minimax_m2": ["<invoke name=" * 3000, '<invoke name="f">' + "<parameter name=" * 3000],
    "muse_spark": ["<atem:invoke " * 300, "<atem:parameter" * 300, '<atem:invoke name="a">' * 2000],
    "pythonic": ["[a(" * 3000, "[f(a=" + "1+" * 9000 + "1)]", '[f(a="' + '", a="' * 9000 + '")]'],
    "qwen3_coder": ["<function=" * 3000, "<function=f>" + "<parameter=" * 3000],
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_parsers_are_not_given_what_takes_them_long(name: str) -> None:
    def never(text: str, tools: Any) -> Any:
        pytest.fail(f"{name} was given {len(text)} characters")

    for text in (*LONG[name], "x" * (LONGEST + 1)):
        with pytest.raises(NotJSON):
            guarded(name, never)(text, TOOLS)


def test_what_a_parser_is_not_given_is_text() -> None:
    for text in LONG["gemma4"]:
        text = f"<|tool_call>{text}<tool_call|>"
        assert read(GEMMA4, [text, " So."]) == Seen(f"{text} So.", [], "stop")


FILE = "def f(a, b):\n\treturn {'a': a, \"b\": [b < 1, '<|im_end|>']}\n\n" * 1700
"""100,000 characters of a program."""


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][1].count('"x"') == 1])
def test_a_whole_file_is_an_argument(form: str) -> None:
    """Coding agents write them, with any parser that can hold one."""
    model, text, _ = FORMS[form]
    seen = read(model, [text.replace('"x"', json.dumps(FILE))])
    assert seen.reason == "tool_calls"
    assert json.loads(seen.calls[0][1])["b"] == FILE


WRITTEN = {
    "glm47": (GLM, f"f<arg_key>b</arg_key><arg_value>{FILE}</arg_value>"),
    "qwen3_coder": (QWEN_CODER, f"<function=f>\n<parameter=b>\n{FILE}\n</parameter>\n</function>"),
    "gemma4": (GEMMA4, f'call:f{{b:<|"|>{FILE}<|"|>}}'),
    "kimi_k3": (KIMI_K3, f'<|open|>call tool="f" index="1"<|sep|><|open|>argument key="b" type="string"<|sep|>{FILE}<|close|>argument<|sep|><|close|>call<|sep|>'),
    "longcat": (LONGCAT, f"f<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>{FILE}</longcat_arg_value>"),
    "minimax_m2": (MINIMAX, f'<invoke name="f"><parameter name="b">{FILE}</parameter></invoke>'),
    "muse_spark": (MUSE, f'<atem:invoke name="f"><atem:parameter name="b">{FILE}</atem:parameter></atem:invoke>'),
    "pythonic": (PYTHONIC, f"[f(b={FILE!r})]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_whole_file_is_an_argument_in_the_other_forms_too(name: str) -> None:
    model, text = WRITTEN[name]
    tokenizer = wrapper(model)
    seen = read(model, [f"{tokenizer.tool_call_start}{text}{tokenizer.tool_call_end}"])
    assert (seen.text, seen.reason) == ("", "tool_calls")
    assert json.loads(seen.calls[0][1])["b"].strip() == FILE.strip()


def test_long_values_are_not_tried_as_python() -> None:
    from mlx_lm.tool_parsers import glm47

    value = "(" + "1, " * 9000 + ")"
    text = f"f<arg_key>k</arg_key><arg_value>{value}</arg_value>"
    found = guarded("glm47", glm47.parse_tool_call)(text, TOOLS)
    assert found["arguments"] == {"k": value}
    text = "f<arg_key>k</arg_key><arg_value>(1, 'x')</arg_value>"
    assert guarded("glm47", glm47.parse_tool_call)(text, TOOLS)["arguments"] == {"k": (1, "x")}


# ── forced calls ─────────────────────────────────────────────────────────────────────────────────


def test_which_form_a_grammar_forces() -> None:
    assert forced_form(wrapper(HERMES)) == "hermes"
    others = (LLAMA, MISTRAL, GPT_OSS, GLM, QWEN_CODER, PLAIN, GEMMA4, KIMI_K2, KIMI_K3, PYTHONIC)
    assert {forced_form(wrapper(model)) for model in others} == {"array"}


ARRAY = '[{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g", "arguments": {}}]'


@pytest.mark.parametrize(
    "model", [LLAMA, MISTRAL, GPT_OSS, GLM, QWEN_CODER, PLAIN, GEMMA4, KIMI_K2, KIMI_K3, PYTHONIC]
)
def test_a_forced_array_is_calls(model: Model) -> None:
    assert everywhere(model, ARRAY, FORCED) == Seen("", [F, ("g", "{}")], "tool_calls")
    one = Calling("required", ("f",), parallel=False)
    assert everywhere(model, ARRAY, one) == Seen("", [F], "tool_calls")
    assert everywhere(model, ARRAY) == Seen(ARRAY, [], "stop")  # nobody forced it
    seen = everywhere(model, ARRAY[:36], FORCED, cut=True)
    assert seen == Seen("", [("f", '{"a": 1,')], "stop")


def test_forced_calls_may_follow_reasoning() -> None:
    text = "<longcat_think>\nf it is.\n</longcat_think>\n" + ARRAY
    seen = everywhere(LONGCAT, text, FORCED)
    assert seen == Seen("", [F, ("g", "{}")], "tool_calls", "f it is.")
    seen = everywhere(
        LONGCAT, text.removeprefix("<longcat_think>"), FORCED, prompt="<longcat_think>"
    )
    assert seen == Seen("", [F, ("g", "{}")], "tool_calls", "f it is.")
    # The grammar may also forbid reasoning that the prompt has begun.
    assert everywhere(LONGCAT, ARRAY, FORCED, prompt="<longcat_think>").calls == [F, ("g", "{}")]


def test_hermes_forces_its_own_form() -> None:
    form = FORMS["hermes-two"]
    assert everywhere(HERMES, form[1], FORCED) == Seen("", [F, G], "tool_calls")


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
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
    reader = JSONText()
    seen = []
    for letter in '{"a": [1]}':
        reader.push(letter)
        seen.append((reader.state, reader.depth))
    assert seen == [
        ("key or end", 1), ("string", 1), ("string", 1), ("colon", 1), ("value", 1), ("value", 1),
        ("value or end", 2), ("scalar", 2), ("comma", 1), ("done", 0),
    ]  # fmt: skip


# ── anything at all ──────────────────────────────────────────────────────────────────────────────

PARTS = [
    "{", "}", "[", "]", '"', ":", ",", ";", "f", " ", "\n", '{"name": "f", "', 'arguments": {}}',
    'parameters": {"a": [1', "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>",
    "</think>", "<|channel|>", "commentary to=functions.f", "final", "<|message|>", "<|end|>",
    "<|start|>", "<|call|>", "<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_begin|>", "functions.f:0", "<|tool_calls_section_end|>", "<|python_tag|>",
    "<|tool_call>", "call:f{a:1}", "<tool_call|>", "<function=f>", "</function>", "<arg_key>",
    "<|open|>tools<|sep|>", "<|open|>call tool=\"f\"<|sep|>", "<|close|>call<|sep|>", "é😀",
]  # fmt: skip
MODELS = [HERMES, THINKING, LLAMA, MISTRAL, KIMI_K2, KIMI_K3, GPT_OSS, GLM, QWEN_CODER, GEMMA4]


@settings(deadline=None, max_examples=700)
@given(
    st.sampled_from(MODELS),
    st.lists(st.sampled_from(PARTS), max_size=14).map("".join),
    st.sampled_from([AUTO, ONE, FORCED, None]),
    st.booleans(),
    st.sampled_from([(), ("f",), ("\n", '"}'), ("<tool_call>",)]),
    st.randoms(use_true_random=False),
)
def test_however_a_text_is_cut_it_means_the_same(
    model: Model, text: str, calling: Calling | None, cut: bool, stop: tuple[str, ...], random: Any
) -> None:
    if calling is None and model in (HERMES, LLAMA, MISTRAL, KIMI_K2, GLM, QWEN_CODER):
        return  # no parts
    places = sorted(random.sample(range(len(text) + 1), min(3, len(text))))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    whole, letters, cuts = (
        read(model, each, calling, cut=cut, stop=stop) for each in ([text], list(text), pieces)
    )
    assert whole == letters == cuts
    assert whole.reason == "tool_calls" or not any(_is_object(text) for _, text in whole.calls)
    for name, arguments in whole.calls:
        assert name
        assert arguments.startswith("{")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
