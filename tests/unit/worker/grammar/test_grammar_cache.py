"""worker.grammar.grammar_cache: what compiled grammars take is bounded, whoever uses them."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

from supervisor.errors import QueueFull, UnsupportedValue
from tests.property import structured
from tests.property.structured import wrapper
from worker.grammar.compile import ConstraintCompiler
from worker.grammar.grammar_cache import FIXED, GrammarCache, bytes_of


def compiler(grammars: float) -> ConstraintCompiler:
    """With room for so many small grammars."""
    tokenizer = wrapper()
    one = ConstraintCompiler(tokenizer, len(tokenizer))
    compiled(one, 100)
    cache = GrammarCache(int(grammars * one._cache.size))
    return ConstraintCompiler(tokenizer, len(tokenizer), cache=cache)


def compiled(grammars: ConstraintCompiler, number: int) -> Any:
    return grammars.compile(structured.request({"const": number}))


def test_grammars_that_nobody_uses_make_room_oldest_first() -> None:
    grammars = compiler(3)
    for number in range(20):
        compiled(grammars, 100 + number)
        assert grammars._cache.size <= grammars._cache.most
    assert len(grammars._cache) == 3
    kept = list(grammars._cache._kept)
    compiled(grammars, 117)  # the oldest of the three
    compiled(grammars, 200)
    assert kept[0] in grammars._cache._kept
    assert kept[1] not in grammars._cache._kept


def test_those_in_use_stay_and_equal_ones_are_shared() -> None:
    grammars = compiler(2)
    first, second = compiled(grammars, 100), compiled(grammars, 101)
    same = compiled(grammars, 100)
    assert same._matcher._compiled is first._matcher._compiled
    with pytest.raises(QueueFull) as told:
        compiled(grammars, 102)
    assert told.value.retry_after is not None
    again = compiled(grammars, 101)
    assert again._matcher._compiled is second._matcher._compiled
    del again
    del second
    gc.collect()
    assert compiled(grammars, 102)
    assert grammars._cache.size <= grammars._cache.most


def test_bytes_are_given_back_and_told() -> None:
    freed: list[int] = []
    cache = GrammarCache(2 * FIXED, freed.append)
    tokenizer = wrapper()
    grammars = ConstraintCompiler(tokenizer, len(tokenizer), cache=cache)
    compiled(grammars, 100)
    size = cache.size
    assert FIXED < size < 2 * FIXED
    compiled(grammars, 101)
    gc.collect()
    assert freed == [size]


def test_a_grammar_above_the_bound_is_refused_in_plain_words() -> None:
    grammars = compiler(1)
    large = {"enum": [f"value {number}" for number in range(1000)]}
    with pytest.raises(UnsupportedValue, match="too large") as told:
        grammars.compile(structured.request(large))
    assert told.value.param == "response_format"
    assert not grammars._cache.size


def test_a_grammar_with_a_fault_takes_nothing() -> None:
    grammars = compiler(2)
    with pytest.raises(UnsupportedValue):
        grammars.compile(structured.request({"type": "string", "pattern": "(?=a)b"}))
    assert not grammars._cache.size


def test_what_must_be_is_made_all_the_same() -> None:
    cache = GrammarCache(FIXED)
    tokenizer = wrapper()
    grammars = ConstraintCompiler(tokenizer, len(tokenizer), cache=cache)
    vocabulary = grammars._known("tools")
    rules = f"start: /{json.dumps('a')}/\n"
    cache.most += bytes_of("")
    first = grammars._compiled(vocabulary, rules, ())
    first.users.add(grammars)
    with pytest.raises(QueueFull):
        grammars._compiled(vocabulary, rules + "\n", ())
    assert grammars._compiled(vocabulary, rules + "\n", (), must=True)
