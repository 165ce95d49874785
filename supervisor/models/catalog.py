"""Which models are served, and where their files are at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.schema import Config, ModelSettings
from supervisor.config.settings import with_discovered
from supervisor.models.sources import SourceError, discover, hub_dir, resolve

DEFAULT_CONCURRENCY = 32
"""Sequences that may decode at once where `max_concurrency` does not say."""
DEMO = "demo"
DEMO_DIR = Path(__file__).resolve().parents[2] / "worker" / "demo" / "model"

Fingerprint = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model that may be asked for, by name. It never changes. `hub` is the Hugging Face
    cache."""

    models: Mapping[str, ModelSettings]
    hub: Path

    def concurrency(self, name: str) -> int:
        """How many of its sequences may decode at once."""
        return self.models[name].max_concurrency or DEFAULT_CONCURRENCY

    def locate(self, name: str) -> Path:
        """The folder to load from, looked up anew, since files come and go. Blocks on the disk.
        Raises SourceError."""
        return resolve(self.models[name].source, demo_dir=DEMO_DIR, hub=self.hub)

    def fingerprint(self, name: str) -> Fingerprint:
        """Names, sizes and times of the model's files: it changes when they do. Blocks on the
        disk; never raises."""
        try:
            folder = self.locate(name)
            files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
            return tuple(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
        except (SourceError, OSError) as error:
            return (str(error),)


def build(config: Config, environ: Mapping[str, str]) -> tuple[Config, Catalog]:
    """The configured models; with none configured, `demo` and what the Hugging Face cache holds.

    Returns the configuration with its models filled in. Raises ConfigError when a preload or the
    default model names none of them.
    """
    hub = hub_dir(environ)
    if not config.models:
        config = with_discovered(config, {DEMO: DEMO} | {name: name for name in discover(hub)})
    return config, Catalog(config.models, hub)
