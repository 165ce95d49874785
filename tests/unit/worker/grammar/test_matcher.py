"""worker.grammar.matcher: what happens when llguidance gives up on an output."""

from __future__ import annotations

import logging

import llguidance
import pytest

from tests.helpers.grammars import encode, ends
from tests.property import guided, structured
from tests.property.structured import Chooser, allowed, constraint, wrapper
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.compile import ConstraintCompiler


def test_an_error_is_told_and_not_taken_for_an_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llguidance gives up on some patterns while it follows them."""
    monkeypatch.setattr(
        "worker.grammar.matcher.limits",
        lambda *_: llguidance.LLParserLimits(max_lexer_states=300, verbose_errors=False),
    )
    grammar = constraint({"type": "string", "pattern": "(.*a.{20}){5}"})
    choose = Chooser(wrapper(), 1, patience=1e9)
    with caplog.at_level(logging.WARNING):
        for length in range(400):
            tokens = allowed(grammar)
            if grammar.failure:
                break
            letters = [t for t in tokens if wrapper().decode([t]) in ("a", "b")]
            grammar.push(choose(sorted(letters) if length else tokens, 0))
    assert grammar.failure
    assert tokens == ends()
    assert not grammar.complete
    error = grammar.incomplete_error(called=False)
    assert error is not None
    assert grammar.failure in error.message
    assert error.status < 500
    assert grammar.failure in caplog.text
    assert "aa" not in caplog.text


def test_what_others_have_taught_a_grammar_ends_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lexer remembers what all outputs met, up to a limit: then it is compiled anew."""
    monkeypatch.setattr(
        "worker.grammar.matcher.limits",
        lambda *_: llguidance.LLParserLimits(max_lexer_states=1000, verbose_errors=False),
    )
    letters = set(encode(wrapper(), "ab"))
    made = ConstraintCompiler(wrapper(), len(wrapper()))
    request = structured.request({"type": "string", "pattern": "(.*a.{20}){5}"})
    for seed in range(6):
        grammar, replayed = made.compile(request), made.compile(request)
        assert isinstance(grammar, AnswerConstraint)
        assert isinstance(replayed, AnswerConstraint)
        choose = Chooser(wrapper(), seed, patience=1e9)
        for length in range(40):
            token = choose(sorted(letters & {*allowed(grammar)} or allowed(grammar)), length)
            grammar.push(token)
            replayed.push(token)
        assert allowed(grammar) == allowed(replayed) != ends()
        assert not grammar.failure


def test_an_answer_whose_grammar_gave_up_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "worker.grammar.matcher.limits",
        lambda *_: llguidance.LLParserLimits(max_lexer_states=60, verbose_errors=False),
    )
    schema = {"type": "string", "pattern": "(.*b.{20}){5}"}
    monkeypatch.setattr(structured, "served", lambda: {"hard": schema})
    monkeypatch.setattr(guided, "cases", dict)
    _, why = structured.run(16, 1, "bytes")
    assert why.startswith("'hard'")
