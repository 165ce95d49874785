"""supervisor.cli.views: what `status` and `models` say of a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from supervisor.cli.health import Health
from supervisor.cli.views import models_lines, status_lines
from supervisor.layout import one_line

GB = 10**9
LONG = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ"
MEMORY = {
    "budget_bytes": 19 * GB,
    "charged_bytes": 3 * GB,
    "physical_bytes": 25 * GB,
    "used_percent": 42.3,
    "level": "normal",
    "stranded_bytes": 0,
    "advice": None,
    "spare": "ready",
}


def test_the_process_that_counts_is_told_of_while_there_is_one() -> None:
    told = {**MEMORY, "spare": "off", "counter": "ready"}
    (line, *_) = status_lines(health(memory=told), None)
    assert line.plain == "ok, Bulkhead 1.2.3, counter ready"


def parse(answer: object) -> Health:
    return msgspec.convert(answer, Health)


def loaded(name: str = "m", **more: Any) -> dict[str, Any]:
    told = {
        "name": name,
        "state": "ready",
        "generation": 3,
        "use_count": 12,
        "memory_bytes": 2 * GB,
        "charge_bytes": 7 * GB,
        "in_flight": 2,
        "queued": 5,
        "tokens_per_second": 41.26,
        "context": 4096,
        "deaths": 1,
        "lent_bytes": 3 * GB,
    }
    return {**told, **more}


def configured(name: str = "m", **more: Any) -> dict[str, Any]:
    told = {"name": name, "source": name, "state": "cold", "next_charge_bytes": 8 * GB}
    return {**told, "next_charge_source": "estimated", "context": 32768, **more}


def health(*models: dict[str, Any], **more: Any) -> Health:
    """Of models that are loaded, if they have a generation, and others."""
    cached = [model for model in models if "generation" in model]
    known = [configured(model["name"], state=model["state"]) for model in cached]
    rest = [model for model in models if "generation" not in model]
    told = {"status": "ok", "version": "1.2.3", "memory": MEMORY}
    return parse({**told, "cached_models": cached, "models": [*known, *rest], **more})


def status(*models: dict[str, Any], width: int | None = 80, **more: Any) -> list[str]:
    return [line.plain for line in status_lines(health(*models, **more), width)]


def listed(*models: dict[str, Any], width: int | None = 80, **more: Any) -> list[str]:
    return [line.plain for line in models_lines(health(*models, **more), width)]


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The cells of a piped table by their rows' names."""
    return {line.split("\t")[0]: line.split("\t") for line in lines if "\t" in line}


def test_the_machine_comes_first_each_figure_with_its_meaning() -> None:
    assert status(loaded(), loaded("n"))[:3] == [
        "ok, Bulkhead 1.2.3, spare worker ready",
        "models are charged 3.0 GB of 19.0 GB and hold 4.0 GB",
        "42 % of 25.0 GB RAM in use",
    ]
    memory = {
        **MEMORY,
        "budget_bytes": None,
        "level": "high",
        "stranded_bytes": 2 * GB,
        "advice": "reboot needed",
        "spare": "off",
    }
    assert status(memory=memory)[:4] == [
        "ok, Bulkhead 1.2.3",
        "models are charged 3.0 GB and hold 0 MB",
        "42 % of 25.0 GB RAM in use, memory pressure is high",
        "2.0 GB of dead workers are not back: reboot needed",
    ]


def test_a_loaded_models_figures() -> None:
    head, mine = list(rows(status(loaded(), width=None)).values())
    assert dict(zip(head, mine, strict=True)) == {
        "model": "m#3",
        "state": "ready",
        "memory": "2.0 GB",
        "charge": "7.0 GB",
        "running": "2",
        "queued": "5",
        "tok/s": "41.3",
        "deaths": "1",
        "lent": "3.0 GB",
        "uses": "12",
        "context": "4096",
    }


@pytest.mark.parametrize(
    ("done", "total", "said"),
    [
        (8192, 12288, "prefilling 8k of 12k tokens"),
        (512, 12288, "prefilling 512 of 12k tokens"),
        (0, 12288, "prefilling 0 of 12k tokens"),
        (12200, 12288, "prefilling 12k of 12k tokens"),
        (1536, 3072, "prefilling 1536 of 3072 tokens"),
        (128_000, 131_072, "prefilling 128k of 131k tokens"),
    ],
)
def test_a_prefill(done: int, total: int, said: str) -> None:
    prefill = {"done_tokens": done, "total_tokens": total}
    assert f"  {said}" in status(loaded(prefill=prefill))
    assert f"m#3: {said}" in status(loaded(prefill=prefill), width=None)


def test_what_stands_still_is_stalled_and_since_when() -> None:
    told = status(loaded(stalled_seconds=12.4), width=None)
    assert rows(told)["m#3"][1] == "stalled"
    assert any(line.startswith("m#3: stalled for 12 s") for line in told)


def test_a_load() -> None:
    loading = {"done_bytes": 3 * GB, "total_bytes": 7 * GB}
    assert "  loading 3.0 GB of 7.0 GB" in status(loaded(state="loading", loading=loading))


def test_pinned_is_said() -> None:
    assert "  pinned" in status(loaded(pinned=True))
    assert "  pinned" in listed(configured(pinned=True))


