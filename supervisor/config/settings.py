"""Settings, read once from one TOML file, the environment and the flags of `serve`.

Flags go before the file, the file before environment variables. Whatever cannot be used raises
`ConfigError`, whose message begins with the key's dotted path. Only the first problem is reported:
types and ranges in the order of the file, then the rules between keys, then the names, then what
this version does not support yet.

Relative paths, of a model or a key file, start at the working directory; `~` is the home folder.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from supervisor.config.files import read_toml
from supervisor.config.flags import Overrides, merge
from supervisor.config.rules import (
    ConfigError,
    TableReader,
    dotted,
    is_name,
    nearest,
    quote,
)
from supervisor.config.schema import (
    NOT_YET,
    Config,
    MemorySettings,
    ModelSettings,
    RecoverySettings,
    ServerSettings,
)


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
    reader = TableReader(origins)
    sections: dict[str, type[msgspec.Struct]] = {
        "server": ServerSettings,
        "memory": MemorySettings,
        "recovery": RecoverySettings,
    }
    parts: dict[str, Any] = {}
    for section, raw in merged.items():
        if section in sections:
            parts[section] = reader.table(sections[section], raw, section, section)
        elif section == "models":
            parts[section] = _models(reader, raw)
        else:
            homes = [s for s, cls in sections.items() if section in cls.__struct_fields__]
            hint = f" (did you mean {quote(f'{homes[0]}.{section}')}?)" if homes else ""
            known = (*sections, "models")
            raise ConfigError(
                f"{dotted('', section)}: unknown key{hint or nearest(section, known)}"
            )
    config = Config(**parts)
    _check_between_keys(config)
    preload_is_written = any(key.rule == "models.*.preload" for key in reader.written)
    config = _with_preload(config, environ, overrides, preload_is_written)
    if config.models:
        _check_names(config)
    for key in reader.written:
        accepted = NOT_YET.get(key.rule)
        if accepted is not None and key.value not in accepted:
            raise ConfigError(f"{key.label}: not supported yet")
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
    _check_names(config)
    return config


def _check_names(config: Config) -> None:
    """Raises ConfigError unless `server.default_model` and every `fallback` are empty or names."""
    served_names = config.names()
    name = config.server.default_model
    if name and name not in served_names:
        raise _unknown_model("server.default_model", name, served_names)
    for model, settings in config.models.items():
        other, path = settings.fallback, dotted("models", model)
        if other and other not in served_names:
            raise _unknown_model(f"{path}.fallback", other, served_names)
        if other and other in (model, *settings.aliases):
            raise ConfigError(f"{path}.fallback: {quote(other)} is this model itself")


def _unknown_model(where: str, name: str, known: Iterable[str]) -> ConfigError:
    return ConfigError(f"{where}: no model or alias is called {quote(name)}{nearest(name, known)}")


def _models(reader: TableReader, raw: object) -> dict[str, ModelSettings]:
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
            raise _unknown_model(origin, name, owners)
        models[owners[name]] = msgspec.structs.replace(models[owners[name]], preload=True)
    return msgspec.structs.replace(config, models=models)
