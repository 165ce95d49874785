"""The served models as Ollama's clients list and describe them. Pure.

Everything comes from the supervisor's report, so that it can be told at once and without a worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.ollama.render import timestamp
from supervisor.wire.about import About

VERSION = "0.20.0"
"""Of Ollama, whose API this is: clients ask for 0.6.4 (VS Code), 0.13.4 (Codex) or 0.14 at least.
Not the newest, which has endpoints that are not here."""
FOR_EVER = "2318-01-01T00:00:00Z"
"""When a model goes that stays: a date all the same, far enough for clients to say "forever"."""
_THOUSANDS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_LOADED = ("ready", "draining", "loading")

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Served:
    """A model of the supervisor's report."""

    entry: Mapping[str, Any]
    """As `/health` lists it under `models`."""
    about: About

    @property
    def names(self) -> list[str]:
        """All that clients may send back. An alias is one more model, as a copy is at Ollama's."""
        return [self.entry["name"], *self.entry["aliases"]]

    @property
    def context(self) -> int:
        """In tokens; 0 = not known."""
        return int(self.entry["context"] or 0)

    @property
    def digest(self) -> str:
        """Of its files; of its name, as long as none were seen."""
        return self.about.digest or hashlib.sha256(self.entry["name"].encode()).hexdigest()

    @property
    def capabilities(self) -> list[str]:
        if self.about.embeds:
            return ["embedding"]
        able = {"tools": self.about.tools, "thinking": self.about.thinks}
        return ["completion", *(name for name, has in able.items() if has)]

    def listed(self, name: str) -> dict[str, Any]:
        """What lists have of it."""
        return {
            "name": name,
            "model": name,
            "size": self.about.size_bytes,
            "digest": self.digest,
            "details": self.details(),
        }

    def details(self) -> dict[str, Any]:
        family = self.about.architecture
        return {
            "parent_model": "",
            "format": "mlx",
            "family": family,
            "families": [family] if family else [],
            "parameter_size": _counted(self.about.parameters),
            "quantization_level": self.about.quantization,
        }


def served(report: bytes, files: bytes) -> list[Served]:
    """The models of a report and of the files that came with it."""
    known = msgspec.json.decode(files, type=dict[str, About])
    entries = msgspec.json.decode(report)["models"]
    return [Served(entry, known.get(entry["name"], About())) for entry in entries]


def render_tags(models: Sequence[Served]) -> bytes:
    """GET /api/tags"""
    listed = [
        {
            **model.listed(name),
            "modified_at": timestamp(model.about.modified),
            "capabilities": model.capabilities,
        }
        for model in models
        for name in model.names
    ]
    return _json({"models": listed})


def render_ps(report: bytes, models: Sequence[Served]) -> bytes:
    """GET /api/ps"""
    known = {model.entry["name"]: model for model in models}
    listed = []
    for loaded in msgspec.json.decode(report)["cached_models"]:
        model, name = known[loaded["name"]], loaded["name"]
        size = loaded["memory_bytes"] or loaded["charge_bytes"]
        listed.append(
            {
                **model.listed(name),
                "size": size,
                "size_vram": size,
                "expires_at": loaded["expires_at"] or FOR_EVER,
                "context_length": loaded["context"] or 0,
            }
        )
    return _json({"models": listed})


def render_show(model: Served, name: str) -> bytes:
    """POST /api/show"""
    about, family = model.about, model.about.architecture or "unknown"
    info: dict[str, Any] = {
        "general.architecture": family,
        "general.basename": name,
        "general.parameter_count": about.parameters,
        f"{family}.context_length": model.context,
        f"{family}.embedding_length": about.embedding_length,
        f"{family}.block_count": about.layers,
    }
    return _json(
        {
            "modelfile": f"# Served by Bulkhead from {model.entry['source']}\nFROM {name}\n",
            "parameters": "",
            "template": about.template,
            "details": model.details(),
            "model_info": {key: value for key, value in info.items() if value},
            "capabilities": model.capabilities,
            "modified_at": timestamp(about.modified),
        }
    )


def render_version(own: str) -> bytes:
    """GET /api/version, with Bulkhead's `own` beside it."""
    return _json({"version": VERSION, "bulkhead": own})


def wanted_name(raw: Mapping[str, Any]) -> object:
    """The model that a body is about; older clients call it `name`, and may leave `model` empty."""
    return raw.get("model") or raw.get("name", raw.get("model"))


def _counted(parameters: int) -> str:
    """Such as "7.6B"; "" = not known."""
    for size, letter in _THOUSANDS:
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}"
    return str(parameters) if parameters else ""
