"""Published models as folders of headers: what mlx-lm's own classes would save for a published
configuration, without a byte of weights.

mlx is lazy: of arrays that nobody computes, the shapes are known and the memory is not there. The
files are sparse.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "published_models.json"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "uint32": "U32", "uint8": "U8"}


def published() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads(DATA.read_text())["models"]
    return models


def write_headers(folder: Path, entry: dict[str, Any]) -> None:
    """config.json as published and a safetensors file whose data is a hole."""
    import mlx.core as mx
    import mlx.nn
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.utils import _get_classes

    config = entry["config"]
    # The classes change what they are given.
    given = json.loads(json.dumps({**config, **entry.get("filled", {})}))
    model_class, args_class = _get_classes(config=given)
    model: Any = model_class(args_class.from_dict(given))
    dtype = getattr(mx, entry["dtype"])
    model.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    if quantize := entry.get("quantize"):
        layers: Any = mlx.nn
        layers.quantize(model, class_predicate=_predicate(model, quantize))
    flat: Any = tree_flatten(model.parameters())
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, array in flat:
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[str(array.dtype).removeprefix("mlx.core.")],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    write_safetensors(folder / "model.safetensors", header, end)
    (folder / "config.json").write_text(json.dumps(config))


def write_safetensors(path: Path, header: dict[str, Any], size: int) -> None:
    """A file with this header, and `size` bytes of data that take no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        os.truncate(file.fileno(), 8 + len(content) + size)


def _predicate(model: Any, quantize: dict[str, Any]) -> Any:
    """mlx-lm's own choice of layers, and for experts another format when `quantize` has one."""
    own = getattr(model, "quant_predicate", None)
    experts = quantize.get("experts")
    common = {name: value for name, value in quantize.items() if name != "experts"}

    def choose(path: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized"):
            return False
        if module.weight.shape[-1] % common["group_size"]:
            return False
        if experts and "experts" in path:
            return experts
        chosen = own(path, module) if own is not None else True
        return chosen if isinstance(chosen, dict) else (common if chosen else False)

    return choose
