"""Memory end to end: real supervisors, gateways and worker processes around scripted models."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.fakes.serve import MEMORY
from tests.helpers.serving import DEADLINE, Deadline, Server, gate, serving

GB = 10**9
PLAIN = Script(generations=())


def config_for(
    *folders: Path, server: str = "", memory: str = "", extra: str = 'memory = "1GB"'
) -> str:
    tables = "".join(
        f'[models.{folder.name}]\nsource = "{folder}"\n{extra}\n' for folder in folders
    )
    return f"[server]\nport = 0\n{server}\n[memory]\n{memory}\n{tables}"


def models(folder: Path, names: str) -> list[Path]:
    """One scripted model for each letter."""
    return [PLAIN.write(folder / name) for name in names]


def until(server: Server, *loaded: str) -> None:
    """Return once these models, and no others, are loaded."""
    deadline = Deadline()
    while (names := {entry["name"] for entry in server.health()["cached_models"]}) != set(loaded):
        deadline.check(f"{loaded} to be loaded, {names} are")


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


# ── five names, room for two ─────────────────────────────────────────────────────────────────────

CLIENTS, REQUESTS = 40, 200
HOLD = 120
"""Seconds that a request may wait, also on a machine that is busy with other tests."""


def test_forty_clients_over_five_models_with_room_for_two(tmp_path: Path) -> None:
    names = "abcde"
    config = config_for(
        *models(tmp_path, names),
        server=f"hold_seconds = {HOLD}",
        memory='budget = "2GB"\nmin_residency = 0.2\nmax_wait = 1',
    )
    with serving(tmp_path / "s", scripted=True, config=config) as server:

        def client(number: int) -> list[str]:
            choose = random.Random(number)
            told = []
            for _ in range(REQUESTS // CLIENTS):
                body = {
                    "model": choose.choice(names),
                    "messages": [{"role": "user", "content": "x"}],
                    "max_tokens": 4,
                    "stream": number % 2 == 0,
                }
                path = "/v1/chat/completions"
                answer = server.request("POST", path, body, seconds=2 * HOLD)
                told.append(f"{answer.status} {answer.text if answer.status == 200 else ''}")
            return told

        charges: list[int] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.01):
                health = server.health()
                charges.append(health["memory"]["charged_bytes"])
                cached = [entry["name"] for entry in health["cached_models"]]
                assert len(set(cached)) == len(cached)

        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            sampling = pool.submit(sample)
            try:
                answers = [text for told in pool.map(client, range(CLIENTS)) for text in told]
            finally:
                over.set()
            sampling.result(DEADLINE)

        # Answered 200 means within the hold: whoever waits longer gets 503.
        assert answers == [f"200 {text_of(4)}"] * REQUESTS
        assert 0 < max(charges) <= 2 * GB
        health = server.health()
        assert sum(model["deaths"] for model in health["models"]) == 0
        loads = living(server.log())
        assert all(len(alive) <= 2 for alive in loads)
        assert all(len({worker.split("#")[0] for worker in alive}) == len(alive) for alive in loads)
        assert len(loads) >= 2 * len(names)  # there was something to decide


def living(log: str) -> list[set[str]]:
    """The worker processes that lived after each spawn and each end, by the supervisor's log."""
    alive: set[str] = set()
    history = []
    for worker, what in re.findall(r"worker (\S+?)(?:, pid \d+,)? (spawned|ended)", log):
        alive = alive | {worker} if what == "spawned" else alive - {worker}
        history.append(alive)
    return history


def test_what_can_never_fit_is_refused_at_once_with_the_figures(tmp_path: Path) -> None:
    (large,) = models(tmp_path, "a")
    config = config_for(large, memory='budget = "4GB"', extra='memory = "5GB"')
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        answer = server.chat("a")
        assert error_of(answer) == (400, "model_too_large")
        assert answer.headers["x-should-retry"] == "false"
        for part in ("5.0 GB", "3.8 GB", "Lower the model's `memory`"):
            assert part in answer.json["error"]["message"]


