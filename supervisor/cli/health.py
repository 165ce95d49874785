"""What `/health` and `/admin` say, as far as commands show it. Servers of other versions may say
less."""

from __future__ import annotations

import msgspec


class Prefill(msgspec.Struct, frozen=True):
    """Prompt tokens, of all requests that have no token yet."""

    done_tokens: int = 0
    total_tokens: int = 0


class Loading(msgspec.Struct, frozen=True):
    """Of the weights."""

    done_bytes: int = 0
    total_bytes: int = 0


class Loaded(msgspec.Struct, frozen=True):
    """A model that is loading, ready or draining."""

    name: str
    state: str = ""
    generation: int = 0
    use_count: int = 0
    memory_bytes: int | None = None
    charge_bytes: int | None = None
    lent_bytes: int = 0
    """The part of the charge that was lent after the load."""
    in_flight: int = 0
    queued: int = 0
    tokens_per_second: float = 0.0
    prefill: Prefill | None = None
    loading: Loading | None = None
    stalled_seconds: float | None = None
    context: int | None = None
    pinned: bool = False
    deaths: int = 0


class Configured(msgspec.Struct, frozen=True):
    """A model that may be asked for."""

    name: str
    aliases: list[str] = []
    source: str = ""
    state: str = ""
    estimate: int | None = None
    measured: int | None = None
    charge_bytes: int | None = None
    lent_bytes: int = 0
    next_charge_bytes: int | None = None
    next_charge_source: str | None = None
    context: int | None = None
    queued: int = 0
    pinned: bool = False
    max_concurrency: int | None = None
    learned_limit: bool = False
    deaths: int = 0
    reason: str | None = None
    retry_seconds: float | None = None


class PassedOver(msgspec.Struct, frozen=True):
    """What was found on the disk and is not served."""

    source: str
    reason: str
    mlx: bool = True
    """Whether one would expect it to be served."""


class Memory(msgspec.Struct, frozen=True):
    budget_bytes: int | None = None
    charged_bytes: int = 0
    physical_bytes: int | None = None
    limited_by: str | None = None
    """The file of a control group's limit that stands for the RAM."""
    used_percent: float | None = None
    level: str | None = None
    stranded_bytes: int = 0
    advice: str | None = None
    spare: str = "off"
    counter: str = "off"


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str = ""
    memory: Memory | None = None
    """None where the server tells its status alone."""
    cached_models: list[Loaded] = []
    models: list[Configured] = []
    passed_over: list[PassedOver] = []
    reason: str | None = None
    """Why it is unavailable."""


class Managed(msgspec.Struct, frozen=True):
    """What a model has become that was loaded, unloaded, pinned or unpinned."""

    id: str
    state: str


class LoadEvent(msgspec.Struct, frozen=True):
    """An event, of which only those of loads are shown. `model`, and bytes, are of such a one."""

    event: str
    model: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
