"""The flags of `serve` and the environment variables, written into the file's tables.

Only what a table cannot hold is checked here: the merged tables go through the rules of a file.
"""

import re
from collections.abc import Mapping
from pathlib import PurePath

import msgspec

from supervisor.config.rules import ConfigError, dotted, quote

_PATHS = ("/", "./", "../", "~")
_SNAPSHOT = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/[^/]+/*$")
"""A folder of the Hugging Face cache, whose last part is a revision."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of `serve` that go before the file; None or empty = not given."""

    host: str | None = None
    port: int | None = None
    ram_budget: str | None = None
    models: tuple[tuple[str, str], ...] = ()
    """Of `--model NAME=SOURCE`: see `parse_model_flag`."""
    preload: tuple[str, ...] = ()


def parse_model_flag(text: str) -> tuple[str, str]:
    """Name and source of `--model NAME=SOURCE`, whose source may hold further `=`, or of a source
    alone: a repo's id and `demo` are their own names, a folder goes by its last part. ConfigError.
    """
    name, equals, source = text.partition("=")
    if not equals or text.startswith(_PATHS):
        name, source = _own_name(text), text
    if not (name and source):
        raise ConfigError(
            "--model: expected NAME=SOURCE, or ORG/NAME, the path of a folder or demo alone, got "
            f"{quote(text)}"
        )
    return name, source


def _own_name(source: str) -> str:
    """What a source is called that nobody has given a name; "" where there is no telling."""
    if source.startswith(_PATHS):
        if snapshot := _SNAPSHOT.search(source):
            return "/".join(snapshot.groups())
        return "" if PurePath(source).name in ("..", "~") else PurePath(source).name
    return source.rstrip("/") if source == "demo" or "/" in source.strip("/") else ""


def merge(
    tree: Mapping[str, object], environ: Mapping[str, str], overrides: Overrides
) -> tuple[dict[str, object], dict[str, str]]:
    """`tree` with flags and variables written into it, and the path → flag or variable of each."""
    merged = dict(tree)
    origins: dict[str, str] = {}

    def put(table: str, key: str, value: object, origin: str, *, if_silent: bool = False) -> None:
        section = merged.get(table, {})
        # A section of the wrong type is left for the reader to complain about.
        if isinstance(section, dict) and not (if_silent and key in section):
            merged[table] = {**section, key: value}
            origins[dotted(table, key)] = origin

    for key, variable in (
        ("max_loaded", "MLX_MAX_CACHED_MODELS"),
        ("cleanup_interval", "MLX_CACHE_CLEANUP_INTERVAL_SEC"),
    ):
        if text := environ.get(variable, "").strip():
            put("memory", key, _number(text), variable, if_silent=True)
    if overrides.host is not None:
        put("server", "host", overrides.host, "--host")
    if overrides.port is not None:
        put("server", "port", overrides.port, "--port")
    if overrides.ram_budget is not None:
        put("memory", "budget", overrides.ram_budget, "--ram-budget")
    flagged: set[str] = set()
    for name, source in overrides.models:
        if not _is_utf8(source):
            why = "is not UTF-8, and MLX opens no other; rename it"
            raise ConfigError(f"--model: {source!a} {why}")
        if name in flagged:
            raise ConfigError(f"--model: {quote(name)} is given twice")
        flagged.add(name)
        models = merged.get("models", {})
        model = models.get(name, {}) if isinstance(models, dict) else {}
        if isinstance(model, dict):
            put("models", name, {**model, "source": source}, "--model")
            origins[f"{dotted('models', name)}.source"] = "--model"
    return merged, origins


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(text: str) -> int | float | str:
    """What a variable's text would be in TOML; a text that is no number stays one."""
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[0-9]{1,18}\.[0-9]{1,18}", text, re.ASCII):
        return float(text)
    return text
