"""supervisor.api.health: the object that `/health` shows, through a model's whole life."""

from __future__ import annotations

import json
import os
from datetime import datetime
from typing import Any

from supervisor.api.health import render_health
from supervisor.machine.readers import MachineMemory
from supervisor.processes.activity import Activity
from supervisor.scheduler.ledger import Reserved
from supervisor.scheduler.lifecycle import State
from supervisor.scheduler.loans import LoanNeeds
from supervisor.scheduler.model import LearnedLimit, Limits, ReleaseRule, Rules, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.pressure import GroupMemory
from supervisor.wire.crash import CrashBrief
from tests.helpers.pools import GB
from tests.unit.supervisor.crashes.test_store import report

OFFSET = 1_700_000_000.0
SOURCES = {"m": "org/repo", "n": "demo"}
CACHED = {
    "name",
    "state",
    "pid",
    "generation",
    "use_count",
    "last_used",
    "loaded_at",
    "load_time_seconds",
    "memory_bytes",
    "charge_bytes",
    "lent_bytes",
    "idle_bytes",
    "in_flight",
    "queued",
    "tokens_per_second",
    "prefill",
    "loading",
    "stalled_seconds",
    "context",
    "pinned",
    "expires_at",
    "deaths",
    "last_crash",
}


def make_pool() -> Pool:
    return Pool([Spec("m", ("alias",)), Spec("n")], limits=Limits())


def shown(
    pool: Pool,
    machine: MachineMemory | None = None,
    crashes: dict[str, CrashBrief] | None = None,
    **seen: Any,
) -> dict[str, Any]:
    machine = machine or MachineMemory(physical=16_000, used=6_800)
    last = (crashes or {}).get
    told = render_health(pool.state, SOURCES, machine, "ready", OFFSET, "1.2.3", last, **seen)
    body = json.loads(told)
    assert isinstance(body, dict)
    return body


def at(moment: str) -> float:
    parsed = datetime.fromisoformat(moment)
    assert parsed.tzinfo is not None
    return parsed.timestamp() - OFFSET


def test_a_fresh_server_shows_what_is_configured_and_nothing_loaded() -> None:
    body = shown(make_pool())
    assert body["status"] == "ok"
    assert body["version"] == "1.2.3"
    assert body["cached_models"] == []
    assert body["models"] == [
        {
            "name": "m",
            "aliases": ["alias"],
            "source": "org/repo",
            "state": "cold",
            "estimate": None,
            "measured": None,
            "charge_bytes": 0,
            "lent_bytes": 0,
            "next_charge_bytes": None,
            "next_charge_source": None,
            "context": None,
            "queued": 0,
            "pinned": False,
            "max_concurrency": None,
            "learned_limit": False,
            "deaths": 0,
            "last_crash": None,
            "reason": None,
            "retry_seconds": None,
        },
        {
            "name": "n",
            "aliases": [],
            "source": "demo",
            "state": "cold",
            "estimate": None,
            "measured": None,
            "charge_bytes": 0,
            "lent_bytes": 0,
            "next_charge_bytes": None,
            "next_charge_source": None,
            "context": None,
            "queued": 0,
            "pinned": False,
            "max_concurrency": None,
            "learned_limit": False,
            "deaths": 0,
            "last_crash": None,
            "reason": None,
            "retry_seconds": None,
        },
    ]
    assert body["memory"] == {
        "budget_bytes": None,
        "charged_bytes": 0,
        "reserved_bytes": 0,
        "physical_bytes": 16_000,
        "limited_by": None,
        "used_percent": 42.5,
        "level": "normal",
        "stranded_bytes": 0,
        "advice": None,
        "spare": "ready",
        "counter": "off",
    }


def test_what_was_learned_and_what_is_stranded_is_told() -> None:
    pool = Pool(
        [Spec("m", estimate_bytes=8 * GB, concurrency=32), Spec("n")],
        rules=Rules(release=ReleaseRule.WHEN_SEEN),
        budget=10 * GB,
    )
    pool.recall("m", 0, None, None, LearnedLimit(3, 0.0))
    pool.preload("m", 0.0)
    pool.ready("m", 1, 8 * GB, 4096, 1.0)
    pool.memory.footprint("m", 1, 8 * GB, 3.0)
    pool.exited("m", 1, "SIGKILL", 2.0)
    pool.memory.memory_seen(8 * GB, 3.0)
    pool.tick(20.0)
    body = shown(pool)
    assert [(m["max_concurrency"], m["learned_limit"]) for m in body["models"]] == [
        (3, True),
        (None, False),
    ]
    assert body["memory"]["stranded_bytes"] == 8 * GB
    assert body["memory"]["advice"].startswith("reboot needed")


