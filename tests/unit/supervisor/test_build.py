"""supervisor.build: every memory setting reaches the pool."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.http.bodies import RUNNING_MAX
from gateway.responses.store import BYTES_MAX as RESPONSES_MAX
from supervisor import build
from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import Config
from supervisor.config.settings import from_tree
from supervisor.machine.readers import MachineMemory
from supervisor.models.catalog import DEFAULT_CONCURRENCY, Catalog
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes.gateway import BYTES as GATEWAY_BYTES
from supervisor.processes.spare import BYTES as SPARE_BYTES
from supervisor.scheduler.ledger import Reserved
from supervisor.scheduler.model import Limits, ReleaseRule, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import GroupMemory, Thresholds
from tests.helpers.architectures import config_of
from tests.unit.supervisor.models.test_estimate import write_tensors

GB = 10**9
QUEUE_BYTES = 256 * 10**6
MODEL = '[models.m]\nsource = "nowhere/m"\n'


def parse(text: str) -> Config:
    return from_tree(tomllib.loads(text + MODEL), environ={}, overrides=Overrides())


def pool(config: Config, budget: int | None = None, measured: int = 0, excess: int = 0) -> Pool:
    """Of models without files: their sizes are unknown, unless configured, or `measured` earlier
    for one called `c`, which held `excess` beyond its charge. Bytes."""
    served = Catalog(config.models, Path("/nowhere"))
    sizing = Sizing(served, SizeCache(Path("/nowhere/sizes.json")), budget)
    if measured:
        sizing.save_load("c", measured, 1.0)
        sizing.save_excess("c", excess)
    return build.pool(config, served, sizing)


def rules(text: str) -> Rules:
    return pool(parse(text)).state.rules


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
    assert rules("") == Rules(release=build.release_rule(), recovery="resume")


def test_requests_over_all_models_are_bounded() -> None:
    assert rules("[server]\nmax_requests = 5\n").max_requests == 5


def test_deadlines_and_the_default_model_reach_the_pool() -> None:
    config = parse(
        '[server]\ndefault_model = "m"\n[memory]\nload_stall_seconds = 3\ndrain_seconds = 4\n'
    )
    made = pool(config, 5 * GB)
    assert made.state.limits == Limits(load_stall=3, drain=4)
    assert made.state.resolve("").spec.name == "m"
    assert made.state.ledger.budget == 5 * GB - SPARE_BYTES - 5 * GB // 20


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        ("", Spec("m", (), DEFAULT_CONCURRENCY + 1024, DEFAULT_CONCURRENCY)),
        ("max_concurrency = 2\nmax_queue = 3", Spec("m", (), 5, 2)),
        ("max_concurrency = 1\nmax_queue = 0", Spec("m", (), 1, 1)),
        ('max_concurrency = 1\naliases = ["x", "y"]', Spec("m", ("x", "y"), 1025, 1)),
        (
            'max_concurrency = 1\nmemory = "3GB"\npin = true\nttl = 9',
            Spec("m", (), 1025, 1, memory_bytes=3 * GB, pin=True, ttl=9),
        ),
    ],
)
def test_what_is_set_for_a_model_reaches_the_pool(options: str, spec: Spec) -> None:
    config = from_tree(tomllib.loads(MODEL + options), environ={}, overrides=Overrides())
    model = pool(config).models["m"]
    assert model.spec == spec
    assert model.pinned is spec.pin


def three(
    keys: str, budget: int | None, measured: int = 0, before: str = "", excess: int = 0
) -> Pool:
    """Models `a` of 3 GB, `b` of 4 GB and `c` of no configured size, each with `keys`."""
    tables = before + "".join(
        f'[models.{name}]\nsource = "nowhere/{name}"\n{keys}\n{size}\n'
        for name, size in (("a", 'memory = "3GB"'), ("b", 'memory = "4GB"'), ("c", ""))
    )
    config = from_tree(tomllib.loads(tables), environ={}, overrides=Overrides())
    return pool(config, budget, measured, excess)


@pytest.mark.parametrize(("key", "what"), [("pin", "pinned models"), ("preload", "to preload")])
def test_pins_or_preloads_above_the_budget_are_an_error(key: str, what: str) -> None:
    assert three(f"{key} = true", 7 * GB).state.ledger.budget == 7 * GB
    with pytest.raises(ConfigError, match=r"^memory\.budget: 6\.9 GB ") as caught:
        three(f"{key} = true", 69 * GB // 10)
    for figure in (what, "7.0 GB together", "a 3.0 GB (configured)", "b 4.0 GB (configured)"):
        assert figure in str(caught.value)
    with pytest.raises(ConfigError, match=r"^memory\.budget: 10 MB "):
        three(f"{key} = true", GB // 100)
    # Without either they make room for each other; without a budget there is nothing to exceed.
    assert three("", 4 * GB).state.ledger.budget == 4 * GB
    assert three(f"{key} = true", None).state.ledger.budget is None


def test_a_size_that_was_measured_counts_against_the_budget() -> None:
    assert three("pin = true", 9 * GB, measured=2 * GB).models["c"].size == 2 * GB
    grown = three("pin = true", 9 * GB, measured=GB, excess=GB).models["c"]
    assert (grown.measured_bytes, grown.size) == (GB, 2 * GB)
    with pytest.raises(ConfigError, match=r"c 2\.1 GB \(measured\)"):
        three("pin = true", 9 * GB, measured=21 * GB // 10)


@pytest.mark.parametrize("keys", ["", "pin = true", "preload = true"])
def test_the_spare_gets_its_share_unless_that_keeps_models_out(keys: str) -> None:
    """Without pins and preloads the largest model counts, 4 GB; with them all together, 7 GB."""
    needed = 7 * GB if keys else 4 * GB
    enough = (needed + SPARE_BYTES) * 20 // 19 + 20
    for budget, share in ((enough, SPARE_BYTES), (enough - 40, 0)):
        ledger, gateway = three(keys, budget).state.ledger, budget // 20
        assert (ledger.reserved, ledger.budget) == (share + gateway, budget - share - gateway)
    # What fits neither way loses nothing by a spare.
    budget = 39 * GB // 10
    assert three("", budget).state.ledger.reserved == SPARE_BYTES + budget // 20
    assert three(keys, None).state.ledger.reserved == SPARE_BYTES + GATEWAY_BYTES + QUEUE_BYTES


@pytest.mark.parametrize("keys", ["", "pin = true", "preload = true"])
def test_the_gateway_is_charged_what_it_may_hold_unless_that_keeps_models_out(keys: str) -> None:
    needed = 7 * GB if keys else 4 * GB

    def reserved(budget: int | None, server: str = "") -> int:
        without = f"[memory]\nspare = false\n{server}"
        return three(keys, budget, before=without).state.ledger.reserved

    assert reserved(100 * GB) == reserved(None) == GATEWAY_BYTES + QUEUE_BYTES
    assert reserved(100 * GB, '[server]\nmax_queue_bytes = "1GB"\n') == GATEWAY_BYTES + GB
    assert reserved(needed + GB // 10) == GB // 10
    assert reserved(needed) == 0
    assert reserved(9 * GB) == 9 * GB // 20


def test_the_gateway_is_charged_for_what_it_keeps() -> None:
    assert GATEWAY_BYTES >= RUNNING_MAX + RESPONSES_MAX + 50 * 10**6


def test_a_budget_that_has_no_room_for_the_spare_alone(caplog: pytest.LogCaptureFixture) -> None:
    ledger = pool(parse(""), SPARE_BYTES - 1).state.ledger
    gateway = (SPARE_BYTES - 1) // 20
    assert (ledger.reserved, ledger.budget) == (gateway, SPARE_BYTES - 1 - gateway)
    assert "no spare worker: there is no room for it in the budget" in caplog.messages
    assert set(ledger.reservations) == {Reserved.GATEWAY}  # by which the supervisor has no spare


def test_without_a_spare_the_budget_is_the_models() -> None:
    ledger = pool(parse("[memory]\nspare = false\n"), 5 * GB).state.ledger
    assert (ledger.reserved, ledger.budget) == (5 * GB // 20, 5 * GB - 5 * GB // 20)
    assert set(ledger.reservations) == {Reserved.GATEWAY}


def test_thresholds() -> None:
    memory = parse("[memory]\nwarn = 0.5\nhigh = 0.6\ncritical = 0.7\n").memory
    assert build.thresholds(memory) == Thresholds(0.5, 0.6, 0.7)
    assert build.thresholds(parse("").memory) == Thresholds()


@pytest.mark.parametrize(
    ("written", "machine", "working_set", "budget"),
    [
        ("auto", MachineMemory(64 * GB), None, 48 * GB),
        ("auto", MachineMemory(128 * GB), 96 * GB, 96 * GB),
        ("auto", MachineMemory(), None, None),
        ("75%", MachineMemory(64 * GB), 10 * GB, 48 * GB),
        ("75%", MachineMemory(), None, None),
        ("96GB", MachineMemory(64 * GB), 10 * GB, 96 * GB),
        ("96GB", MachineMemory(), None, 96 * GB),
    ],
)
def test_the_budget(
    written: str, machine: MachineMemory, working_set: int | None, budget: int | None
) -> None:
    memory = parse(f'[memory]\nbudget = "{written}"\n').memory
    assert build.budget(memory, machine, working_set) == budget


def test_only_macos_gives_memory_back_late() -> None:
    assert build.release_rule("darwin") is ReleaseRule.WHEN_SEEN
    assert build.release_rule("linux") is ReleaseRule.AT_REAP


def test_a_kv_budget_holds_a_first_token(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("llama"))  # 256 tokens of 3,072 bytes in each of 8 layers

    def built(size: str) -> Pool:
        text = f'[models."a.b"]\nsource = "{tmp_path}"\nkv_budget = "{size}"\n'
        return pool(from_tree(tomllib.loads(text), environ={}, overrides=Overrides()))

    assert built("1MB")
    with pytest.raises(ConfigError, match=r'^models\."a\.b"\.kv_budget: 100 KB are too little'):
        built("100KB")


@pytest.mark.parametrize(
    ("budget", "expected"), [("auto", 6 * GB), ("50%", 4 * GB), ("9GB", 9 * GB)]
)
def test_what_a_control_group_allows_stands_for_the_ram(budget: str, expected: int) -> None:
    machine = MachineMemory(64 * GB, groups=(GroupMemory("/cg/memory.max", 8 * GB),))
    memory = parse(f'[memory]\nbudget = "{budget}"\n').memory
    assert build.budget(memory, machine, None) == expected
