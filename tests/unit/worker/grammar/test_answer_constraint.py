"""Answers under a schema: what the masks allow at every point."""

from __future__ import annotations

import json
from typing import Any

import pytest

from supervisor.wire.frames import Chat, Generate, Schema, Text
from tests.helpers.grammars import CLOSED, OBJECT, accepts, encode, ends, follow, push
from tests.property import structured
from tests.property.structured import Chooser, allowed, constraint, fault, sample, text_of, wrapper
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.compile import ConstraintCompiler
from worker.output.preamble import MarkerTokens, Preamble


@pytest.mark.parametrize(
    ("schema", "text", "valid"),
    [
        (OBJECT, '{"a": 1}', True),
        (OBJECT, '{"a":1,"b":[]}', True),
        (OBJECT, '{"a":  1}', False),
        (OBJECT, '{ "a": 1}', False),
        (OBJECT, '{"a"\n: 1}', False),
        (OBJECT, ' {"a": 1}', False),
        (OBJECT, "[]", False),
        (CLOSED, '{"a": 1, "b": 2}', False),
        ({"x-guidance": {"whitespace_flexible": True, "lenient": True}, **CLOSED}, '{"a":   1}',
            False),
        # Another spelling of the name must not get around its schema.
        ({**CLOSED, "additionalProperties": True}, '{"a": 1, "\\u0061": "x"}', False),
        ({**CLOSED, "additionalProperties": True}, '{"a": 1, "a": "x"}', False),
        ({"properties": {"b": {}, "a": {}}, "type": "object"}, '{"b": 1, "a": 2}', True),
        ({"properties": {"b": {}, "a": {}}, "type": "object"}, '{"a": 1, "b": 2}', False),
        ({"type": "string", "maxLength": 1}, '"\\ud83d\\ude00"', False),
        ({"type": "string", "maxLength": 1}, '"😀"', True),
        ({"type": "string", "minLength": 2}, '"😀"', False),
        ({"type": "string", "format": "time"}, '"12:00:60Z"', False),
        ({"type": "string", "format": "time"}, '"12:00:59Z"', True),
        ({"type": "string", "format": "date"}, '"2023-02-29"', False),
        ({"type": "string", "format": "date"}, '"1900-02-29"', False),
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "format": "date"}, '"2000-02-29"', True),
        ({"type": "string", "format": "date", "pattern": "5$"}, '"2024-12-25"', True),
        ({"type": "string", "format": "date", "allOf": [{"pattern": "5$"}]}, '"2024-12-26"', False),
        ({"type": ["integer", "null"], "format": "phone"}, "null", False),
    ],
)  # fmt: skip
def test_rules(schema: Any, text: str, valid: bool) -> None:
    if "phone" in str(schema):
        # Formats are about strings alone.
        constraint(schema)
        return
    assert accepts(schema, text) == valid


MARKERS = ("a<|im_end|>b", "<|end|>", "<think>", "</tool_call>")


@pytest.mark.parametrize("marker", MARKERS)
def test_special_tokens_texts_are_texts(marker: str) -> None:
    """llguidance wants them as their tokens, and then refuses these."""
    name = {"properties": {marker: {}}, "required": [marker], "additionalProperties": False}
    model = wrapper(thinks=True, hermes=True)
    made = ConstraintCompiler(model, len(model))
    for schema in ({"const": marker}, {"enum": [marker]}, {"type": "object", **name}):
        grammars = [made.compile(structured.request(schema)) for _ in range(4)]
        found = sample(
            [grammar for grammar in grammars if isinstance(grammar, AnswerConstraint)],
            [Chooser(model, seed, patience=9.0) for seed in range(4)],
        )
        for tokens in found:
            assert tokens is not None
            assert not fault(schema, text_of(model, tokens))


def test_true_is_any_value() -> None:
    assert accepts(True, "[1, null]")


@pytest.mark.parametrize("kind", ["bytes", "spm"])
def test_sampled_answers_are_valid(kind: str) -> None:
    """ollama#17013: schemas were ignored in silence. The short form of `python -m
    tests.property.structured`."""
    ended, why = structured.run(6 * len(structured.all_wanted()), 7, kind)
    assert not why
    assert {name for name in structured.all_wanted() if not ended[name]} <= structured.RARELY


def test_the_judge_can_say_no() -> None:
    assert fault(CLOSED, '{"a": "x"}')
    assert fault({"type": "string", "format": "date"}, '"2023-02-30"')
    assert fault({}, "{")
    assert not fault(CLOSED, '{"a": 3}')


# ── masks ────────────────────────────────────────────────────────────────────────────────────────


def test_every_end_is_allowed_after_a_whole_answer_and_none_before() -> None:
    grammar = constraint(CLOSED)
    assert len(ends()) == 2
    push(grammar, '{"a": 1')
    assert not set(ends()) & set(allowed(grammar))
    assert not grammar.complete
    whole = constraint(CLOSED)
    push(whole, '{"a": 1}')
    assert whole.complete
    assert allowed(whole) == ends()


def test_where_the_answer_may_go_on_it_may_also_end() -> None:
    grammar = constraint({"type": "integer"})
    push(grammar, "12")
    assert set(ends()) < set(allowed(grammar))


