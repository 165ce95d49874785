"""The settings as they can be written: the keys of `bulkhead.toml`, their types and defaults.

This is the whole public contract. A key that nothing reads yet is in `NOT_YET` and is refused, not
ignored; supporting it means deleting its line there.

Structs are frozen and hold only plain values, so that msgspec can send them to another process.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from supervisor.config.rules import (
    AutoSeconds,
    AutoSize,
    Budget,
    CacheSize,
    ConfigError,
    Count,
    Name,
    Patience,
    Port,
    Seconds,
    Share,
    Size,
    Source,
    Text,
    dotted,
    parse_percent,
    parse_size,
    quote,
)

NOT_YET: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "server.metrics": (False,),
        "models.*.prompt_cache": (),
        "models.*.python": ("",),
        "models.*.trust_remote_code": (False,),
        "models.*.draft": ("",),
        "models.*.adapter": ("",),
    }
)
"""Keys that nothing reads yet, with the values that say what this version does anyway."""


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[server]`: the listening socket and what every request obeys."""

    host: Text = "127.0.0.1"
    port: Port = 11435
    """0 = any free port."""
    api_keys_file: str = ""
    allowed_hosts: tuple[Text, ...] = (
        "localhost",
        "localhost.",
        "127.0.0.1",
        "::1",
        "host.docker.internal",
        "host.containers.internal",
    )
    """And this machine's own name under `.local`."""
    allowed_origins: tuple[Text, ...] = ()
    default_model: str = ""
    hold_seconds: Seconds = 240
    max_requests: Count = 0
    max_body: Size = "64MB"
    max_queue_bytes: Size = "256MB"
    metrics: bool = True

    @property
    def max_body_bytes(self) -> int:
        """`max_body` in bytes."""
        return parse_size(self.max_body)

    @property
    def queue_bytes(self) -> int:
        """`max_queue_bytes` in bytes."""
        return parse_size(self.max_queue_bytes)


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[memory]`: the ledger's budget, eviction, and the time limits of loads and drains."""

    budget: Budget = "auto"
    warn: Share = 0.85
    high: Share = 0.95
    critical: Share = 0.98
    keep: Count = 1
    max_loaded: Count = 0
    cleanup_interval: Seconds = 600
    policy: Literal["gdsf", "use_count", "lru"] = "gdsf"
    min_residency: AutoSeconds = "auto"
    max_wait: AutoSeconds = "auto"
    drain_seconds: Seconds = 120
    load_stall_seconds: Patience = 120
    load_gate: Literal["shared", "exclusive"] = "shared"
    load_gate_timeout: Seconds = 120
    spare: bool = True
    prefill_gate: bool = False

    def budget_bytes(self, physical: int) -> int | None:
        """`budget` in bytes on a machine with `physical` bytes of RAM; None = "auto"."""
        if self.budget.endswith("%"):
            return int(parse_percent(self.budget) * physical)
        return _auto_size(self.budget)


class RecoverySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[recovery]`: what happens to requests whose worker died, and to models that keep dying."""

    mode: Literal["resume", "replay", "off"] = "resume"
    max_recoveries: Count = 2
    stall_seconds: Patience = 60
    max_restarts: Count = 3
    restart_window: Patience = 60
    backoff_max: Seconds = 300


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[models.NAME]`: one model that can be served."""

    source: Source
    aliases: tuple[Name, ...] = ()
    preload: bool = False
    pin: bool = False
    ttl: Seconds = 0
    memory: AutoSize = "auto"
    max_concurrency: Count = 0
    max_queue: Count = 1024
    """Requests that may wait; 0 = none."""
    context: Count = 0
    kv_budget: AutoSize = "auto"
    prompt_cache: CacheSize = "auto"
    fallback: str = ""
    python: str = ""
    env: dict[str, str] = {}
    trust_remote_code: bool = False
    draft: str = ""
    adapter: str = ""

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes; None = "auto"."""
        return _auto_size(self.memory)

    @property
    def kv_budget_bytes(self) -> int | None:
        """`kv_budget` in bytes; None = "auto"."""
        return _auto_size(self.kv_budget)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that was configured.

    No `models` means that they are to be discovered: see `with_discovered`. Until then `preload`
    holds the names to load at once, as `--preload` or $MLX_PRELOAD_MODELS gave them; it is empty
    when `models` is not, because then the models themselves say it.
    """

    server: ServerSettings = ServerSettings()
    memory: MemorySettings = MemorySettings()
    recovery: RecoverySettings = RecoverySettings()
    models: dict[str, ModelSettings] = {}
    preload: tuple[Name, ...] = ()

    def names(self) -> dict[str, str]:
        """Every name and alias that a request may use, with the model it stands for.

        Raises ConfigError when one of them stands for two things, which `load` rules out.
        """
        owners = {name: name for name in self.models}
        for name, model in self.models.items():
            for i, alias in enumerate(model.aliases):
                if alias in owners:
                    where = f"{dotted('models', name)}.aliases[{i}]"
                    owner = dotted("models", owners[alias])
                    raise ConfigError(f"{where}: {quote(alias)} already stands for {owner}")
                owners[alias] = name
        return owners


def _auto_size(text: str) -> int | None:
    return None if text == "auto" else parse_size(text)
