"""What mlx-lm's parsers of tool calls are given, and which of their results count.

They run on the thread that generates for everybody, and hold the GIL. Most are regular expressions
whose time grows with what begins a call or an argument, times the text behind it: 20,000 characters
of the right kind took one 8 s. What is beyond these bounds is text, as all that is no call. Some
are too kind besides: they invent calls, or leave some out without a word.
"""

from __future__ import annotations

import json
import re
from typing import Any

from worker.output.tools.calls import Parser
from worker.output.tools.json_scanner import NotJSON

LONGEST = 128 * 1024
"""Characters of one section of calls, for the parsers that mlx-lm has: 35 ms where time is linear.
JSON is read as it comes, without any bound."""
WORK = 4_000_000
"""Openers times characters: 40 ms. 100,000 characters may hold 40 of them."""
_PYTHON = 8192
"""Characters of Python besides its strings: 15 ms."""
_WORDS = 8192
"""Characters of GLM's `name a=1 b=2`, which a shell's lexer reads: 20 ms."""
_DEPTH = 100
"""Levels of Gemma 4's arguments: the expression recurses."""
_ATTRIBUTES = 1024
"""Characters of a tag: the expressions look for its end from every place in it."""
_SUBSTITUTIONS = 20_000_000
"""Strings times characters of Gemma 4's arguments: 20 ms."""

_OPENERS = {
    "function_gemma": r"call:|,",
    "gemma4": "call:",
    "glm47": "<arg_key>|<arg_value>",
    "kimi_k2": r"<\|tool_call_begin\|>",
    "kimi_k3": r"<\|open\|>",
    "longcat": "<longcat_arg_key>|<longcat_arg_value>",
    "minicpm5": "<param|<function",
    "minimax_m2": "<invoke name=|<parameter name=",
    "muse_spark": "<atem:",
    "pythonic": r"\[[\w.]+\(",
    "qwen3_coder": "<function=|<parameter=|<tool_call>",
}
"""What makes each parser look at all the text that follows."""

_GEMMA_CALL = re.compile(r"call:[\w-]+\{")
_GEMMA_MARK = re.compile(r'<\|"\|>|[{}]')
_STRINGS = re.compile(r"""\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'""", re.DOTALL)

_CALL_STARTS = {
    "kimi_k3": "<|open|>call ",
    "minimax_m2": "<invoke name=",
    "muse_spark": "<atem:invoke",
}
"""What each call begins with. These parsers skip the calls in a section that they can't read."""

_ARGUMENT_EDGES = {
    "glm47": ("<arg_key>", "</arg_value>"),
    "kimi_k3": ("<|open|>argument ", "<|close|>argument<|sep|>"),
    "longcat": ("<longcat_arg_key>", "</longcat_arg_value>"),
    "minicpm5": ("<param name=", "</param>"),
    "minimax_m2": ("<parameter name=", "</parameter>"),
    "muse_spark": ("<atem:parameter ", "</atem:parameter>"),
    "qwen3_coder": ("<parameter=", "</parameter>"),
}
"""What each argument begins and ends with. Arguments without an end are skipped as well."""

_NO_NAME = re.compile(r"[\s<>{}\"]")


def strict_parser(name: str, parse: Parser) -> Parser:
    """`parse`, mlx-lm's parser `name`, that raises NotJSON where calls would be lost or made up,
    and where it would take long."""

    def parse_strictly(text: str, tools: Any) -> Any:
        begins, ends = _ARGUMENT_EDGES.get(name, ("", ""))
        if begins and text.count(begins) != text.count(ends):
            raise NotJSON
        if not affordable(name, text):
            raise NotJSON
        parsed = parse(text, tools)
        found = parsed if isinstance(parsed, list) else [parsed]
        start = _CALL_STARTS.get(name)
        if start and text.count(start) != len(found):
            raise NotJSON
        for call in found:
            if not isinstance(call, dict) or _NO_NAME.search(str(call.get("name"))):
                raise NotJSON
            arguments = call.get("arguments")
            # glm47 makes a call of any text, with what it could not read as the argument `raw`.
            if (
                name == "glm47"
                and isinstance(arguments, dict)
                and arguments.keys() == {"raw"}
                and "<arg_key>" not in text
                and "{" not in text
            ):
                raise NotJSON
        return parsed

    return parse_strictly


def affordable(name: str, text: str) -> bool:
    """Whether mlx-lm's parser `name` is done with `text` in about 50 ms."""
    if len(text) > LONGEST:
        return False
    openers = _OPENERS.get(name)
    if openers is not None:
        most = WORK // max(1, len(text))
        for count, _ in enumerate(re.finditer(openers, text), 1):
            if count > most:
                return False
    match name:
        case "gemma4":
            return _balanced(text)
        case "glm47":
            return len(text) <= _WORDS or "<arg_key>" in text or _is_json(text)
        case "kimi_k3":
            return all(
                0 <= part.find("<|sep|>") <= _ATTRIBUTES for part in text.split("<|open|>")[1:]
            )
        case "pythonic":
            return short_python(text)
        case _:
            return True


def short_python(text: str) -> bool:
    """Whether Python's own parser is soon done with an expression: strings cost it nothing."""
    return len(text) <= _PYTHON or len(_STRINGS.sub("", text)) <= _PYTHON


def _balanced(text: str) -> bool:
    """Whether every call of Gemma 4's form is closed, and its strings too. The parser's expression
    backtracks through all the ways to read one that is not."""
    depth = strings = at = 0
    while found := (_GEMMA_MARK if depth else _GEMMA_CALL).search(text, at):
        mark, at = found[0], found.end()
        if mark[0] == "<":
            at = text.find(mark, at)
            if at < 0:
                return False
            at += len(mark)
            strings += 1
        else:
            depth += -1 if mark == "}" else 1
            if depth > _DEPTH:
                return False
    return not depth and strings * len(text) <= _SUBSTITUTIONS


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