def test_what_cannot_be_served_has_a_row_with_its_reason_below() -> None:
    failed = configured("bad", state="failed", reason="no such file")
    dies = configured("dies", state="crashed", reason="keeps dying", deaths=4, retry_seconds=12.4)
    large = configured("large", reason="needs 99 GB")
    told = status(failed, dies, large, configured("fine"), width=None)
    assert "no model is loaded" in told
    assert rows(told)["bad"][:3] == ["bad", "failed", "-"]
    assert rows(told)["dies"][7] == "4"
    for line in (
        "bad: no such file",
        "dies: keeps dying",
        "dies: tries again in 12 s",
        "large: needs 99 GB",
        "1 more can be loaded: `bulkhead models` lists them",
    ):
        assert line in told
    assert "fine" not in rows(told)


def test_who_waits_for_memory_and_who_gives_it_back_are_shown() -> None:
    waits = configured("waits", queued=3)
    stops = configured("stops", state="stopping", charge_bytes=7 * GB)
    told = rows(status(waits, stops, width=None))
    assert told["waits"][5] == "3"
    assert told["stops"][1:4] == ["stopping", "-", "7.0 GB"]


def test_what_can_be_served_and_what_it_is_charged() -> None:
    models = (
        configured("m", aliases=["a", "b"], source="org/repo", measured=4 * GB),
        configured(
            "n",
            state="ready",
            charge_bytes=9 * GB,
            lent_bytes=2 * GB,
            next_charge_source="measured",
        ),
        configured("u", next_charge_bytes=None, next_charge_source=None, context=None),
        configured("l", learned_limit=True, max_concurrency=3),
    )
    told = listed(*models, width=None)
    cells = rows(told)
    assert cells["m"] == ["m", "a, b", "cold", "8.0 GB", "estimated", "4.0 GB", "32768", "org/repo"]
    assert cells["n"][3:5] == ["7.0 GB", "measured"]
    assert cells["u"] == ["u", "-", "cold", "-", "-", "-", "-", "-"]
    assert "l: at most 3 at once: it ran out of memory" in told
    told = listed(configured("m", aliases=["a" * 30, "b"], source="s" * 70))
    assert told[2:] == [f"  aliases: {'a' * 30}, b", f"  source: {'s' * 70}"]


def test_what_was_passed_over_and_why() -> None:
    over = [{"source": "models--x--y", "reason": "this is GGUF: get an MLX build"}]
    assert listed(configured(), passed_over=over)[-3:] == [
        "passed over",
        "models--x--y",
        "  this is GGUF: get an MLX build",
    ]
    assert "models--x--y: this is GGUF: get an MLX build" in listed(passed_over=over, width=None)
    others = [{"source": f"x/{n}", "reason": "PyTorch", "mlx": False} for n in range(9)]
    assert listed(configured(), passed_over=others, width=None)[-1] == (
        "not MLX language models, and not offered: x/0, x/1, x/2, x/3, x/4, x/5, x/6, x/7, …"
    )
    assert listed() == ["no model can be served"]


@pytest.mark.parametrize("width", [None, 40, 80])
def test_no_name_and_no_reason_reaches_the_terminal_as_it_is(width: int | None) -> None:
    evil = "x\x1b[2J\ny"
    shown = loaded(evil, state=evil)
    bad = configured(evil + "2", state=evil, reason=evil, aliases=[evil], source=evil)
    over = [{"source": evil, "reason": evil}]
    memory = {**MEMORY, "level": evil, "spare": evil, "stranded_bytes": 1, "advice": evil}
    told = status(shown, bad, memory=memory, version=evil, width=width)
    for line in told + listed(shown, bad, passed_over=over, width=width):
        assert line.replace("\t", "").isprintable()


def test_at_80_columns_twelve_models_with_long_ids_and_reasons() -> None:
    reason = "model.safetensors cannot be read: permission denied. " * 3
    models = [loaded(f"{LONG}-{number}", memory_bytes=171 * GB) for number in range(6)]
    models += [configured(f"{LONG}-{n}", state="failed", reason=reason) for n in range(6, 12)]
    told = status(*models)
    assert max(map(len, told)) <= 80
    numbers = [line for line in told if line.strip().startswith("ready")]
    assert len(numbers) == 6
    assert len({line.index("171.0 GB") for line in numbers}) == 1
    joined = " ".join(" ".join(told).split())
    assert joined.count(one_line(reason)) == 6


def test_servers_that_say_less() -> None:
    """Another version, one without its supervisor, one that tells its status alone."""
    assert [line.plain for line in status_lines(parse({"status": "ok"}), 80)] == ["ok"]
    gone = parse({"status": "unavailable", "reason": "the server is restarting"})
    assert [line.plain for line in status_lines(gone, 80)] == [
        "unavailable: the server is restarting"
    ]
    assert [line.plain for line in models_lines(gone, 80)] == [
        "no model can be served: the server is restarting"
    ]
    old = parse({"status": "ok", "memory": {}, "cached_models": [{"name": "m"}], "models": []})
    assert "m#0" in "\n".join(line.plain for line in status_lines(old, 80))


def test_whoever_limits_the_memory_is_told() -> None:
    told = health(memory={**MEMORY, "limited_by": "/sys/fs/cgroup/memory.max"})
    lines = [line.plain for line in status_lines(told, None)]
    assert "42 % of 25.0 GB of /sys/fs/cgroup/memory.max in use" in lines
