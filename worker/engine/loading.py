"""Loading with mlx-lm's own loader, in steps that can be watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from worker.engine import mlx_lm_compat
from worker.engine.load_faults import told_of
from worker.engine.pooling import read_json
from worker.engine.sampling import Defaults
from worker.prompt.tokenizer import ModelTokenizer

_CHUNK_BYTES = 256 * 2**20
"""Weights read between two reports of progress: under a second from any disk."""
_CACHE_BYTES = 2 * 2**30
"""Freed buffers that MLX may keep. Its default on Metal is 1.5 × the working set: never given
back."""
_FALLBACK_CONTEXT = 32768
"""Tokens, for configurations that name no limit (state-space models)."""
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, with what its files say about it."""

    model: Any
    tokenizer: ModelTokenizer
    context: int
    defaults: Defaults
    answer_limit: int | None = None
    """Tokens of an answer, whatever a request says: generation_config.json's `max_answer_tokens`, a
    name of our own. What others write there, `max_new_tokens`, is a default of theirs and no
    bound."""


def load(folder: Path, context: int, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load `folder`. `context` in tokens caps the model's own, 0 = no cap.

    Raises Unloadable when no retry can help. Out of memory and I/O errors pass through: they end
    the process, and the next attempt may well succeed.
    """
    mlx_lm_compat.check()
    mx.set_cache_limit(_CACHE_BYTES)
    with told_of(folder):
        model, tokenizer, config = mlx_lm_compat.load_lazily(str(folder))
        for done, total in _materialize(model):
            progress(done, total)
        own = _context(config)
        sampling = _generation_config(folder)
        greedy = sampling.get("do_sample") is False
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            context=min(context, own) if context else own,
            defaults=Defaults(
                temperature=0.0 if greedy else _number(sampling.get("temperature"), 1.0),
                top_p=_number(sampling.get("top_p"), 1.0),
                top_k=int(_number(sampling.get("top_k"), 0)),
                min_p=_number(sampling.get("min_p"), 0.0),
                repetition_penalty=_number(sampling.get("repetition_penalty"), 1.0),
            ),
            answer_limit=_count(sampling.get("max_answer_tokens")),
        )


def _materialize(model: Any) -> Iterator[tuple[int, int]]:
    """Read the lazy weights chunk by chunk, yielding (bytes done, bytes in all)."""
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(model.parameters())
    arrays: list[mx.array] = [array for _, array in flat]
    total = sum(array.nbytes for array in arrays)
    done = pending = 0
    chunk: list[mx.array] = []
    for array in arrays:
        chunk.append(array)
        pending += array.nbytes
        if pending >= _CHUNK_BYTES:
            mx.eval(chunk)
            done, pending, chunk = done + pending, 0, []
            yield done, total
    mx.eval(chunk)
    yield total, total


def _context(config: dict[str, Any]) -> int:
    for table in (config, config.get("text_config") or {}):
        for key in _CONTEXT_KEYS:
            value = table.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return _FALLBACK_CONTEXT


def _generation_config(folder: Path) -> dict[str, Any]:
    """The sampling defaults that the model's makers ship; nothing when the file is absent or bad:
    mlx-lm treats it as optional too."""
    content = read_json(folder / "generation_config.json")
    return content if isinstance(content, dict) else {}


def _count(value: object) -> int | None:
    usable = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if usable else None  # type: ignore[return-value]


def _number(value: object, default: float) -> float:
    usable = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if usable else default  # type: ignore[arg-type]