def test_who_finds_no_room_is_told_who_has_it(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        busy = Script(gates={"decode": str(stop.path)}).write(tmp_path / "a")
        config = config_for(busy, *models(tmp_path, "b"), memory='budget = "1GB"\nmax_wait = 60')
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            running = server.stream("a", max_tokens=5)
            stop.arrived()
            body = {"model": "b", "messages": [{"role": "user", "content": "x"}]}
            patience = {"x-stainless-read-timeout": "0.5"}
            answer = server.request("POST", "/v1/chat/completions", body, patience)
            assert error_of(answer) == (503, "insufficient_memory_now")
            assert int(answer.headers["retry-after"]) >= 1
            stop.open()
            assert running.answer().text == text_of(5)


# ── pressure ─────────────────────────────────────────────────────────────────────────────────────


class Machine:
    """A machine on which the test sets how much RAM is in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.use(50)

    def use(self, percent: float) -> None:
        whole = self.path.with_suffix(".new")
        whole.write_text(json.dumps(percent))
        whole.replace(self.path)


@contextmanager
def pressed(tmp_path: Path, config: str) -> Iterator[tuple[Server, Machine]]:
    machine = Machine(tmp_path / "memory")
    environ = {MEMORY: str(machine.path)}
    with serving(tmp_path / "s", scripted=True, config=config, environ=environ) as server:
        yield server, machine


def level(server: Server, wanted: str) -> None:
    """Return once the pressure is that."""
    deadline = Deadline()
    while (now := server.health()["memory"]["level"]) != wanted:
        deadline.check(f"level {wanted}, it is {now}")


def test_warn_unloads_idle_models_down_to_keep(tmp_path: Path) -> None:
    config = config_for(*models(tmp_path, "abc"), memory='policy = "use_count"\nmin_residency = 0')
    with pressed(tmp_path, config) as (server, machine):
        for name, uses in (("a", 1), ("b", 3), ("c", 2)):
            for _ in range(uses):
                assert server.chat(name, max_tokens=2).status == 200
        until(server, "a", "b", "c")
        machine.use(90)
        until(server, "b")
        level(server, "warn")
        log = server.log()
        assert "memory pressure is warn: 90.0 of 100.0 GB RAM in use (90.0 %)" in log
        # Loads go on.
        assert server.chat("c", max_tokens=2).status == 200


def test_high_refuses_loads_and_shrinks_caches(tmp_path: Path) -> None:
    config = config_for(*models(tmp_path, "ab"), memory="keep = 2")
    with pressed(tmp_path, config) as (server, machine):
        assert server.chat("a", max_tokens=2).status == 200
        machine.use(96)
        level(server, "high")
        body = {"model": "b", "messages": [{"role": "user", "content": "x"}]}
        patience = {"x-stainless-read-timeout": "0.5"}
        answer = server.request("POST", "/v1/chat/completions", body, patience)
        assert error_of(answer) == (503, "memory_pressure")
        assert "96.0 %" in answer.json["error"]["message"]
        # What is loaded goes on serving, with smaller caches.
        assert server.chat("a", max_tokens=2).text == text_of(2)
        deadline = Deadline()
        while "caches are given back" not in server.worker_log("a"):
            deadline.check("the caches to shrink")


def test_critical_unloads_all_and_ends_what_runs(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        busy = Script(gates={"decode": str(stop.path)}).write(tmp_path / "a")
        config = config_for(
            busy, *models(tmp_path, "b"), memory="drain_seconds = 0.5", extra="pin = true"
        )
        with pressed(tmp_path, config) as (server, machine), ThreadPoolExecutor(1) as thread:
            assert server.request("POST", "/admin/models/a/load").status == 200
            body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
            short = {"x-stainless-read-timeout": "1"}  # it is parked, and waits no longer than that
            running = thread.submit(
                server.request, "POST", "/v1/chat/completions", body, headers=short
            )
            stop.arrived()
            assert server.chat("b", max_tokens=2).status == 200
            machine.use(99)
            answer = running.result(DEADLINE)
            assert error_of(answer) == (503, "memory_pressure")
            assert "retry-after" in answer.headers
            stop.open()
            until(server)
            level(server, "critical")
            machine.use(50)
            # The emergency is over after a calm while, and whoever waited is served.
            assert server.chat("b", max_tokens=2).text == text_of(2)
            assert {model["deaths"] for model in server.health()["models"]} == {0}


# ── the other levers ─────────────────────────────────────────────────────────────────────────────


def test_an_exclusive_load_waits_for_other_models_generations(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        busy = Script(gates={"decode": str(stop.path)}).write(tmp_path / "a")
        config = config_for(busy, *models(tmp_path, "b"), memory='load_gate = "exclusive"')
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            running = server.stream("a", max_tokens=5)
            stop.arrived()
            loading = server.stream("b", max_tokens=3)
            deadline = Deadline()
            while "the load of b waits for the generations of a#1 (1)" not in server.log():
                deadline.check("the load to wait")
            later = server.stream("a", max_tokens=2)
            server.wait_for("a", queued=1, in_flight=1)
            stop.open()
            assert running.answer().text == text_of(5)
            assert loading.answer().text == text_of(3)
            assert later.answer().text == text_of(2)
        log = server.log()
        assert log.index("worker b#1 spawned") > log.index("the load of b waits")


def test_an_exclusive_load_goes_on_after_a_while_and_says_so(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        busy = Script(gates={"decode": str(stop.path)}).write(tmp_path / "a")
        memory = 'load_gate = "exclusive"\nload_gate_timeout = 0.3'
        config = config_for(busy, *models(tmp_path, "b"), memory=memory)
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            running = server.stream("a", max_tokens=5)
            stop.arrived()
            assert server.chat("b", max_tokens=3).text == text_of(3)
            assert re.search(r"load of b waited \d+ s for the generations of a#1", server.log())
            stop.open()
            assert running.answer().text == text_of(5)


def test_an_idle_model_is_unloaded_after_its_time_to_live(tmp_path: Path) -> None:
    config = config_for(*models(tmp_path, "a"), extra="ttl = 0.5")
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert server.chat("a", max_tokens=2).status == 200
        until(server)
        assert "a#1 was idle for 0.5 s: unloaded" in server.log()
        assert server.chat("a", max_tokens=2).headers["x-bulkhead-worker"] == "a#2"


def test_ready_is_told_before_preloads_end(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        slow = Script(gates={"load": str(stop.path)}).write(tmp_path / "a")
        config = config_for(slow, extra="preload = true")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            stop.arrived()  # the ready line has been read, and the load has not ended
            assert server.loaded("a")["state"] == "loading"
            stop.open()
            assert server.chat("a", max_tokens=2).headers["x-bulkhead-worker"] == "a#1"


def test_a_pinned_model_stays_while_others_wait(tmp_path: Path) -> None:
    pinned, other = models(tmp_path, "ab")
    config = config_for(other, memory='budget = "1GB"') + (
        f'[models.a]\nsource = "{pinned}"\nmemory = "1GB"\npin = true\npreload = true\n'
    )
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        server.wait_for("a", state="ready")
        body = {"model": "b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        patience = {"x-stainless-read-timeout": "1"}
        answer = server.request("POST", "/v1/chat/completions", body, patience)
        assert error_of(answer) == (503, "insufficient_memory_now")
        assert server.request("POST", "/admin/models/a/unpin").status == 200
        assert server.chat("b", max_tokens=2).status == 200
        until(server, "b")


def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    config = config_for(*models(tmp_path, "a"), extra="")
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        (fresh,) = server.health()["models"]
        assert (fresh["estimate"], fresh["measured"]) == (None, None)
        for _ in range(3):
            assert server.chat("a", max_tokens=2).status == 200
        (first,) = server.health()["models"]
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        (known,) = server.health()["models"]
        assert known["measured"] == first["measured"] > 10**6
        assert server.chat("a", max_tokens=2).status == 200
        assert server.loaded("a")["use_count"] == 4
        (entry,) = json.loads((server.state / "sizes.json").read_text())["sizes"].values()
        assert entry["model"] == "a"


def test_the_three_variables(tmp_path: Path) -> None:
    environ = {
        "MLX_MAX_CACHED_MODELS": "1",
        "MLX_CACHE_CLEANUP_INTERVAL_SEC": "0",
        "MLX_PRELOAD_MODELS": "a",
    }
    config = config_for(*models(tmp_path, "ab"), memory="min_residency = 0")
    with serving(tmp_path / "s", scripted=True, config=config, environ=environ) as server:
        server.wait_for("a", state="ready")
        assert server.loaded("a")["use_count"] == 0
        # Room is made before a load, not after.
        assert server.chat("b", max_tokens=2).status == 200
        until(server, "b")
        assert all(len(alive) <= 1 for alive in living(server.log()))


# ── users' jq lines, on a real server ────────────────────────────────────────────────────────────

LINES = {
    "curl http://localhost:11435/ | jq '.cached_models'": "abc",
    "curl http://localhost:11435/health | jq '.cached_models'": "abc",
    "curl http://localhost:11435/ | jq '.cached_models | sort_by(.use_count) | reverse'": "bca",
}
"""Every one, and the order in which it must name the models."""
USES = {"a": 1, "b": 3, "c": 2}


def shell(line: str, server: Server) -> Any:
    """What the line prints for this server's port; jq in Python where it is not installed."""
    match = re.fullmatch(r"curl http://localhost:11435(/\w*) \| jq '(.*)'", line)
    assert match is not None
    body, expression = server.request("GET", match[1]).body, match[2]
    if shutil.which("jq"):
        done = subprocess.run(["jq", expression], input=body, capture_output=True, check=True)
        return json.loads(done.stdout)
    first, *then = expression.split(" | ")
    cached = json.loads(body)[first.removeprefix(".")]
    assert then in ([], ["sort_by(.use_count)", "reverse"])
    return sorted(cached, key=lambda model: model["use_count"])[::-1] if then else cached


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with three loaded models that were used so often."""
    folder = tmp_path_factory.mktemp("used")
    config = config_for(*models(folder, "abc"))
    with serving(folder / "s", scripted=True, config=config) as server:
        for name, uses in USES.items():
            for _ in range(uses):
                assert server.chat(name, max_tokens=2).status == 200
        yield server


@pytest.mark.parametrize("line", LINES)
def test_a_jq_line_of_seed_002(line: str, used: Server) -> None:
    cached = shell(line, used)
    assert [model["name"] for model in cached] == list(LINES[line])
    for model in cached:
        assert model["use_count"] == USES[model["name"]]
        assert model["load_time_seconds"] > 0
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", model["last_used"])
