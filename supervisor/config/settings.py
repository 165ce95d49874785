"""Frozen settings, read once from one TOML file, the environment and the flags of `serve`.

Flags go before the file, the file before environment variables. Whatever cannot be used raises
`ConfigError`, whose message begins with the key's dotted path; only the first problem is told:
types and ranges in the order of the file, then the rules between keys, then the names, then what
this version does not support yet.

The schema below is the whole public contract. A key that nothing reads yet is in `NOT_YET` and is
refused rather than ignored; supporting it means deleting its line there.

Relative paths, of a model or a key file, start at the working directory; `~` is the home folder.
Structs hold only plain values, so msgspec can send a Config to another process.
"""

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from supervisor.config.files import (
    read_api_keys,
    read_toml,
    resolve_config_path,
    resolve_state_dir,
)
from supervisor.config.flags import Overrides, merge, parse_model_flag
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
    Reader,
    Seconds,
    Share,
    Size,
    Source,
    Text,
    dotted,
    is_name,
    nearest,
    parse_percent,
    parse_size,
    quote,
)

__all__ = [
    "NOT_YET",
    "Config",
    "ConfigError",
    "MemorySettings",
    "ModelSettings",
    "Overrides",
    "RecoverySettings",
    "ServerSettings",
    "from_tree",
    "load",
    "parse_model_flag",
    "parse_size",
    "read_api_keys",
    "resolve_config_path",
    "resolve_state_dir",
    "validate_names",
    "with_discovered",
]

NOT_YET: Final[Mapping[str, tuple[object, ...]]] = MappingProxyType(
    {
        "server.metrics": (False,),
        "models.*.kv_budget": (),
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
    allowed_hosts: tuple[Text, ...] = ("localhost", "127.0.0.1", "::1")
    allowed_origins: tuple[Text, ...] = ()
    default_model: str = ""
    hold_seconds: Seconds = 240
    max_requests: Count = 0
    max_body: Size = "64MB"
    metrics: bool = True

    @property
    def max_body_bytes(self) -> int:
        """`max_body` in bytes."""
        return parse_size(self.max_body)


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

    @property
    def prompt_cache_bytes(self) -> int | None:
        """`prompt_cache` in bytes; None = "auto"."""
        return _auto_size(self.prompt_cache)


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


def load(path: Path | None, *, environ: Mapping[str, str], overrides: Overrides) -> Config:
    """The settings of the file at `path` (None = no file), the environment and the flags.

    Blocks on one file read. Raises ConfigError. A Config without models has yet to go through
    `with_discovered`, which checks `default_model` and `preload`.
    """
    tree = read_toml(path) if path is not None else {}
    return from_tree(tree, environ=environ, overrides=overrides)


def from_tree(
    tree: Mapping[str, object], *, environ: Mapping[str, str], overrides: Overrides
) -> Config:
    """`load` for a file that tomllib has parsed into `tree`. Raises ConfigError alone."""
    merged, origins = merge(tree, environ, overrides)
    reader = Reader(origins)
    sections: dict[str, type[msgspec.Struct]] = {
        "server": ServerSettings,
        "memory": MemorySettings,
        "recovery": RecoverySettings,
    }
    parts: dict[str, Any] = {}
    for key, raw in merged.items():
        if key in sections:
            parts[key] = reader.table(sections[key], raw, key, key)
        elif key == "models":
            parts[key] = _models(reader, raw)
        else:
            homes = [s for s, cls in sections.items() if key in cls.__struct_fields__]
            hint = f" (did you mean {quote(f'{homes[0]}.{key}')}?)" if homes else ""
            known = (*sections, "models")
            raise ConfigError(f"{dotted('', key)}: unknown key{hint or nearest(key, known)}")
    config = Config(**parts)
    _check_between_keys(config)
    preload_is_written = any(given.rule == "models.*.preload" for given in reader.given)
    config = _with_preload(config, environ, overrides, preload_is_written)
    if config.models:
        validate_names(config, config.names())
    for given in reader.given:
        accepted = NOT_YET.get(given.rule)
        if accepted is not None and given.value not in accepted:
            raise ConfigError(f"{given.label}: not supported yet")
    return config


def with_discovered(config: Config, sources: Mapping[str, str]) -> Config:
    """`config` serving every name of `sources` from its source, unless it has models of its own.

    Raises ConfigError when `preload` or `server.default_model` names none of them.
    """
    if config.models:
        return config
    models = {name: ModelSettings(source=source) for name, source in sources.items()}
    wanted = config.preload
    config = msgspec.structs.replace(config, models=models, preload=())
    config = _preloading(config, wanted, "--preload or MLX_PRELOAD_MODELS")
    validate_names(config, config.names())
    return config


def validate_names(config: Config, served_names: Collection[str]) -> None:
    """Raises ConfigError unless `server.default_model` and every `fallback` are empty or among
    `served_names`.

    `load` has done so when models are configured, `with_discovered` when they are not.
    """
    name = config.server.default_model
    if name and name not in served_names:
        raise ConfigError(
            f"server.default_model: no model or alias is called {quote(name)}"
            f"{nearest(name, served_names)}"
        )
    for model, settings in config.models.items():
        other, path = settings.fallback, dotted("models", model)
        if other and other not in served_names:
            raise ConfigError(
                f"{path}.fallback: no model or alias is called {quote(other)}"
                f"{nearest(other, served_names)}"
            )
        if other and other in (model, *settings.aliases):
            raise ConfigError(f"{path}.fallback: {quote(other)} is this model itself")


def _models(reader: Reader, raw: object) -> dict[str, ModelSettings]:
    models = {}
    for name, table in reader.expect_table(raw, "models").items():
        path = dotted("models", name)
        if not is_name(name):
            raise ConfigError(
                f"{reader.label(path)}: a model's name is not empty and has no control characters "
                "or spaces around it"
            )
        models[name] = reader.table(ModelSettings, table, path, "models.*")
    return models


def _check_between_keys(config: Config) -> None:
    memory = config.memory
    for low, high in (("warn", "high"), ("high", "critical")):
        if getattr(memory, low) > getattr(memory, high):
            raise ConfigError(
                f"memory.{low}: {getattr(memory, low)} is above memory.{high} "
                f"({getattr(memory, high)})"
            )
    server = config.server
    if not server.api_keys_file and not _is_loopback(server.host):
        raise ConfigError(
            f"server.host: {quote(server.host)} can be reached from other machines, which needs "
            'API keys: set server.api_keys_file, or use "127.0.0.1"'
        )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _with_preload(
    config: Config, environ: Mapping[str, str], overrides: Overrides, written: bool
) -> Config:
    """`config` with the preloads of the flag, else, if the file is silent, of the environment."""
    wanted, origin = overrides.preload, "--preload"
    if not wanted and not written:
        names = environ.get("MLX_PRELOAD_MODELS", "").split(",")
        wanted, origin = tuple(name.strip() for name in names if name.strip()), "MLX_PRELOAD_MODELS"
    if config.models:
        return _preloading(config, wanted, origin)
    return msgspec.structs.replace(config, preload=tuple(dict.fromkeys(wanted)))


def _preloading(config: Config, wanted: Iterable[str], origin: str) -> Config:
    owners = config.names()
    models = dict(config.models)
    for name in wanted:
        if name not in owners:
            raise ConfigError(
                f"{origin}: no model or alias is called {quote(name)}{nearest(name, owners)}"
            )
        models[owners[name]] = msgspec.structs.replace(models[owners[name]], preload=True)
    return msgspec.structs.replace(config, models=models)


def _auto_size(text: str) -> int | None:
    return None if text == "auto" else parse_size(text)
