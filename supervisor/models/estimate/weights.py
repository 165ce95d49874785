"""Bytes of weights, from safetensors headers alone.

A header's `data_offsets` are what MLX will allocate, since mlx-lm loads every array as it is
stored, except FP8: see `loaded_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.models.estimate.facts import EstimateError, Facts
from supervisor.models.jsonfiles import Malformed, read_header
from supervisor.wire.text import reason

MAX_FILES = 2_000
"""The largest published models have under 200 shards."""
ITEM_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
DROPPED = frozenset(
    {
        "vision_tower",
        "vision_model",
        "vision_embedder",
        "visual",
        "multi_modal_projector",
        "audio_tower",
        "embed_audio",
        "embed_vision",
    }
)
"""Parts of multimodal models that mlx-lm, which serves text, throws away before it reads them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header. `size` is its bytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model's weights take. `loaded` is in bytes.

    `item` and `state_item` are bytes per element: of what the layers hand on, and so of the KV
    cache, and of the first Mamba's recurrent state, whose A_log is often kept in float32.
    """

    loaded: int
    item: int
    state_item: int


def read_weights(folder: Path, config: Facts) -> Weights:
    """The weights that mlx-lm loads from `folder`: `model*.safetensors`.

    Blocks on one short read a file. Raises EstimateError for files that are missing, cut short or
    no safetensors.
    """
    try:
        files = sorted(folder.glob("model*.safetensors"))
    except OSError as error:
        raise EstimateError(f"{folder} cannot be read: {reason(error)}") from None
    if not files:
        raise EstimateError(f"{folder} has no model*.safetensors")
    if len(files) > MAX_FILES:
        raise EstimateError(f"{folder} has {len(files)} files of weights")
    packed_fp8 = _is_packed_fp8(config)
    loaded = state_item = 0
    items: dict[str, int] = {}
    for tensor in (tensor for file in files for tensor in tensors(file)):
        if DROPPED.isdisjoint(tensor.name.split(".")):
            loaded += loaded_bytes(tensor, packed_fp8=packed_fp8)
            item = ITEM_BYTES.get(tensor.dtype, 0)
            if tensor.name.endswith("A_log"):
                state_item = max(state_item, item)
            elif len(tensor.shape) > 1 and item:
                # Router weights and the like may be float32; what most elements have counts.
                items[tensor.dtype] = items.get(tensor.dtype, 0) + tensor.size
    widest = ITEM_BYTES[max(items, key=lambda dtype: items[dtype])] if items else 2
    return Weights(loaded, widest, max(state_item, widest))


def loaded_bytes(tensor: Tensor, *, packed_fp8: bool) -> int:
    """Bytes of `tensor` in memory: mlx-lm turns FP8 into bfloat16, twice its size, unless its
    scales are such that MLX can compute with the packed values."""
    fp8 = tensor.dtype.startswith("F8_") and not tensor.dtype.startswith("F8_E8M0")
    return tensor.size * 2 if fp8 and not packed_fp8 else tensor.size


def tensors(path: Path) -> Iterator[Tensor]:
    """Every tensor in the header of the safetensors file at `path`. Raises EstimateError."""
    try:
        header, room = read_header(path)
    except OSError as error:
        raise EstimateError(f"{path} cannot be read: {reason(error)}") from None
    except Malformed as error:
        raise EstimateError(f"{path} {error}") from None
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(path, name, entry, room)


def _tensor(path: Path, name: str, entry: object, room: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            sides = [side for side in shape if isinstance(side, int) and side >= 0]
            if 0 <= start <= end and len(sides) == len(shape):
                if end > room:
                    raise EstimateError(f"{path} is cut short: {name} ends beyond the file")
                return Tensor(name, dtype, tuple(sides), end - start)
    raise EstimateError(f"{path} has a header that is broken at {name[:80]!r}")


def _is_packed_fp8(config: Facts) -> bool:
    """mlx-lm's own rule: power-of-two scales over 32 x 32 blocks are MLX's mxfp8."""
    method = config.table("quantization_config")
    if method is None:
        return False
    blocks = method.items("weight_block_size")
    return method.text("quant_method") == "mxfp8" or (
        blocks is not None and list(blocks) == [32, 32] and method.text("scale_fmt") == "ue8m0"
    )
