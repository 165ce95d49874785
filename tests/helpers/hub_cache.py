"""Fake Hugging Face caches and model folders, of small files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from supervisor.models.sources import resolve

LLAMA = {"model_type": "llama"}
QUANTIZED = {"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}}


def safetensors(header: dict[str, Any] | None = None) -> bytes:
    """A safetensors file without tensors; by default as mlx writes it."""
    text = json.dumps({"__metadata__": {"format": "mlx"}} if header is None else header).encode()
    return len(text).to_bytes(8, "little") + text


def plain_files(**changes: bytes | None) -> dict[str, bytes]:
    """The files of a small MLX model; `changes` by stem, None leaves one out."""
    files: dict[str, bytes | None] = {
        "config.json": json.dumps(LLAMA).encode(),
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors(),
    }
    for stem, data in changes.items():
        files[next(name for name in files if name.startswith(stem))] = data
    return {name: data for name, data in files.items() if data is not None}


def add_repo(
    hub: Path,
    repo: str,
    files: dict[str, bytes] | None = None,
    *,
    commit: str = "c0ffee",
    ref: str | None = "main",
    mtime: int = 1000,
) -> Path:
    """A repo laid out as huggingface_hub does, its snapshot last changed at `mtime`."""
    root = hub / ("models--" + repo.replace("/", "--"))
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for name, data in (plain_files() if files is None else files).items():
        blob = root / "blobs" / f"{commit}-{name}"
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    if ref is not None:
        path = root / "refs" / ref
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(commit)
    os.utime(snapshot, (mtime, mtime))
    return snapshot


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def find(source: str, hub: Path) -> Path:
    """The folder of a source, with that Hugging Face cache. Raises SourceError."""
    return resolve(source, demo_dir=Path("/shipped/demo"), hub=hub)
