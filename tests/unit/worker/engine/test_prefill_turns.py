"""A long prompt waits for its turn, a short one never."""

from __future__ import annotations

from supervisor.wire.frames import WantsPrefill
from worker.engine.prefill_turns import HEAVY_TOKENS, PrefillTurns

SHORT, LONG = HEAVY_TOKENS - 1, HEAVY_TOKENS
ASKS, DONE = [WantsPrefill(True)], [WantsPrefill(False)]


def holding() -> PrefillTurns:
    """It has asked for a turn and got it."""
    turns = PrefillTurns(True)
    assert turns.news([LONG]) == ASKS
    turns.allow(True)
    assert turns.news([LONG]) == []
    return turns


def test_without_the_gate_everything_goes_and_nothing_is_said() -> None:
    turns = PrefillTurns(False)
    assert turns.may_go_on(10**6)
    assert turns.news([10**6]) == []
    turns.allow(False)
    assert turns.may_go_on(10**6)
    assert turns.news([10**6]) == []


def test_a_short_prompt_needs_no_turn() -> None:
    turns = PrefillTurns(True)
    assert turns.may_go_on(SHORT)
    assert turns.news([SHORT, 1, 0]) == []
    assert turns.news([]) == []


def test_a_long_prompt_asks_once_and_waits() -> None:
    turns = PrefillTurns(True)
    assert not turns.may_go_on(LONG)
    assert turns.news([SHORT, LONG]) == ASKS
    assert turns.news([LONG, LONG]) == []
    assert not turns.may_go_on(LONG)
    assert turns.may_go_on(SHORT)
    turns.allow(True)
    assert turns.may_go_on(LONG)


def test_the_turn_is_given_back_when_nothing_heavy_is_left() -> None:
    turns = holding()
    assert turns.news([SHORT]) == DONE
    assert not turns.may_go_on(LONG)
    assert turns.news([SHORT]) == []
    assert turns.news([LONG]) == ASKS
    turns.allow(True)
    assert turns.may_go_on(LONG)


def test_it_stops_when_it_is_asked_to_and_says_so_once() -> None:
    turns = holding()
    turns.allow(False)
    assert not turns.may_go_on(LONG)
    assert turns.news([LONG]) == ASKS
    assert turns.news([LONG]) == []
    turns.allow(True)
    assert turns.may_go_on(LONG)


def test_it_stops_with_nothing_left() -> None:
    turns = holding()
    turns.allow(False)
    assert turns.news([]) == DONE
    assert turns.news([]) == []
    assert turns.news([LONG]) == ASKS


def test_a_turn_that_nobody_wants_any_more_goes_back_at_once() -> None:
    turns = PrefillTurns(True)
    assert turns.news([LONG]) == ASKS
    assert turns.news([]) == []  # its client has left
    turns.allow(True)
    assert turns.news([]) == DONE
    assert not turns.may_go_on(LONG)


def test_a_turn_serves_whoever_is_there_when_it_comes() -> None:
    turns = PrefillTurns(True)
    assert turns.news([LONG]) == ASKS
    assert turns.news([]) == []
    assert turns.news([LONG]) == []
    turns.allow(True)
    assert turns.news([LONG]) == []
    assert turns.may_go_on(LONG)


def test_a_word_that_crosses_with_the_end_of_the_turn_means_nothing() -> None:
    turns = holding()
    assert turns.news([]) == DONE
    turns.allow(False)
    assert turns.news([]) == []
    assert turns.news([LONG]) == ASKS
    turns.allow(False)  # the same, later still
    assert turns.news([LONG]) == []
    turns.allow(True)
    assert turns.may_go_on(LONG)


def test_a_turn_that_was_not_asked_for_is_none() -> None:
    turns = PrefillTurns(True)
    turns.allow(True)
    assert not turns.may_go_on(LONG)
    assert turns.news([]) == []