@pytest.mark.parametrize("late", [7, 10**9, -1])
def test_tokens_that_were_not_allowed_end_the_answer(late: int) -> None:
    """Steps run one ahead: what comes after the end is of no account."""
    grammar = constraint(CLOSED)
    push(grammar, '{"a": 1}')
    for token in (ends()[1], late, ends()[0], 65, 66):
        grammar.push(token)
        assert allowed(grammar) == ends()
    grammar = constraint(CLOSED)
    push(grammar, '{"a"')
    grammar.push(late)
    grammar.push(late)
    assert allowed(grammar) == ends()
    assert not grammar.complete
    assert not grammar.failure
    assert grammar.incomplete_error(called=False)
    assert grammar.incomplete_error(called=True)


def test_replay_yields_the_same_state() -> None:
    schema = structured.served()["invoice"]
    (tokens,) = sample([constraint(schema)], [Chooser(wrapper(), 5)])
    assert tokens is not None
    first = constraint(schema)
    for at, token in enumerate(tokens):
        if at % 9 == 0:
            again = constraint(schema)
            for earlier in tokens[:at]:
                again.push(earlier)
            assert allowed(again) == allowed(first)
        first.push(token)


def test_requests_of_one_schema_don_t_share_a_state() -> None:
    one, other = constraint(CLOSED), constraint(CLOSED)
    push(one, '{"a"')
    push(other, '{"a": 1')
    assert allowed(one) != allowed(other)
    push(one, ": 5}")


# ── thinking ─────────────────────────────────────────────────────────────────────────────────────


def thinking(prompt: str, *, chat: bool = True) -> tuple[Any, AnswerConstraint]:
    model = wrapper(thinks=True)
    request = Generate(
        "r",
        Chat([]) if chat else Text(prompt),
        0.0,
        structure=Schema(json.dumps(CLOSED)),
    )
    made = ConstraintCompiler(model, len(model) + structured.SPARE).compile(
        request, encode(model, prompt)
    )
    assert isinstance(made, AnswerConstraint)
    return model, made


def braces(model: Any) -> list[int]:
    """The tokens that an answer under `CLOSED` may begin with."""
    return [*encode(model, "{"), model.convert_tokens_to_ids('{"')]


def test_a_model_that_thinks_may_begin_with_it_or_answer() -> None:
    model, grammar = thinking("hello")
    start = encode(model, "<think>")
    assert set(allowed(grammar)) == {*start, *braces(model)}
    follow(grammar, encode(model, '{"a": 1}'))
    assert allowed(grammar) == sorted(model.eos_token_ids)


@pytest.mark.parametrize("prompt", ["hello<think>", "hello<think>\n"])
def test_what_is_thought_is_free(prompt: str) -> None:
    model, grammar = thinking(prompt)
    everything = set(range(len(model))) - set(model.eos_token_ids)
    assert set(allowed(grammar)) == everything
    follow(grammar, encode(model, 'anything {"é <think> 日'))
    assert set(allowed(grammar)) == everything
    follow(grammar, encode(model, "</think>"))
    follow(grammar, encode(model, "\n\n"))
    assert encode(model, "\n")[0] not in allowed(grammar)
    follow(grammar, encode(model, '{"a": 1}'))
    assert allowed(grammar) == sorted(model.eos_token_ids)


def test_thinking_that_the_output_opens() -> None:
    model, grammar = thinking("hello")
    follow(grammar, encode(model, '<think>hm {"a"</think>{"a": 1}'))
    assert grammar.complete


@pytest.mark.parametrize("prompt", ["hello<think>\n\n</think>\n\n", "hello<think></think>"])
def test_after_thinking_there_is_only_the_answer(prompt: str) -> None:
    model, grammar = thinking(prompt)
    assert encode(model, "<think>")[0] not in allowed(grammar)


def test_a_marker_in_the_user_s_text_means_nothing() -> None:
    model, grammar = thinking("what is <think> for?\n")
    assert set(allowed(grammar)) == {*encode(model, "<think>"), *braces(model)}
    model, grammar = thinking("hello<think>", chat=False)
    assert allowed(grammar) == braces(model)


def test_an_end_while_thinking_is_the_end() -> None:
    model, grammar = thinking("x<think>")
    grammar.push(sorted(model.eos_token_ids)[0])
    assert allowed(grammar) == sorted(model.eos_token_ids)
    assert not grammar.complete


def test_markers_of_several_tokens() -> None:
    """As gemma's: the output may still be either while its first tokens are both's."""
    markers = MarkerTokens(wrapper())
    markers.start = tuple(wrapper().encode("<th"))
    markers.end = tuple(wrapper().encode("th>"))
    made = constraint({"enum": ["<x"]})
    grammar = AnswerConstraint(made.vocabulary, made._matcher, Preamble(markers, "before"))
    less, quote = wrapper().encode("<")[0], wrapper().encode('"')[0]
    assert allowed(grammar) == sorted([less, quote])
    push(grammar, "<t")
    assert allowed(grammar) == wrapper().encode("h")
    push(grammar, "hxx tth")
    push(grammar, '> "<x"')
    assert grammar.complete
