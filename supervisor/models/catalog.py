"""Which models are served, and where their files are at this moment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.schema import Config, ModelSettings
from supervisor.config.settings import with_discovered
from supervisor.models.discovery import PassedOver, discover
from supervisor.models.hub import hub_dir
from supervisor.models.sources import Place, find, state

DEFAULT_CONCURRENCY = 64
"""Sequences that may decode at once where `max_concurrency` does not say, if there is KV cache to
be had for them."""
DEMO = "demo"
DEMO_DIR = Path(__file__).resolve().parents[2] / "worker" / "demo" / "model"

Fingerprint = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model that may be asked for, by name. It never changes. `hub` is the Hugging Face
    cache; `passed_over` what it has besides, where nothing was configured."""

    models: Mapping[str, ModelSettings]
    hub: Path
    passed_over: tuple[PassedOver, ...] = ()

    def tells_of(self, name: str) -> bool:
        """Whether `passed_over` says already which snapshot of the model is served, and why."""
        source = self.models[name].source
        return any(each.source.partition("@")[0] == source for each in self.passed_over)

    def concurrency(self, name: str) -> int:
        """How many of its sequences may decode at once."""
        return self.models[name].max_concurrency or DEFAULT_CONCURRENCY

    def find(self, name: str) -> Place:
        """Where to load from, looked up anew, since files come and go. Blocks on the disk. Raises
        SourceError."""
        return find(self.models[name].source, demo_dir=DEMO_DIR, hub=self.hub)

    def locate(self, name: str) -> Path:
        """`find`, the folder alone."""
        return self.find(name).folder

    def fingerprint(self, folder: Path) -> Fingerprint:
        """Names, sizes and times of the files in a model's folder: what a measurement of it belongs
        to. Blocks on the disk. Raises OSError."""
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.exists()]
        return tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)

    def stamp(self, name: str, folder: Path | None) -> Fingerprint:
        """What tells that `find` might say something else, or a load go another way: it changes
        with the files in the `folder` where they were found last, with who may read them, and with
        what else may be chosen. No file is read. Blocks on the disk; never raises."""
        told: list[str] = []
        source = self.models[name].source
        try:
            told += state(source, self.hub)
            for path in (folder, Path(os.path.expanduser(source)).absolute()):
                if path is not None and source and os.path.lexists(path):
                    told.append(_stamped(path, path.stat()))
                    if path.is_dir():
                        told += [_entry(file) for file in sorted(path.iterdir())]
        except (OSError, ValueError) as error:
            told.append(str(error))
        return tuple(told)


def _entry(path: Path) -> str:
    try:
        return _stamped(path, path.stat())
    except OSError as error:  # a link to nothing
        return str(error)


def _stamped(path: Path, stat: os.stat_result) -> str:
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_mode:o}"


def build(config: Config, environ: Mapping[str, str]) -> tuple[Config, Catalog]:
    """The configured models; with none configured, `demo` and what the Hugging Face cache holds.

    Returns the configuration with its models filled in. Raises ConfigError when a preload or the
    default model names none of them.
    """
    hub = hub_dir(environ)
    if config.models:
        return config, Catalog(config.models, hub)
    discovery = discover(hub)
    config = with_discovered(config, {DEMO: DEMO} | {name: name for name in discovery.found})
    return config, Catalog(config.models, hub, discovery.passed_over)
