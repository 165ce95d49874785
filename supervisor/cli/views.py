"""What `status` and `models` show: `/health` as lines. Pure.

A width of None is a pipe's, see `supervisor.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from supervisor.cli.health import Configured, Health, Loaded, Memory, Prefill
from supervisor.layout import Column, Room, Row, fold, one_line, table
from supervisor.models.discovery import told_of_others
from supervisor.units import gigabytes

_STATUS = (
    Column("model"),
    Column("state"),
    Column("memory", number=True),
    Column("charge", number=True),
    Column("running", number=True),
    Column("queued", number=True),
    Column("tok/s", number=True),
    Column("deaths", number=True),
    Column("lent", number=True, room=Room.IF_WIDE),
    Column("uses", number=True, room=Room.IF_WIDE),
    Column("context", number=True, room=Room.IF_WIDE),
)
_MODELS = (
    Column("model"),
    Column("aliases", room=Room.ELSE_BELOW),
    Column("state"),
    Column("charge", number=True),
    Column("basis"),
    Column("measured", number=True),
    Column("context", number=True),
    Column("source", room=Room.ELSE_BELOW),
)
_PASSED_OVER = (Column("passed over"),)
_STYLES = {
    "ready": "green",
    "stalled": "red",
    "failed": "red",
    "crashed": "red",
    "cold": "",
}
_UNDER_WAY = "yellow"
"""Of every other state."""
_WITH_PROCESS = frozenset({"loading", "ready", "draining", "stopping", "releasing"})
_TOKENS_EXACT = 10_000
"""Prompts below are told to the token."""


def status_lines(health: Health, width: int | None) -> list[Text]:
    """The machine, then a row for each model that has a process, waits, or cannot be served."""
    lines = [Text(line) for each in _machine(health) for line in fold(one_line(each), width)]
    if health.memory is None:
        return lines
    loaded = [_loaded(model, _of(health, model.name)) for model in health.cached_models]
    names = {model.name for model in health.cached_models}
    absent = [model for model in health.models if model.name not in names]
    rows = [*loaded, *(_absent(model) for model in absent if _matters(model))]
    if width is not None:
        lines.append(Text())
    if not health.cached_models:
        lines.append(Text("no model is loaded"))
    if rows:
        lines += table(_STATUS, rows, width)
    rest = len([model for model in absent if not _matters(model)])
    if rest:
        more = "more " if rows else ""
        lines += map(Text, fold(f"{rest} {more}can be loaded: `bulkhead models` lists them", width))
    return lines


def models_lines(health: Health, width: int | None) -> list[Text]:
    """A row for each model that may be asked for, and what was found and is not served."""
    lines = []
    if health.models:
        lines += table(_MODELS, [_configured(model) for model in health.models], width)
    else:
        reason = f": {health.reason}" if health.reason else ""
        lines += map(Text, fold(one_line(f"no model can be served{reason}"), width))
    if health.passed_over and width is not None:
        lines.append(Text())
    rows = [Row((each.source,), (each.reason,)) for each in health.passed_over if each.mlx]
    if rows:
        lines += table(_PASSED_OVER, rows, width)
    if others := [each.source for each in health.passed_over if not each.mlx]:
        lines += map(Text, fold(one_line(told_of_others(others)), width))
    return lines


def size(value: int | None) -> str:
    """Of bytes; "" for None and for nothing at all."""
    return gigabytes(value) if value else ""


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


def _machine(health: Health) -> Iterator[str]:
    memory = health.memory
    version = f", Bulkhead {health.version}" if health.version else ""
    others = ""
    if memory is not None:
        states = (("spare worker", memory.spare), ("counter", memory.counter))
        others = "".join(f", {name} {state}" for name, state in states if state != "off")
    reason = f": {health.reason}" if health.reason else ""
    yield f"{health.status}{version}{others}{reason}"
    if memory is None:
        return
    held = sum(model.memory_bytes or 0 for model in health.cached_models)
    budget = "" if memory.budget_bytes is None else f" of {gigabytes(memory.budget_bytes)}"
    yield f"models are charged {gigabytes(memory.charged_bytes)}{budget} and hold {gigabytes(held)}"
    yield from _ram(memory)
    if memory.stranded_bytes:
        advice = f": {memory.advice}" if memory.advice else ""
        yield f"{gigabytes(memory.stranded_bytes)} of dead workers are not back{advice}"


def _ram(memory: Memory) -> Iterator[str]:
    pressure = memory.level not in (None, "normal")
    told = f"memory pressure is {memory.level}" if pressure else ""
    if memory.physical_bytes is not None and memory.used_percent is not None:
        what = f"of {memory.limited_by}" if memory.limited_by else "RAM"
        used = f"{memory.used_percent:.0f} % of {gigabytes(memory.physical_bytes)} {what} in use"
        yield f"{used}, {told}" if told else used
    elif told:
        yield told


# ── the models ───────────────────────────────────────────────────────────────────────────────────


def _of(health: Health, name: str) -> Configured | None:
    return next((model for model in health.models if model.name == name), None)


def _loaded(model: Loaded, configured: Configured | None) -> Row:
    stalled = model.stalled_seconds is not None
    state = "stalled" if stalled else model.state
    rate = f"{model.tokens_per_second:.1f}" if model.tokens_per_second else ""
    cells = (
        f"{model.name}#{model.generation}",
        state,
        size(model.memory_bytes),
        size(model.charge_bytes),
        str(model.in_flight),
        str(model.queued),
        rate,
        str(model.deaths),
        size(model.lent_bytes),
        str(model.use_count),
        _count(model.context),
    )
    reason = None if configured is None else configured.reason
    return Row(cells, [*_doing(model), *([reason] if reason else [])], _style(state))


def _doing(model: Loaded) -> Iterator[str]:
    if model.stalled_seconds is not None:
        yield f"stalled for {model.stalled_seconds:.0f} s, and killed if it goes on"
    if model.loading is not None:
        done, total = model.loading.done_bytes, model.loading.total_bytes
        yield f"loading {gigabytes(done)} of {gigabytes(total)}"
    if model.prefill is not None and model.prefill.total_tokens:
        yield _prefilling(model.prefill)
    if model.pinned:
        yield "pinned"


def _prefilling(prefill: Prefill) -> str:
    done, total = prefill.done_tokens, prefill.total_tokens
    if total < _TOKENS_EXACT:
        return f"prefilling {done} of {total} tokens"
    shown = str(done) if done < 1000 else f"{done // 1000}k"
    return f"prefilling {shown} of {round(total / 1000)}k tokens"


def _matters(model: Configured) -> bool:
    """Whether a model that is not loaded has a row in `status` all the same."""
    return bool(model.state != "cold" or model.deaths or model.queued or model.reason)


def _absent(model: Configured) -> Row:
    cells = (
        model.name,
        model.state,
        "",
        size(model.charge_bytes),
        "",
        str(model.queued) if model.queued else "",
        "",
        str(model.deaths),
        size(model.lent_bytes),
        "",
        _count(model.context),
    )
    waits = ["waits to be loaded"] if model.queued and model.state == "cold" else []
    return Row(cells, [*waits, *_reasons(model)], _style(model.state))


def _reasons(model: Configured) -> Iterator[str]:
    if model.reason:
        yield model.reason
    if model.retry_seconds is not None:
        yield f"tries again in {model.retry_seconds:.0f} s"


def _configured(model: Configured) -> Row:
    charged = model.charge_bytes if model.state in _WITH_PROCESS else 0
    cells = (
        model.name,
        ", ".join(model.aliases),
        model.state,
        size(charged - model.lent_bytes if charged else model.next_charge_bytes),
        model.next_charge_source or "",
        size(model.measured),
        _count(model.context),
        "" if model.source == model.name else model.source,
    )
    notes = [*_reasons(model)]
    if model.learned_limit:
        notes.append(f"at most {model.max_concurrency} at once: it ran out of memory")
    if model.pinned:
        notes.append("pinned")
    return Row(cells, notes, _style(model.state))


def _count(value: int | None) -> str:
    return str(value) if value else ""


def _style(state: str) -> str:
    return _STYLES.get(state, _UNDER_WAY)
