"""What a model is, told from its files: kind, size, and what its chat template knows.

For clients that list and choose models. Nothing is decided by it: what can't be read is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from supervisor.models.estimate.facts import EstimateError, Facts
from supervisor.models.jsonfiles import Malformed, open_regular, read_object
from supervisor.wire.about import About

_TEMPLATE_MAX = 1_000_000
"""Bytes; the longest published ones have some ten thousand."""
_THOUGHTS = ("enable_thinking", "<think>", "reasoning_content", "reasoning_effort", "thinking")
_EMBEDDERS = ("modules.json", "1_Pooling")
"""What sentence-transformers, and nobody else, puts into a model's folder."""
_ITEM_NAMES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_SCALE_BITS = 32
"""Of a group's scale and bias, which MLX keeps beside its quantized weights."""


def about(folder: Path, fingerprint: Sequence[str], weights: int) -> About:
    """`fingerprint` is that of the folder's files, `weights` their bytes in memory, 0 = unknown.
    Blocks on the disk. Never raises."""
    try:
        config = Facts(read_object(folder / "config.json"))
    except (OSError, Malformed):
        config = Facts({})
    text = config.merged("text_config")
    size, modified, embeds = _files(folder)
    name, bits = _precision(config)
    template, every = _templates(folder)
    return About(
        size_bytes=size,
        modified=modified,
        digest=hashlib.sha256("\n".join(fingerprint).encode("utf-8", "replace")).hexdigest(),
        architecture=config.text("model_type") or text.text("model_type"),
        parameters=int(weights * 8 / bits),
        quantization=name,
        embedding_length=_number(text, "hidden_size", "n_embd", "d_model"),
        layers=_number(text, "num_hidden_layers", "n_layers", "n_layer", "num_layers"),
        embeds=embeds or "embed" in folder.name.lower(),
        template=template,
        tools="tools" in every,
        thinks=any(word in every for word in _THOUGHTS),
    )


def _files(folder: Path) -> tuple[int, float, bool]:
    """Bytes of all files, when the newest has changed, whether they are an embedding model's."""
    size, modified, embeds = 0, 0.0, False
    try:
        for file in folder.iterdir():
            embeds = embeds or file.name in _EMBEDDERS
            if file.is_file():
                stat = file.stat()
                size, modified = size + stat.st_size, max(modified, stat.st_mtime)
    except OSError:
        pass  # what was there is told
    return size, modified, embeds


def _precision(config: Facts) -> tuple[str, float]:
    """How numbers are stored, by name and in bits for each."""
    quantization = config.table("quantization") or config.table("quantization_config")
    if quantization is not None and (bits := _number(quantization, "bits")):
        group = _number(quantization, "group_size") or 64
        return f"{bits}bit", bits + _SCALE_BITS / group
    stored = config.text("torch_dtype") or config.text("dtype")
    return _ITEM_NAMES.get(stored, stored), 32.0 if stored == "float32" else 16.0


def _number(facts: Facts, *names: str) -> int:
    try:
        return facts.integer(*names, default=0)
    except EstimateError:
        return 0


def _templates(folder: Path) -> tuple[str, str]:
    """The chat template, where transformers looks for it; and the texts of all that there are: some
    models have one more, for tools."""
    try:
        with open_regular(folder / "chat_template.jinja") as file:
            text = file.read(_TEMPLATE_MAX).decode("utf-8", "replace")
            return text, text
    except (OSError, Malformed):
        pass  # it has the older form
    for name in ("tokenizer_config.json", "chat_template.json"):
        try:
            found = read_object(folder / name).get("chat_template")
        except (OSError, Malformed):
            continue
        if isinstance(found, str):
            return found[:_TEMPLATE_MAX], found
        if isinstance(found, list):
            named = {
                each.get("name"): each["template"]
                for each in found
                if isinstance(each, dict) and isinstance(each.get("template"), str)
            }
            return str(named.get("default", ""))[:_TEMPLATE_MAX], "\n".join(named.values())
    return "", ""
