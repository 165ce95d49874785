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


class CallJSON(NamedTuple):
    """Where a grammar can take over in calls of the model's own form: where their JSON begins.

    It stands behind one of the `markers`. It is a call object that has the arguments under the key
    `arguments` ("" = the form has no call objects), or, if `named`, the arguments alone, behind the
    function's name.
    """

    markers: tuple[str, ...]
    arguments: str
    named: bool


def call_json(tokenizer: ModelTokenizer) -> CallJSON | None:
    """None = the model's calls are no JSON, so that a grammar can only force another form on it."""
    if is_harmony(tokenizer):
        return CallJSON(("<|message|>",), "", named=True)
    if is_llama(tokenizer):
        return CallJSON((PYTHON_TAG,), "parameters", named=False)
    match parser_name(tokenizer):
        case "json_tools":
            return CallJSON((tokenizer.tool_call_start,), "arguments", named=False)
        case "mistral":
            return CallJSON((tokenizer.tool_call_start, "[ARGS]"), "arguments", named=True)
        case "kimi_k2":
            return CallJSON(("<|tool_call_argument_begin|>",), "", named=True)
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
