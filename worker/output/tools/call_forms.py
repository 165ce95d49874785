"""Which form a model's tool calls have: told by its tokenizer alone."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from worker.prompt.tokenizer import ModelTokenizer, template_text

PYTHON_TAG = "<|python_tag|>"

ForcedForm = Literal["hermes", "array", "harmony"]
MixedForm = Literal["hermes", "marked", "harmony"]
ANALYSIS = ("<|channel|>analysis<|message|>", "<|end|>")
"""What harmony's thinking stands between."""
_HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")


def forced_form(tokenizer: ModelTokenizer) -> ForcedForm:
    """The form of calls that a grammar forces on the model of mlx-lm's `tokenizer`.

    "hermes": `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`, several separated by a
    newline; what such a model writes by itself. "harmony": one message to a function, likewise.
    "array": `[{"name": …, "arguments": {…}}, …]`, for all others: JSON is what every model can
    write and what a grammar can describe.
    """
    if is_harmony(tokenizer):
        return "harmony"
    return "hermes" if parser_name(tokenizer) == "json_tools" else "array"


def mixed_form(tokenizer: ModelTokenizer) -> MixedForm | None:
    """How a call is told from JSON where the model may either answer under a schema or call.

    "hermes": a grammar describes the call as well. "marked": a call begins with a token of its own
    and is in the model's own words. "harmony": it is a message to a function. None: nothing tells
    them apart, as with Llama's calls, which are JSON objects themselves.
    """
    if is_harmony(tokenizer):
        return "harmony"
    name = parser_name(tokenizer)
    if name == "json_tools":
        return "hermes"
    return "marked" if name and tokenizer.tool_call_start in tokenizer.get_vocab() else None


class CallForm(NamedTuple):
    """The form of a model's own calls, as far as a grammar can watch it.

    A call begins with the marker `start` ("" = in a header, harmony's) and ends with `end` ("" =
    with its JSON). Of forms that are no JSON (`kind` "named") the function's name alone is watched:
    it stands between the texts `before` and one of `behind`, which may be regular expressions.
    """

    kind: Literal["hermes", "llama", "mistral", "kimi_k2", "harmony", "named"]
    start: str = ""
    end: str = ""
    before: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


_NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "function_gemma": (("call:",), ("{",)),
    "gemma4": (("call:",), ("{",)),
    "glm47": ((), (r"/[ \n{]/", "<arg_key>", "</tool_call>")),
    "kimi_k3": (("<|open|>", 'call tool="'), ('"',)),
    "longcat": ((), (r"/[ \n{]/", "<longcat_arg_key>", "</longcat_tool_call>")),
    "minicpm5": (('"',), ('"',)),
    "minimax_m2": (('<invoke name="',), ('"',)),
    "muse_spark": (('<atem:invoke name="',), ('"',)),
    "pythonic": (("[",), ("(",)),
    "qwen3_coder": (("<function=",), (">",)),
}
"""What stands before and behind the first function's name in a section of calls, by mlx-lm's
parser."""


def call_form(tokenizer: ModelTokenizer) -> CallForm | None:
    """None = nothing tells where the model's calls begin."""
    if is_harmony(tokenizer):
        return CallForm("harmony")
    if is_llama(tokenizer):
        return CallForm("llama", PYTHON_TAG)
    name = parser_name(tokenizer)
    if name is None:
        return None
    start, end = tokenizer.tool_call_start, tokenizer.tool_call_end or ""
    match name:
        case "json_tools":
            return CallForm("hermes", start, end)
        case "mistral":
            return CallForm("mistral", start)
        case "kimi_k2":
            return CallForm("kimi_k2", start, end)
    if name in _NAMES:
        return CallForm("named", start, end, *_NAMES[name])
    return None


def is_strict(tool: Any) -> bool:
    """Whether a tool is one whose arguments must follow their schema."""
    function = tool.get("function")
    return isinstance(function, dict) and function.get("strict") is True


def parser_name(tokenizer: ModelTokenizer) -> str | None:
    """The name of mlx-lm's parser for this model, as in `mlx_lm.tool_parsers`; None = it has
    none."""
    parser = getattr(tokenizer, "tool_parser", None)
    if parser is None:
        return None
    module: str = parser.__module__
    # mlx-lm's modules may share a function ("laguna" is glm47's), so this names the implementation.
    return module.rpartition(".")[2]


def is_harmony(tokenizer: ModelTokenizer) -> bool:
    """Whether the model writes gpt-oss' harmony format."""
    vocab = tokenizer.get_vocab()
    return all(mark in vocab for mark in _HARMONY)


def is_llama(tokenizer: ModelTokenizer) -> bool:
    """Whether the model calls as Llama 3.1 to 3.3 do: a bare `{"name": …, "parameters": {…}}`."""
    if parser_name(tokenizer) is not None:
        return False
    asks = '{"name": function name, "parameters":' in template_text(tokenizer)
    return asks or "<|python_tag|>" in tokenizer.get_vocab()
