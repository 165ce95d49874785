"""supervisor.scheduler.memory_events, through the pool that is made of them."""

from __future__ import annotations

from supervisor.scheduler.pressure import Level
from tests.helpers.pools import GB, loaded, said, small_machine


def test_a_level_is_told_when_it_changes() -> None:
    pool = small_machine("a")
    assert "memory pressure is warn: 90 %" in said(pool.memory.pressure(Level.WARN, "90 %", 1.0))
    assert said(pool.memory.pressure(Level.WARN, "90 %", 2.0)) == ""


def test_a_footprint_changes_no_charge() -> None:
    pool = small_machine("a")
    loaded(pool, "a")
    charged = pool.state.ledger.charged
    pool.memory.footprint("a", 1, GB, 3.0)
    assert pool.state.ledger.charged == charged