def test_the_context_is_the_expected_one_until_a_worker_tells_it() -> None:
    pool = Pool([Spec("m")])

    def context() -> Any:
        return shown(pool, context={"m": 4096}.__getitem__)["models"][0]["context"]

    assert shown(pool)["models"][0]["context"] is None
    assert context() == 4096
    pool.preload("m", 0.0)
    assert context() == 4096
    pool.ready("m", 1, GB, 2048, 1.0)
    assert context() == 2048
    pool.exited("m", 1, "SIGKILL", 3.0)
    assert context() == 4096


def test_a_model_that_loads_is_shown_with_its_queue() -> None:
    pool = make_pool()
    pool.acquire("r1", "m", 60.0, 100.0)
    pool.acquire("r2", "m", 60.0, 101.0)
    pool.started("m", 1, 4321)
    (cached,) = shown(pool)["cached_models"]
    assert set(cached) == CACHED
    assert (cached["name"], cached["state"], cached["pid"]) == ("m", "loading", 4321)
    assert (cached["generation"], cached["queued"], cached["in_flight"]) == (1, 2, 0)
    assert (cached["loaded_at"], cached["load_time_seconds"]) == (None, None)
    assert cached["use_count"] == 2
    assert at(cached["last_used"]) == 101.0


def test_a_ready_model_is_shown_with_its_measures() -> None:
    pool = make_pool()
    lease, _ = pool.acquire("r1", "m", 60.0, 100.0)
    pool.ready("m", 1, 5000, 4096, 102.3456)
    body = shown(pool)
    (cached,) = body["cached_models"]
    assert (cached["state"], cached["in_flight"], cached["queued"]) == ("ready", 1, 0)
    assert cached["load_time_seconds"] == 2.346
    assert at(cached["loaded_at"]) == 102.0
    assert cached["memory_bytes"] == body["memory"]["charged_bytes"] == 5000
    assert cached["pinned"] is False
    pool.release(lease, 110.0)
    (cached,) = shown(pool)["cached_models"]
    assert cached["in_flight"] == 0
    assert at(cached["last_used"]) == 110.0


def test_memory_is_what_the_process_holds_now_and_its_charge_another_figure() -> None:
    pool = Pool(
        [Spec("m", estimate_bytes=8 * GB, headroom_bytes=3 * GB), Spec("n")], budget=10 * GB
    )
    held: dict[tuple[str, int], int] = {}

    def look() -> tuple[dict[str, Any], dict[str, Any]]:
        body = shown(pool, footprint=lambda *key: held.get(key))
        return body["cached_models"][0], body["models"][0]

    pool.preload("m", 0.0)
    held["m", 1] = 2 * GB  # half of it is loaded
    loading, model = look()
    assert (loading["memory_bytes"], loading["charge_bytes"]) == (2 * GB, 8 * GB)
    assert (model["charge_bytes"], model["next_charge_bytes"]) == (8 * GB, 8 * GB)
    assert (model["estimate"], model["measured"]) == (8 * GB, None)
    assert model["next_charge_source"] == "estimated"
    held.clear()
    pool.ready("m", 1, 4 * GB, 4096, 1.0)
    ready, model = look()  # no look at it since its load
    assert (ready["memory_bytes"], ready["charge_bytes"]) == (4 * GB, 7 * GB)
    assert (model["estimate"], model["measured"]) == (8 * GB, 4 * GB)
    assert (model["next_charge_bytes"], model["next_charge_source"]) == (7 * GB, "measured")
    held["m", 1] = 6 * GB  # requests have filled their caches
    ready, model = look()
    assert (ready["memory_bytes"], ready["charge_bytes"]) == (6 * GB, 7 * GB)
    assert model["measured"] == 4 * GB
    pool.unload("m", 2.0)
    assert shown(pool)["models"][0]["charge_bytes"] == 7 * GB  # while it stops
    pool.exited("m", 1, "exit status 0", 3.0)
    cold = shown(pool)["models"][0]
    assert (cold["charge_bytes"], cold["next_charge_bytes"], cold["measured"]) == (
        0,
        7 * GB,
        4 * GB,
    )


def test_what_is_lent_is_a_part_of_the_charge() -> None:
    pool = Pool([Spec("m", estimate_bytes=8 * GB, headroom_bytes=3 * GB), Spec("n")])
    pool.preload("m", 0.0)
    pool.ready("m", 1, 5 * GB, 4096, 1.0)
    pool.state.ledger.lend(("m", 1), 2 * GB)
    body = shown(pool)
    for told in (body["cached_models"][0], body["models"][0]):
        assert (told["charge_bytes"], told["lent_bytes"]) == (10 * GB, 2 * GB)
    assert body["models"][0]["next_charge_bytes"] == 8 * GB
    assert body["models"][1]["lent_bytes"] == 0


