"""Answers under a client's own expression or grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.openai.custom_tools import GrammarInput, custom_function
from supervisor.errors import ClientError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Grammar, Pattern, Structure, Text
from tests.helpers.grammars import accepts as accepts_under
from tests.property.guided import ARITHMETIC, PARENTHESES, structure
from tests.property.structured import Chooser, allowed, grammars, sample, wrapper
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.compile import ConstraintCompiler


def constraint(wanted: Structure) -> AnswerConstraint:
    made = grammars().compile(Generate("r", Text("x"), 0.0, structure=wanted))
    assert isinstance(made, AnswerConstraint)
    return made


def accepts(wanted: Structure, text: str) -> bool:
    grammar = constraint(wanted)
    for token in wrapper().encode(text, add_special_tokens=False):
        if token not in allowed(grammar):
            return False
        grammar.push(token)
    return grammar.complete


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (structure(regex="a|ab"), "a"),
        (structure(regex="a|ab"), "ab"),
        (structure(regex="(x+x+)+y"), "x" * 60 + "y"),
        (structure(guided_choice=["", "a", "ab"]), ""),
        (structure(guided_choice=["", "a", "ab"]), "ab"),
        # A lexer that takes the longest lexeme would lose these.
        (structure(ebnf='root ::= [a-z]+ "x" root?'), "abx"),
        (structure(ebnf='root ::= word "x" | "(" root ")"\nword ::= [a-z]+'), "(abx)"),
        (structure(ebnf='root ::= "a" ("b" "c" | "bc" "d") | "(" root ")"'), "abc"),
        (structure(grammar='start: start "a" | "b"'), "baa"),
        (structure(grammar=PARENTHESES), "(())()"),
        (structure(grammar=ARITHMETIC), "a1 = (2 *b)\n"),
        (structure(grammar='start: "{" start "}" | /[^"{}]+/'), "{{/}}"),
    ],
)
def test_all_of_a_language_can_be_said(wanted: Structure, text: str) -> None:
    assert accepts(wanted, text)
    assert not accepts(wanted, text + "\0")


CATASTROPHES = (
    r"(?:.|\n)*a(?:.|\n){200}",
    "(a{1000}){1000}",
    "((a{1000}){1000}){1000}",
    "(a?){1000}a{1000}",
    "(.*a.{20}){5}",
    "((((a+)+)+)+)+b",
    "(a|b|ab|ba|aab)*c(a|b){500}",
    r"(\p{L}|\p{N}){1,5000}",
    "(?i:" + "é" * 5000 + ")",
)


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_an_expression_that_would_explode_is_served(pattern: str) -> None:
    """What a step may take is bounded by llguidance's fuel."""
    grammar = constraint(structure(regex=pattern))
    sample([grammar], [Chooser(wrapper(), 1)], 40)


@pytest.mark.parametrize(
    "text",
    [
        # A text that can be read in very many ways.
        'root ::= (("a"?){100}){100} | "(" root ")"',
        "root ::= " + " | ".join(f'"{"a" * n}" root' for n in range(1, 200)) + ' | ""',
    ],
)
def test_a_grammar_that_explodes_fails_and_holds_nobody(text: str) -> None:
    grammar = constraint(structure(grammar=text))
    token = wrapper().encode("a", add_special_tokens=False)[0]
    for _ in range(300):
        if token not in allowed(grammar):
            break
        grammar.push(token)
    error = grammar.incomplete_error(called=False)
    assert isinstance(error, UnsupportedValue)
    assert error.param == "grammar"
    assert "too complex" in error.message


@pytest.mark.parametrize(
    ("wanted", "kind", "word"),
    [
        (Pattern("a" * 300_000, "guided_choice"), InvalidValue, "characters"),
        (Pattern("[^\\x00-\U0010ffff]", "regex"), InvalidValue, "no text"),
        (Pattern("(?=a)b", "regex"), UnsupportedValue, "look-around"),
        (Grammar("start: r9\n", "grammar"), UnsupportedValue, "can't be turned"),
    ],
)
def test_what_llguidance_refuses_is_told_by_its_place(
    wanted: Pattern | Grammar, kind: type[ClientError], word: str
) -> None:
    with pytest.raises(kind) as raised:
        constraint(wanted)
    assert raised.value.param == wanted.place
    assert word in raised.value.message


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("wanted", [structure(regex="[a-z]{3}"), structure(ebnf=PARENTHESES)])
def test_with_tools_an_answer_is_it_or_a_call(wanted: Structure) -> None:
    model = wrapper(hermes=True, thinks=True)
    compiler = ConstraintCompiler(model, len(model))
    request = Generate(
        "r", Chat([], [TOOL]), 0.0, calling=Calling("auto", ("f",)), structure=wanted
    )
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    answer = "abc" if isinstance(wanted, Pattern) else "(())"
    for text in (answer, call, f"<think>Well…</think>{answer}", f"<think>Well…</think>{call}"):
        grammar = compiler.compile(request)
        assert isinstance(grammar, AnswerConstraint)
        for token in model.encode(text, add_special_tokens=False):
            assert token in allowed(grammar)
            grammar.push(token)
        assert grammar.complete


def test_a_custom_tools_input_is_held_to_its_grammar() -> None:
    """In a call's JSON, where line breaks and quotes are escapes."""
    wanted = GrammarInput("lark", 'start: ("- " /[^\\n]+/ LF)+ "\\"end\\""\n%import common.LF')
    schema: Any = custom_function("f", None, wanted, "p").function.parameters
    assert accepts_under(schema, json.dumps({"input": '- a "b"\n- c\\d\n"end"'}))
    for other in ('- a\n"end', "- a\n- b\n", '-a\n"end"', '"end"', '- \n"end"'):
        assert not accepts_under(schema, json.dumps({"input": other}))
