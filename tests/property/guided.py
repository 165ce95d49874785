"""Answers under expressions, choices and grammars, each with a judge that shares no code with us:
Python's `re`, the `lark` package, `json`, or a few lines of its own.

`tests.property.structured` samples them beside those under schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from lark import Lark
from lark.exceptions import LarkError

from gateway.openai.completions import COMPLETION_BODY
from supervisor.wire.frames import Structure


class Case(NamedTuple):
    """What an answer must be, and whether a text is it."""

    structure: Structure
    judge: Callable[[str], bool]

    def fault(self, text: str) -> str:
        return "" if self.judge(text) else "not what was asked for"


EXPRESSIONS = (
    r"\d{3}-\d{4}",
    r"^(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}$",
    r"(?i)yes|no",
    r"(?P<user>[\w.]+)@[a-z]+\.(com|org)",
    r"[^\W\d_]{1,4}",
    r"(x+x+)+y",
    r"((a*)*|b)*c{2,}",
    r"(?:[a-f0-9]{2}:){1,3}[^\s\d]?[a-f0-9]{2}",
    r'"[^"\\\n]{0,5}"',
    r"a\/b|\[\]\{\}|\u00e9\x41",
    r"\W[^\w]\S\D[\W\d][^\W]",
    r"[\s\S]{1,3}[^\D]",
    "|".join(f"item {number}" for number in range(300)),
    r"<think>|</think>|<\|end\|>",
)
CHOICES = (
    ["positive", "negative", "neutral"],
    ["a", "ab", "abc", "b"],
    ["", "x"],
    ["😀", "日本", "é", "e\u0301", "\u2028", "\n", "\t "],
    ["<think>", "<|end|>", '{"a": 1}', "a|b", ".*", "\\", "/", "[", "^$"],
    ["same", "same"],
)
PARENTHESES = 'root ::= "(" root ")" root | ""'
WORDS = 'root ::= word (", " word)* ("and " word)?\nword ::= [a-z]+ | number\nnumber ::= [0-9]{1,3}'
ARITHMETIC = """
root  ::= (expr "=" ws term "\\n"){1,2}
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws   # the heart of it
ident ::= [a-z] [a-z0-9_]{0,3} ws
num   ::= [0-9]+ ws
ws    ::= [ \\t]{0,2}
"""
ARITHMETIC_IN_LARK = r"""
start: (expr "=" WS? term "\n")~1..2
expr: term (/[-+*\/]/ term)*
term: ident | num | "(" WS? expr ")" WS?
ident: /[a-z][a-z0-9_]{0,3}/ WS?
num: /[0-9]+/ WS?
WS: /[ \t]{1,2}/
"""
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" "00" [0-9a-fA-F]{2}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,1})? ws
ws ::= | " " | "\n" [ \t]{0,5}
"""
SQL = """
root ::= select_statement
select_statement ::= "SELECT " column " from " table " where " condition
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "
condition ::= column "= " number
number ::= "1 " | "2 "
"""
LARK = (
    r"""
start: sum
?sum: product | sum ("+" | "-") product
?product: atom | product ("*" | "/") atom
?atom: NUMBER -> number | "(" sum ")"
%import common.INT -> NUMBER
%ignore " "
""",
    r"""
start: "begin" _NL statement* "."
statement: NAME "=" (NAME | INT | block) _NL
block: "{" statement* "}"
NAME: /[a-z]{1,3}/
_NL: /\n+/
%import common.INT
""",
    r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?
filename: /[a-z.]{1,5}/
add_line: "+" /(.{0,4})/ LF -> line
change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /[^\n]{1,4}/) LF
change_line: ("+" | "-" | " ") /(.{0,4})/ LF
eof_line: "*** End of File" LF
%import common.LF
""",
)


def structure(**members: Any) -> Structure:
    """What becomes of the members of a request."""
    asked = COMPLETION_BODY.parse({"prompt": "x", **members}).structure()
    assert asked is not None
    return asked


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


def _parsed_by_lark(grammar: str) -> Callable[[str], bool]:
    # Earley with every cut into lexemes: all of the language. It takes no empty lexemes.
    grammar = grammar.replace("/(.{0,4})/", "/(.{1,4})/?")
    parser = Lark(grammar, parser="earley", lexer="dynamic_complete", ambiguity="explicit")

    def judge(text: str) -> bool:
        try:
            parser.parse(text)
        except LarkError:
            return False
        return True

    return judge


def _balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, -len(text))
        if depth < 0:
            return False
    return depth == 0


def _json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


@cache
def cases() -> Mapping[str, Case]:
    found: dict[str, Case] = {}
    for number, pattern in enumerate(EXPRESSIONS):
        wanted = structure(structured_outputs={"regex": pattern})
        found[f"expression {number}"] = Case(wanted, _matches(pattern))
    for number, texts in enumerate(CHOICES):
        wanted = structure(guided_choice=texts)
        found[f"choice {number}"] = Case(wanted, frozenset(texts).__contains__)
    found["parentheses"] = Case(structure(grammar=PARENTHESES), _balanced)
    found["words"] = Case(
        structure(ebnf=WORDS),
        _matches(r"([a-z]+|[0-9]{1,3})(, ([a-z]+|[0-9]{1,3}))*(and ([a-z]+|[0-9]{1,3}))?"),
    )
    found["arithmetic"] = Case(
        structure(guided_grammar=ARITHMETIC), _parsed_by_lark(ARITHMETIC_IN_LARK)
    )
    found["JSON by rules"] = Case(structure(grammar=JSON), _json)
    found["SQL"] = Case(
        structure(structured_outputs={"grammar": SQL}),
        _matches("SELECT col_[12]  from table_[12]  where col_[12] = [12] "),
    )
    for number, grammar in enumerate(LARK):
        wanted = structure(structured_outputs={"grammar": grammar})
        found[f"Lark {number}"] = Case(wanted, _parsed_by_lark(grammar))
    return found