def test_a_configured_size_is_a_charge_and_no_estimate() -> None:
    pool = Pool([Spec("m", estimate_bytes=8 * GB, memory_bytes=5 * GB), Spec("n")])
    told = shown(pool)["models"][0]
    assert (told["estimate"], told["next_charge_bytes"]) == (8 * GB, 5 * GB)
    assert told["next_charge_source"] == "configured"


def test_what_a_worker_does_now_is_told() -> None:
    pool = Pool([Spec("m"), Spec("n")])
    pool.acquire("r1", "m", 60.0, 100.0)
    pool.loading("m", 1, 101.0, 300, 1200)
    body = shown(pool, context={"m": 8192, "n": 0}.__getitem__)
    assert body["cached_models"][0]["loading"] == {"done_bytes": 300, "total_bytes": 1200}
    assert [model["context"] for model in body["models"]] == [8192, None]
    pool.ready("m", 1, 5000, 4096, 102.0)
    does = {("m", 1): Activity(41.26, 8192, 12288, 7.04)}
    body = shown(pool, activity=lambda *key: does[key])
    (cached,) = body["cached_models"]
    assert cached["loading"] is None
    assert (cached["tokens_per_second"], cached["stalled_seconds"]) == (41.3, 7.0)
    assert cached["prefill"] == {"done_tokens": 8192, "total_tokens": 12288}
    assert cached["context"] == body["models"][0]["context"] == 4096  # what it has loaded
    (cached,) = shown(pool)["cached_models"]
    assert (cached["prefill"], cached["stalled_seconds"]) == (None, None)


def test_who_waits_for_a_model_without_a_worker_is_counted() -> None:
    pool = Pool([Spec("m", memory_bytes=GB), Spec("n", memory_bytes=GB)], budget=GB)
    pool.acquire("r1", "m", 60.0, 0.0)
    pool.acquire("r2", "n", 60.0, 1.0)
    body = shown(pool)
    assert [(model["state"], model["queued"]) for model in body["models"]] == [
        ("loading", 1),
        ("cold", 1),
    ]


def test_after_a_death_uses_and_deaths_stay_and_the_rest_goes() -> None:
    pool = make_pool()
    pool.acquire("r1", "m", 60.0, 100.0)
    pool.ready("m", 1, 5000, 4096, 102.0)
    pool.exited("m", 1, "SIGABRT", 103.0)
    body = shown(pool)
    assert body["cached_models"] == []
    assert body["memory"]["charged_bytes"] == 0
    pool.acquire("r2", "m", 60.0, 104.0)
    (cached,) = shown(pool)["cached_models"]
    assert (cached["generation"], cached["deaths"], cached["use_count"]) == (2, 1, 2)
    assert (cached["memory_bytes"], cached["loaded_at"]) == (0, None)


def test_the_last_crash_is_shown_of_every_model_that_had_one() -> None:
    pool = make_pool()
    pool.acquire("r1", "m", 60.0, 100.0)
    body = shown(pool, crashes={"m": report(7)})
    last = {"id": report(7).id, "cause": report(7).cause, "time": report(7).time}
    assert body["cached_models"][0]["last_crash"] == last
    assert [model["last_crash"] for model in body["models"]] == [last, None]


def test_a_failed_model_is_shown_with_its_reason() -> None:
    pool = make_pool()
    pool.preload("m", 0.0)
    pool.load_failed("m", 1, "no such file", 1.0)
    pool.exited("m", 1, "exit status 0", 2.0)
    body = shown(pool)
    assert (body["models"][0]["state"], body["models"][0]["reason"]) == ("failed", "no such file")
    assert (body["models"][1]["state"], body["models"][1]["reason"]) == ("cold", None)
    assert body["cached_models"] == []


def test_a_server_that_drains_says_so() -> None:
    pool = make_pool()
    pool.acquire("r1", "m", 60.0, 100.0)
    pool.ready("m", 1, 5000, 4096, 102.0)
    pool.shutdown(103.0)
    body = shown(pool)
    assert body["status"] == "shutting_down"
    assert body["cached_models"][0]["state"] == "draining"


def test_a_control_groups_limit_stands_for_the_ram() -> None:
    group = GroupMemory("/cg/memory.max", 8_000, 6_000)
    told = shown(make_pool(), MachineMemory(16_000, 6_800, groups=(group,)))["memory"]
    assert (told["physical_bytes"], told["used_percent"]) == (8_000, 75.0)
    assert told["limited_by"] == "/cg/memory.max"


