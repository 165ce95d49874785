"""Which form a model's tool calls have: told by its tokenizer alone."""

from __future__ import annotations

from typing import Any, Literal

Forced = Literal["hermes", "array"]


def forced_form(tokenizer: Any) -> Forced:
    """The form of calls that a grammar forces on the model of mlx-lm's `tokenizer`.

    "hermes": `<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>`, several separated by a
    newline; what such a model writes by itself. "array": `[{"name": …, "arguments": {…}}, …]`,
    for all others: JSON is what every model can write and what a grammar can describe.
    """
    return "hermes" if parser_name(tokenizer) == "json_tools" else "array"


def parser_name(tokenizer: Any) -> str | None:
    """The name of mlx-lm's parser for this model, as in `mlx_lm.tool_parsers`; None = it has none."""
    parser = getattr(tokenizer, "tool_parser", None)
    if parser is None:
        return None
    module: str = parser.__module__
    # mlx-lm's modules may share a function ("laguna" is glm47's), so this names the implementation.
    return module.rpartition(".")[2]
