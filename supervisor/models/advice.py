"""What a folder or a file is that mlx-lm can't load, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from supervisor.models.jsonfiles import Malformed, read_object

GET_MLX = (
    "get an MLX build of the model (many are at https://huggingface.co/mlx-community), or make "
    "one of the original safetensors weights with `mlx_lm.convert`"
)
_PYTORCH = (".bin", ".pt", ".pth", ".ckpt")
_FORMATS = (
    ((".gguf", ".ggml"), "this is GGUF, the format of llama.cpp, which mlx-lm does not load"),
    (_PYTORCH, "these are PyTorch weights; mlx-lm loads safetensors alone"),
    ((".onnx",), "this is ONNX, which mlx-lm does not load"),
    ((".mlmodel", ".mlpackage", ".mlmodelc"), "this is Core ML, which mlx-lm does not load"),
    ((".h5", ".msgpack", ".tflite", ".pb"), "these are weights of TensorFlow, Keras or Flax"),
    ((".npz",), "these are weights of an early MLX; mlx-lm loads safetensors alone"),
    ((".nemo", ".engine"), "this is a format of NVIDIA's, which mlx-lm does not load"),
)
_BASE_KEYS = ("base_model_name_or_path", "model")


def of_name(name: str) -> str | None:
    """Advice for a repo that isn't here, where its name alone tells that it would not help."""
    lowered = name.lower()
    if lowered.rpartition("/")[2] == "gguf" or "gguf" in lowered.replace("_", "-").split("-"):
        return f"its name says GGUF, which mlx-lm does not load: {GET_MLX}"
    return None


def of_file(path: Path) -> str:
    """What a file is that was given instead of a folder."""
    for endings, what in _FORMATS:
        if path.name.lower().endswith(endings):
            return f"{what}: {GET_MLX}"
    if path.name.lower().endswith(".safetensors"):
        return f"{path.name} is a file; name the folder that holds it and config.json"
    return f"{path} is a file, not a model folder"


def of_folder(folder: Path, names: Sequence[str]) -> str | None:
    """What a folder without weights for mlx-lm is, with what to do; None when nothing tells.
    `names` are those of all that is in it. Blocks on the disk; never raises."""
    visible = [name for name in names if not name.startswith(".")]
    if not visible:
        return f"the folder {folder} is empty: {GET_MLX}"
    if "adapter_config.json" in visible or "adapters.safetensors" in visible:
        return _adapter(folder)
    if "model_index.json" in visible:
        return "this is a pipeline for images (diffusers), not a language model"
    for endings, what in _FORMATS:
        if found := [name for name in visible if name.lower().endswith(endings)]:
            return f"{what} ({min(found)}): {GET_MLX}"
    if weights := [name for name in visible if name.lower().endswith(".safetensors")]:
        return (
            f"mlx-lm reads the files model*.safetensors alone, and there is only {min(weights)}: "
            f"rename it if it holds the whole model in Hugging Face's layout, or {GET_MLX}"
        )
    return _elsewhere(folder, visible)


def _adapter(folder: Path) -> str:
    base = ""
    try:
        config = read_object(folder / "adapter_config.json")
        base = next((str(config[key]) for key in _BASE_KEYS if config.get(key)), "")
    except (OSError, Malformed):
        pass  # the name of the model it belongs to is only a help
    of = f" of {base[:200]}" if base else ""
    return (
        f"this is a LoRA adapter{of}, not a model: merge it with `mlx_lm.fuse --model "
        f"{base[:200] or 'MODEL'} --adapter-path {folder}`, and serve the result"
    )


def _elsewhere(folder: Path, names: Sequence[str]) -> str | None:
    """The model may lie one folder deeper, or in a snapshot of a Hugging Face repo."""
    snapshots = folder / "snapshots"
    if "snapshots" in names and folder.name.startswith("models--"):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        return f"{folder} is a repo of the Hugging Face cache: name it as {repo!r} ({snapshots})"
    inner = [name for name in sorted(names) if os.path.isfile(folder / name / "config.json")]
    if inner:
        return f"there is no model in {folder} itself, but perhaps in {folder / inner[0]}"
    return None
