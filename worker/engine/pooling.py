"""What a folder's sentence-transformers files say about embeddings: whether, and how to pool.
Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Pooling = Literal["last", "mean"]
_MODES: Mapping[str, Pooling] = {"lasttoken": "last", "mean": "mean", "mean_tokens": "mean"}
_MODE_FLAG = "pooling_mode_"


class NoEmbeddings(Exception):
    """No embeddings can be had from these files; the message says why."""


def pooling_of(folder: Path) -> Pooling:
    """How the model's makers pool. Raises NoEmbeddings."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        config = {}
    if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
        # mlx-lm would run it causally all the same, and the vectors would be worthless.
        raise NoEmbeddings("its attention looks both ways, which mlx-lm does not do")
    where = "1_Pooling"
    modules = read_json(folder / "modules.json")
    if isinstance(modules, list):
        poolings = []
        for module in modules:
            table = module if isinstance(module, dict) else {}
            kind = str(table.get("type", "")).rpartition(".")[2]
            if kind == "Pooling":
                poolings.append(str(table.get("path", where)))
            elif kind not in ("Transformer", "Normalize"):
                raise NoEmbeddings(
                    f'its files ask for the module "{kind[:50]}", which is not supported'
                )
        if len(poolings) != 1:
            raise NoEmbeddings("its modules.json does not name one pooling")
        where = poolings[0]
    pooling = read_json(folder / where / "config.json")
    if isinstance(pooling, dict):
        return _mode(pooling)
    if _is_bare_conversion(folder):
        return "last"
    raise NoEmbeddings(
        "it has no 1_Pooling/config.json, with which embedding models say how to pool (if it is a "
        "conversion of one, copy modules.json and 1_Pooling from the original)"
    )


def _mode(pooling: Mapping[str, Any]) -> Pooling:
    """The one mode that is on, in the files' older form (a flag for each) or newer (a name)."""
    named = pooling.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named if isinstance(named, list) else None
    if modes is None:
        flags = [key for key in pooling if key.startswith(_MODE_FLAG) and pooling[key] is True]
        modes = [key.removeprefix(_MODE_FLAG) for key in flags]
    if len(modes) == 1 and (known := _MODES.get(str(modes[0]))):
        return known
    asked = " and ".join(str(mode)[:30] for mode in modes[:3]) or "nothing"
    raise NoEmbeddings(f"its files ask for {asked} as pooling; lasttoken and mean are supported")


def _is_bare_conversion(folder: Path) -> bool:
    """Whether this is an embedding model that lost its pooling on the way through mlx-lm's
    converter, which copies no sentence-transformers files.

    Two signs together: it is called so, and its tokenizer ends each text with a special token, for
    which only pooling on that token has any use.
    """
    if "embed" not in str(folder).lower():
        return False
    tokenizer = read_json(folder / "tokenizer.json")
    post = tokenizer.get("post_processor") if isinstance(tokenizer, dict) else None
    stages = post.get("processors", [post]) if isinstance(post, dict) else []
    for stage in stages:
        template = stage.get("single") if isinstance(stage, dict) else None
        if isinstance(template, list) and template and isinstance(template[-1], dict):
            return "SpecialToken" in template[-1]
    return False


def read_json(file: Path) -> Any:
    """The JSON in `file`; None when there is none to read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None