def test_a_platform_that_tells_nothing_fails_nothing() -> None:
    told = shown(make_pool(), MachineMemory())["memory"]
    assert (told["physical_bytes"], told["used_percent"]) == (None, None)


def test_a_model_that_can_never_fit_is_shown_with_the_figures() -> None:
    pool = Pool([Spec("m", memory_bytes=5 * 10**9), Spec("n")], limits=Limits(), budget=4 * 10**9)
    large, small = shown(pool)["models"]
    assert large["reason"].startswith("needs 5.0 GB (configured), and all models together may use")
    assert small["reason"] is None


def test_a_model_that_keeps_dying_is_shown_as_unavailable() -> None:
    pool = Pool([Spec("m"), Spec("n")], limits=Limits())
    pool.models["m"].state = State.CRASHED
    pool.models["m"].crashed_until = 112.0
    dying, cold = shown(pool, now=100.5)["models"]
    assert "keeps dying" in dying["reason"]
    assert (dying["retry_seconds"], cold["retry_seconds"]) == (11.5, None)
    assert cold["reason"] is None


def test_what_the_spare_is_charged_is_part_of_the_budget() -> None:
    pool = Pool([Spec("m")], limits=Limits(), budget=1000)
    pool.state.ledger.reserve(Reserved.SPARE, 100)
    memory = shown(pool)["memory"]
    assert (memory["budget_bytes"], memory["charged_bytes"]) == (1000, 100)
    assert pool.state.ledger.free == 900


def test_what_the_cache_has_besides_is_told() -> None:
    passed: list[dict[str, object]] = [{"source": "a/b@c", "reason": "not complete", "mlx": True}]
    machine = MachineMemory(physical=16_000, used=6_800)
    body = render_health(
        make_pool().state, SOURCES, machine, "off", OFFSET, "1", passed_over=passed
    )
    assert json.loads(body)["passed_over"] == passed
    assert shown(make_pool())["passed_over"] == []


def test_a_reason_that_is_no_text_refuses_no_report() -> None:
    pool = make_pool()
    pool.acquire("r", "m", 60.0, 0.0)
    name = os.fsdecode(b"model-\xff.safetensors")
    pool.load_failed("m", 1, name, 1.0)
    pool.exited("m", 1, "exit status 0", 2.0)
    sources = {"m": os.fsdecode(b"/caf\xe9"), "n": "demo"}
    machine = MachineMemory(physical=16_000, used=6_800)
    body = json.loads(render_health(pool.state, sources, machine, "off", OFFSET, "1"))
    failed = body["models"][0]
    assert (failed["state"], failed["reason"]) == ("failed", "model-\\xff.safetensors")
    assert failed["source"] == "/caf\\xe9"
    assert body["models"][1]["source"] == "demo"


def test_when_a_model_goes_that_nobody_asks_for() -> None:
    pool = Pool([Spec("m", ttl=30.0), Spec("n", ttl=1e15)], limits=Limits())
    for name in ("m", "n"):
        lease, _ = pool.acquire("r", name, 60.0, 100.0)
        pool.ready(name, 1, GB, 4096, 101.0)
        if name == "m":
            (cached,) = shown(pool, now=105.0)["cached_models"]
            assert at(cached["expires_at"]) == 135.0  # it is in use, and would be from now on
        pool.release(lease, 110.0)
    told = [each["expires_at"] for each in shown(pool, now=120.0)["cached_models"]]
    assert at(told[0]) == 140.0
    assert told[1] is None  # in thirty million years


def test_a_loan_is_part_of_the_charge_and_idle_bytes_are_part_of_the_loan() -> None:
    pool = make_pool()
    pool.preload("m", 0.0)
    pool.ready("m", 1, 4 * GB, 4096, 1.0)
    assert shown(pool)["cached_models"][0]["lent_bytes"] == 0
    pool.memory.needs("m", 1, LoanNeeds(1, 2 * GB, 0.0), 2.0)
    pool.memory.needs("m", 1, LoanNeeds(idle=GB), 3.0)
    told = shown(pool)["cached_models"][0]
    assert (told["charge_bytes"], told["lent_bytes"], told["idle_bytes"]) == (6 * GB, 2 * GB, GB)
    pool.memory.repaid("m", 1, 2 * GB, 0, 4.0)
    told = shown(pool)["cached_models"][0]
    assert (told["charge_bytes"], told["lent_bytes"], told["idle_bytes"]) == (4 * GB, 0, 0)
