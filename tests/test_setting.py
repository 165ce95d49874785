"""supervisor.setting: every memory setting reaches the pool."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from supervisor import setting
from supervisor.catalog import Catalog
from supervisor.config import Config, Overrides, from_tree
from supervisor.pool import Limits, ReleaseRule, Rules
from supervisor.pressure import Thresholds
from supervisor.readers import Machine

GB = 10**9
MODEL = '[models.m]\nsource = "demo"\n'


def parse(text: str) -> Config:
    return from_tree(tomllib.loads(text + MODEL), environ={}, overrides=Overrides())


def rules(text: str) -> Rules:
    config = parse(text)
    return setting.pool(config, Catalog(config.models, Path("/nowhere")), None).rules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy", "lru"),
        ("keep", 3),
        ("max_loaded", 2),
        ("cleanup_interval", 30.0),
        ("min_residency", 5.0),
        ("max_wait", 7.0),
        ("load_gate", "exclusive"),
        ("load_gate_timeout", 9.0),
    ],
)
def test_a_rule_reaches_the_pool(key: str, value: Any) -> None:
    written = f'"{value}"' if isinstance(value, str) else value
    assert getattr(rules(f"[memory]\n{key} = {written}\n"), key) == value
    assert getattr(rules(""), key) != value


def test_the_defaults_are_the_pools() -> None:
    assert rules("") == Rules(release=setting.release_rule(), recovery="resume")


def test_requests_over_all_models_are_bounded() -> None:
    assert rules("[server]\nmax_requests = 5\n").max_requests == 5


def test_deadlines_and_the_default_model_reach_the_pool() -> None:
    config = parse(
        '[server]\ndefault_model = "m"\n[memory]\nload_stall_seconds = 3\ndrain_seconds = 4\n'
    )
    pool = setting.pool(config, Catalog(config.models, Path("/nowhere")), 5 * GB)
    assert pool.limits == Limits(load_stall=3, drain=4)
    assert pool.resolve("").spec.name == "m"
    assert pool.ledger.budget == 5 * GB


def test_what_is_set_for_a_model_reaches_the_pool() -> None:
    text = MODEL + 'pin = true\nttl = 9\nmemory = "3GB"\nmax_concurrency = 2\nmax_queue = 5\n'
    config = from_tree(tomllib.loads(text), environ={}, overrides=Overrides())
    entry = setting.pool(config, Catalog(config.models, Path("/")), None).entries["m"]
    assert (entry.pinned, entry.spec.ttl, entry.size) == (True, 9, 3 * GB)
    assert (entry.spec.concurrency, entry.spec.capacity) == (2, 7)


def test_thresholds() -> None:
    memory = parse("[memory]\nwarn = 0.5\nhigh = 0.6\ncritical = 0.7\n").memory
    assert setting.thresholds(memory) == Thresholds(0.5, 0.6, 0.7)
    assert setting.thresholds(parse("").memory) == Thresholds()


@pytest.mark.parametrize(
    ("written", "machine", "working_set", "budget"),
    [
        ("auto", Machine(64 * GB), None, 48 * GB),
        ("auto", Machine(128 * GB), 96 * GB, 96 * GB),
        ("auto", Machine(), None, None),
        ("75%", Machine(64 * GB), 10 * GB, 48 * GB),
        ("75%", Machine(), None, None),
        ("96GB", Machine(64 * GB), 10 * GB, 96 * GB),
        ("96GB", Machine(), None, 96 * GB),
    ],
)
def test_the_budget(
    written: str, machine: Machine, working_set: int | None, budget: int | None
) -> None:
    memory = parse(f'[memory]\nbudget = "{written}"\n').memory
    assert setting.budget(memory, machine, working_set) == budget


def test_only_macos_gives_memory_back_late() -> None:
    assert setting.release_rule("darwin") is ReleaseRule.WHEN_SEEN
    assert setting.release_rule("linux") is ReleaseRule.AT_REAP
