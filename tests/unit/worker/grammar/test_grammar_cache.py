"""worker.grammar.grammar_cache: what compiled grammars take is bounded, whoever uses them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import QueueFull, UnsupportedValue
from supervisor.wire.frames import Calling, Chat, Generate, Schema
from tests.helpers import dialects
from tests.helpers.grammars import CLOSED
from tests.property import structured
from tests.property.structured import wrapper
from worker.grammar.compile import ConstraintCompiler
from worker.grammar.grammar_cache import FIXED, Claim, GrammarCache, bytes_of


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


# ── several grammars of one request ──────────────────────────────────────────────────────────────


def tool(name: str, size: int) -> dict[str, Any]:
    schema = {**CLOSED, "description": "", "properties": {"a" * size: {"type": "integer"}}}
    schema["required"] = ["a" * size]
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}


def asked(choice: Any, schema: object = None) -> Generate:
    tools = [tool("f", 3), tool("g", 900)]
    structure = None if schema is None else Schema(json.dumps(schema))
    calling = Calling(choice, ("f", "g"))
    return Generate("r", Chat([], tools), 0.0, calling=calling, structure=structure)


def bounded(model: dialects.Model, most: int) -> ConstraintCompiler:
    tokenizer = dialects.wrapper(model)
    return ConstraintCompiler(tokenizer, len(tokenizer), cache=GrammarCache(most))


LONG = {"const": "x" * 800}
SEVERAL: dict[str, tuple[dialects.Model, Generate, int]] = {
    "calls": (dialects.HERMES, asked("auto"), 2),
    "calls in a list": (dialects.MISTRAL, asked("auto"), 1),
    "forced": (dialects.HERMES, asked("required"), 1),
    "an answer or calls": (dialects.HERMES, asked("auto", LONG), 1),
    "an answer, and calls behind a marker": (dialects.MISTRAL, asked("auto", LONG), 2),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_grammars_of_one_request_have_room_together_or_are_refused(name: str) -> None:
    model, request, least = SEVERAL[name]
    grammars = bounded(model, 2**40)
    claim = grammars.claim()
    made = grammars.compile(request, (), claim)
    sizes = list(claim.wanted.values())
    assert len(sizes) >= least
    used = [grammar for grammar in grammars._cache._kept.values() if grammar.users]
    assert len(used) == len(sizes)
    del made
    grammars = bounded(model, sum(sizes))
    for _ in range(2):
        assert grammars.compile(request)
        assert grammars._cache.size <= sum(sizes)
    grammars = bounded(model, sum(sizes) - 1)
    for _ in range(2):  # alone on the worker, each time
        with pytest.raises(UnsupportedValue, match="too large") as told:
            grammars.compile(request)
        assert (told.value.param or "").startswith("tools[0]")
    if name == "calls":
        assert not len(grammars._cache)  # it was known before any was made


# ── the line ─────────────────────────────────────────────────────────────────────────────────────


class Asker:
    """One request that wants a grammar, and waits for it."""

    def __init__(self, grammars: ConstraintCompiler, wanted: int | Generate) -> None:
        """A number is a schema of its own."""
        self.claim: Claim = grammars.claim()
        self.made: Any = None
        self.called = 0
        request = structured.request({"const": wanted}) if isinstance(wanted, int) else wanted
        self._make: Callable[[], Any] = lambda: grammars.compile(request, (), self.claim)
        self.ask()

    def ask(self) -> bool:
        """Whether it has it; else it waits."""
        try:
            self.made = self._make()
        except QueueFull:
            self.claim.wait(self._call)
            return False
        self.claim.leave()
        return True

    def _call(self) -> None:
        self.called += 1

    def end(self) -> None:
        self.made = None
        gc.collect()


def test_room_is_for_those_who_wait_in_the_order_of_coming() -> None:
    grammars = compiler(2)
    one, two = Asker(grammars, 100), Asker(grammars, 101)
    waiting = [Asker(grammars, 102 + number) for number in range(3)]
    assert [each.called for each in waiting] == [0, 0, 0]
    two.end()
    assert [each.called for each in waiting] == [1, 0, 0]
    # Who comes now takes neither the room nor what could go, until the first has its own.
    late, again = Asker(grammars, 200), Asker(grammars, 101)
    assert (late.made, again.made) == (None, None)
    same = Asker(grammars, 100)  # it is in use
    assert same.made is not None
    assert waiting[0].ask()
    assert [each.called for each in waiting] == [1, 0, 0]
    waiting[1].claim.leave()  # its client has left
    waiting[0].end()
    assert [each.called for each in waiting] == [1, 0, 1]
    one.end()
    assert [each.called for each in waiting] == [1, 0, 1]  # not for nothing
    assert waiting[2].ask()
    same.end()
    assert (late.called, again.called) == (1, 0)
    assert late.ask()
    waiting[2].end()
    assert again.called == 1
    assert again.ask()
    assert not grammars._cache._line


def test_who_is_called_and_finds_no_room_after_all_keeps_its_place() -> None:
    grammars = compiler(1)
    one = Asker(grammars, 100)
    first, second = Asker(grammars, 101), Asker(grammars, 102)
    one.end()
    assert [first.called] == [1]
    taken = grammars._cache.grammar(
        b"k", FIXED, lambda: compiled(compiler(1), 1)._matcher._compiled, must=True
    )
    taken.users.add(grammars)
    assert not first.ask()
    assert [first.called, second.called] == [1, 0]
    del taken
    del grammars._cache._kept[b"k"]
    gc.collect()
    assert [first.called, second.called] == [2, 0]
    assert first.ask()


def sizes_of(model: dialects.Model, request: Generate) -> list[int]:
    grammars = bounded(model, 2**40)
    claim = grammars.claim()
    grammars.compile(request, (), claim)
    return list(claim.wanted.values())


def test_who_wants_several_waits_for_room_for_all_of_them() -> None:
    both, one = (
        sizes_of(dialects.HERMES, each)
        for each in (asked("auto"), structured.request({"const": 100}))
    )
    grammars = bounded(dialects.HERMES, sum(both) + sum(one) - 1)
    here, first = Asker(grammars, 100), Asker(grammars, asked("auto"))
    second = Asker(grammars, 101)
    assert (first.made, second.made) == (None, None)
    here.end()
    assert (first.called, second.called) == (1, 0)
    assert first.ask()


def test_what_is_wanted_and_in_use_takes_no_room_twice() -> None:
    answer = asked("auto", LONG)
    alone = Generate("r", Chat([]), 0.0, structure=answer.structure)
    both, one = (
        sizes_of(dialects.MISTRAL, each) for each in (answer, structured.request({"const": 100}))
    )
    grammars = bounded(dialects.MISTRAL, sum(both) + sum(one) - 1)
    shared, other = Asker(grammars, alone), Asker(grammars, 100)
    first = Asker(grammars, answer)
    assert [first.called] == [0]
    other.end()
    assert [first.called] == [1]
    assert first.ask()
    assert shared.made is not None


def test_room_is_told_when_the_last_output_ends_without_the_collector() -> None:
    grammars = compiler(1)
    one = Asker(grammars, 100)
    same, first = Asker(grammars, 100), Asker(grammars, 101)
    gc.disable()
    try:
        one.made = None
        assert [first.called] == [0]
        same.made = None
        assert [first.called] == [1]
    finally:
        gc.enable()


def test_room_that_is_there_is_told_at_once() -> None:
    grammars = compiler(1)
    one = Asker(grammars, 100)
    first = grammars.claim()
    with pytest.raises(QueueFull):
        grammars.compile(structured.request({"const": 101}), (), first)
    one.end()  # before it waits
    called: list[int] = []
    first.wait(lambda: called.append(1))
    assert called == [1]


def test_who_was_called_and_leaves_without_its_grammar_makes_way() -> None:
    grammars = compiler(1)
    one = Asker(grammars, 100)
    first, second = Asker(grammars, 101), Asker(grammars, 102)
    one.end()
    first.claim.leave()  # it was refused
    assert second.called == 1
