"""Where mlx-lm's parsers are too kind: what they invent, or leave out without a word."""

from __future__ import annotations

import re
from typing import Any

from worker.output.tools.bounds import affordable
from worker.output.tools.calls import Parser
from worker.output.tools.jsontext import NotJSON

_OPENERS = {
    "kimi_k3": "<|open|>call ",
    "minimax_m2": "<invoke name=",
    "muse_spark": "<atem:invoke",
}
"""What each call begins with. These parsers skip the calls in a section that they can't read."""

_ARGUMENT = {
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


def guarded(name: str, parse: Parser) -> Parser:
    """`parse`, mlx-lm's parser `name`, that raises NotJSON where calls would be lost or made up, and
    where it would take long."""

    def parse_strictly(text: str, tools: Any) -> Any:
        begins, ends = _ARGUMENT.get(name, ("", ""))
        if begins and text.count(begins) != text.count(ends):
            raise NotJSON
        if not affordable(name, text):
            raise NotJSON
        parsed = parse(text, tools)
        found = parsed if isinstance(parsed, list) else [parsed]
        opener = _OPENERS.get(name)
        if opener and text.count(opener) != len(found):
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
