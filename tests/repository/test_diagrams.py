"""The diagrams in docs/architecture.md are those of the code."""

from __future__ import annotations

import pytest

from supervisor.scheduler.lifecycle import TRANSITIONS
from tests.repository.diagrams import DRAWN, PAGE, directly_seen, drawn_anew, rooms, rule, states
from tests.repository.rooms import ROOMS


def test_the_page_is_current() -> None:
    """`python -m tests.repository.diagrams` writes it anew."""
    assert PAGE.read_text() == drawn_anew(PAGE.read_text())


def test_a_page_without_a_diagram_is_noticed() -> None:
    with pytest.raises(ValueError, match=next(iter(DRAWN))):
        drawn_anew("")


def test_every_move_is_drawn() -> None:
    drawn = states()
    for (state, event), after in TRANSITIONS.items():
        line = next(each for each in drawn.splitlines() if f" {state} --> {after}: " in each)
        assert event in line


def test_every_room_is_drawn_and_listed() -> None:
    drawn, listed = rooms(), rule()
    for room in ROOMS:
        assert f" {room}[" in drawn
        assert f"| `{room}` |" in listed


def test_what_is_seen_through_another_room_is_not_drawn() -> None:
    assert "supervisor.app" in directly_seen("supervisor.serve")
    assert "supervisor.wire" not in directly_seen("supervisor.serve")
