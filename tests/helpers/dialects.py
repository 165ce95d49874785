"""Models by the form of their answers: what tells it, texts in it, and what a client sees of
them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from supervisor.wire.frames import Calling, Chat, Generate
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.output.transcript import Transcript, TranscriptFactory


class Pieces:
    """A `TokenDecoder` whose token i is the i-th piece; the last one may come at the end."""

    def __init__(self, pieces: Sequence[str], held: str = "") -> None:
        self._pieces = pieces
        self._held = held

    def push(self, token: int) -> str:
        return self._pieces[token]

    def finish(self) -> str:
        return self._held


AUTO = Calling("auto", ())
ONE = Calling("auto", (), parallel=False)
FORCED = Calling("required", ("f", "g"))


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
def transcripts(model: Model) -> TranscriptFactory:
    return TranscriptFactory(wrapper(model))


@cache
def wrapper(model: Model) -> Any:
    """A byte-level tokenizer with the model's control tokens."""
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
        return model_tokenizer(load(Path(folder)))


class Seen(NamedTuple):
    """What a client has at the end."""

    text: str
    calls: list[tuple[str, str]]
    reason: str
    reasoning: str = ""


def make(
    model: Model,
    calling: Calling | None,
    *,
    stop: Sequence[str] = (),
    prompt: str = "",
    constrained: bool = False,
) -> Transcript:
    request = Generate("r", Chat([], TOOLS), 0.0, stop=tuple(stop), calling=calling)
    tokens = wrapper(model).encode(prompt, add_special_tokens=False) if prompt else []
    made = transcripts(model).make(request, tokens, calls_held=lambda: constrained)
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
    constrained: bool = False,
) -> Seen:
    pieces = list(pieces)
    transcript = make(model, calling, stop=stop, prompt=prompt, constrained=constrained)
    transcript._decoder = Pieces(pieces)
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
            assert call.arguments or (cut and calling is FORCED)
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
    constrained: bool = False,
) -> Seen:
    """What is seen, which may not depend on the cut."""
    first, *others = (
        read(model, pieces, calling, cut=cut, stop=stop, prompt=prompt, constrained=constrained)
        for pieces in cuts(text)
    )
    for other in others:
        assert other == first
    return first


F = ("f", '{"a": 1, "b": "x"}')
G = ("g", '{"list": [1, {"k": null}]}')


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
