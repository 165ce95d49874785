"""worker.output.tools.parser_limits: what mlx-lm's parsers are given, and what would take long."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.dialects import (
    FORMS,
    GEMMA4,
    GLM,
    KIMI_K3,
    LONGCAT,
    MINIMAX,
    MUSE,
    PYTHONIC,
    QWEN_CODER,
    TOOLS,
    Seen,
    read,
    wrapper,
)
from worker.output.tools.json_scanner import NotJSON
from worker.output.tools.parser_limits import LONGEST, strict_parser

LONG: dict[str, list[str]] = {
    "gemma4": ["call:a{" * 3000, "call:a{" * 3000 + "}", "call:a{" + "{" * 200 + "}" * 201,
               'call:a{x:<|"|>' * 2000, "call:a{" + '<|"|>' * 9000 + "}",
               "call:a{" + '<|"|>' * 9001 + "}", "call:a{}" * 9000],
    "function_gemma": ["call:a{" * 3000, "call:a{" + "a:1," * 9000 + "}"],
    "glm47": ["<arg_key>" * 3000 + "</arg_value>" * 3000, "a=1 " * 9000,
              "<arg_key>a</arg_key><arg_value>" * 2000, "x " + "{" * 90_000],
    "longcat": ["<longcat_arg_key>a</longcat_arg_key>" * 2000],
    "kimi_k2": ["<|tool_call_begin|>" * 2000],
    "kimi_k3": ["<|open|>call" * 300, "<|open|>call<|sep|>" * 3000,
        "<|open|>call" + "a" * 2000 + "<|sep|>"],
    "minicpm5": ['"f"><param name="a">' * 2000],
    "minimax_m2": ["<invoke name=" * 3000, '<invoke name="f">' + "<parameter name=" * 3000],
    "muse_spark": ['<atem:invoke name="a">' * 2000],
    "pythonic": ["[a(" * 3000, "[f(a=" + "1+" * 9000 + "1)]", '[f(a="' + '", a="' * 9000 + '")]'],
    "qwen3_coder": ["<function=" * 3000, "<function=f>" + "<parameter=" * 3000],
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_parsers_are_not_given_what_takes_them_long(name: str) -> None:
    def never(text: str, tools: Any) -> Any:
        pytest.fail(f"{name} was given {len(text)} characters")

    for text in (*LONG[name], "x" * (LONGEST + 1)):
        with pytest.raises(NotJSON):
            strict_parser(name, never)(text, TOOLS)


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
    "kimi_k3": (KIMI_K3,
        f'<|open|>call tool="f" index="1"<|sep|><|open|>argument key="b" type="string"<|sep|>'
        f'{FILE}<|close|>argument<|sep|><|close|>call<|sep|>'),
    "longcat": (LONGCAT,
        f"f<longcat_arg_key>b</longcat_arg_key><longcat_arg_value>{FILE}</longcat_arg_value>"),
    "minimax_m2": (MINIMAX, f'<invoke name="f"><parameter name="b">{FILE}</parameter></invoke>'),
    "muse_spark": (MUSE,
        f'<atem:invoke name="f"><atem:parameter name="b">{FILE}</atem:parameter></atem:invoke>'),
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
    # The parser as it is once a model that calls in this form has been loaded.
    parse = wrapper(GLM).tool_parser
    value = "(" + "1, " * 9000 + ")"
    text = f"f<arg_key>k</arg_key><arg_value>{value}</arg_value>"
    found = strict_parser("glm47", parse)(text, TOOLS)
    assert found["arguments"] == {"k": value}
    text = "f<arg_key>k</arg_key><arg_value>(1, 'x')</arg_value>"
    assert strict_parser("glm47", parse)(text, TOOLS)["arguments"] == {"k": (1, "x")}
