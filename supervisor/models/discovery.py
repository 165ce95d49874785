"""The MLX models in a Hugging Face cache, and what of it is not offered and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.models.advice import GET_MLX
from supervisor.models.folders import WEIGHTS
from supervisor.models.hub import REPO, choose
from supervisor.models.jsonfiles import read_header, read_object
from supervisor.wire.text import reason

log = logging.getLogger("bulkhead.supervisor")

_NAMES = 8
"""Of other programs' models that are told."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A model in the cache that is not served, or not in its newest form."""

    source: str
    reason: str
    is_mlx: bool = True
    """Whether it is of the kind that would be served; other programs' models are no surprise."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """`found` is repo id → snapshot folder; both are sorted by repo id."""

    found: Mapping[str, Path]
    passed_over: tuple[PassedOver, ...] = ()


def discover(hub: Path) -> Discovery:
    """Every MLX language model in `hub` that can be loaded, and what was passed over.

    MLX means: saved by mlx (the safetensors header says so), quantized by mlx-lm (config.json
    says so), or published by mlx-community. Repos without `model_type` or a tokenizer (diffusion,
    speech) are none. Blocks on the disk, milliseconds a repo. Never raises.
    """
    found: dict[str, Path] = {}
    passed: list[PassedOver] = []
    try:
        repos = sorted(hub.glob("models--*"))
    except OSError as error:
        return Discovery({}, (PassedOver(str(hub), f"it cannot be read: {reason(error)}"),))
    for repo in repos:
        name = repo.name.removeprefix("models--").replace("--", "/")
        match = REPO.fullmatch(name)
        if match is None or match["repo"] != name:
            continue  # nothing of huggingface_hub's
        try:
            if not repo.is_dir():
                continue
            folder, told = _look(name, repo)
        except (OSError, ValueError) as error:
            folder, told = None, PassedOver(name, f"it cannot be read: {reason(error)}")
        if folder is not None:
            found[name] = folder
        if told is not None:
            passed.append(told)
    return Discovery(found, tuple(passed))


def log_passed_over(passed: Sequence[PassedOver]) -> None:
    """Each model that its owner may miss; the names of the others in one line."""
    for each in passed:
        if each.is_mlx:
            log.warning("passed over %s: %s", each.source, each.reason)
    if others := [each.source for each in passed if not each.is_mlx]:
        log.info("%s", told_of_others(others))


def told_of_others(sources: Sequence[str]) -> str:
    """The models of other programs in one line, for people."""
    more = ", …" if len(sources) > _NAMES else ""
    return f"not MLX language models, and not offered: {', '.join(sources[:_NAMES])}{more}"


def _look(name: str, repo: Path) -> tuple[Path | None, PassedOver | None]:
    """The snapshot to serve, and what there is to say. Raises OSError, Malformed."""
    choice = choose(repo)
    if choice is None:
        return None, None  # its folders alone, as a refused download leaves them
    folder, fault = choice.folder, choice.problem
    download = f"run `hf download {name}`"
    if fault is not None:
        cure = f"; {download}" if fault.is_incomplete else ""
        missed = fault.is_incomplete and _may_be_mlx(name, folder)
        return None, PassedOver(name, fault.text + cure, missed)
    if (kind := _foreign(name, folder)) is not None:
        return None, PassedOver(name, kind, is_mlx=False)
    if choice.passed is not None:
        told = f"{choice.passed_why}; {folder.name} is served instead; {download}"
        return folder, PassedOver(f"{name}@{choice.passed.name}", told)
    if choice.doubt:
        return None, PassedOver(name, f"{choice.doubt}; {download}")
    return folder, None


def _may_be_mlx(name: str, folder: Path) -> bool:
    """Of a model whose files are missing or broken: whether its owner would miss it here."""
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):
        return "mlx" in name.lower()
    named = isinstance(config.get("model_type"), str)
    return named and ("mlx" in name.lower() or isinstance(config.get("quantization"), dict))


def _foreign(name: str, folder: Path) -> str | None:
    """What a folder is that is no MLX language model; None for one that is. Raises OSError,
    Malformed."""
    if (folder / "model_index.json").is_file():
        return "a pipeline for images (diffusers), not a language model"
    config = read_object(folder / "config.json")
    if not (isinstance(config.get("model_type"), str) and config["model_type"]):
        return "config.json names no model_type, so it is no language model for mlx-lm"
    has_tokenizer = any((folder / file).is_file() for file in _TOKENIZERS)
    if not (has_tokenizer or any(folder.glob("*.tiktoken"))):
        return "it has no tokenizer, so it is no language model for mlx-lm"
    if name.startswith("mlx-community/"):
        return None
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys():
        return None
    weights = [path for path in folder.glob(WEIGHTS) if path.is_file()]
    metadata = read_header(min(weights))[0].get("__metadata__") if weights else None
    if isinstance(metadata, dict) and metadata.get("format") == "mlx":
        return None
    return f"not converted for MLX: name it under [models] to serve it as it is, or {GET_MLX}"
