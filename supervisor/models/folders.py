"""Whether mlx-lm can load the model in a folder, as far as that can be told without mlx-lm.

What it reads decides: `config.json`, and every file whose name matches `model*.safetensors`, all of
them and no other. It does not read the index; names and numbers of shards mean nothing to it.
Everything here reads the disk and blocks, for milliseconds a model.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.models import advice
from supervisor.models.estimate.facts import EstimateError, Facts
from supervisor.models.estimate.weights import DROPPED
from supervisor.models.jsonfiles import (
    Malformed,
    check_header,
    open_regular,
    read_header,
    read_object,
)
from supervisor.wire.text import is_utf8, reason


@dataclass(frozen=True, slots=True)
class Fault:
    """Why mlx-lm can't load a folder: the file and the reason. `is_incomplete`: whether files are
    missing or broken, so that another download may help."""

    text: str
    is_incomplete: bool = True


WEIGHTS = "model*.safetensors"
"""mlx-lm's own pattern."""
_READ = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of the files that mlx-lm and transformers read beside the weights."""
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})\.safetensors", re.ASCII)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,5})\.", re.ASCII)
_EMBEDDING = re.compile(r"embed|wte", re.ASCII)


def problem(folder: Path) -> Fault | None:
    """Why mlx-lm can't load the model in `folder`. None when only mlx-lm itself can tell. Never
    raises."""
    try:
        names = os.listdir(folder)
    except NotADirectoryError:
        return Fault(advice.of_file(folder), is_incomplete=False)
    except FileNotFoundError:
        return Fault(f"there is no folder {folder}")
    except (OSError, ValueError) as error:
        return _unreadable(folder, error)
    weights = fnmatch.filter(names, WEIGHTS)
    if not weights:
        found = advice.of_folder(folder, names)
        if found is not None:
            return Fault(found, is_incomplete=False)
    return (
        _config_problem(folder)
        or _weights_problem(folder, sorted(weights))
        or _pipe_problem(folder, names)
        or _path_problem(folder, weights)
    )


def doubt(folder: Path) -> str | None:
    """What seems wrong with the weights of a model without `problem`: a file that is broken, or one
    that is missing by the index or by the numbers in their names. mlx-lm alone can say whether it
    minds. None when nothing does. Never raises."""
    try:
        present = set(fnmatch.filter(os.listdir(folder), WEIGHTS))
        return _broken(folder, present) or _missing(folder, present)
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {reason(error)}"


def _unreadable(path: Path, error: Exception) -> Fault:
    return Fault(f"{path} cannot be read: {reason(error)}", is_incomplete=False)


def _config_problem(folder: Path) -> Fault | None:
    path = folder / "config.json"
    try:
        read_object(path)
    except FileNotFoundError:
        return _dangling(path) or Fault(f"config.json is missing in {folder}")
    except OSError as error:
        return _unreadable(path, error)
    except Malformed as error:
        return Fault(f"{path} {error}")
    return None


def _weights_problem(folder: Path, names: Sequence[str]) -> Fault | None:
    """Of the first file that stops mlx-lm, for it loads all that match its pattern."""
    for path in (folder / name for name in names):
        try:
            open_regular(path).close()
        except FileNotFoundError:
            return _dangling(path) or Fault(f"{path} is missing")
        except IsADirectoryError:
            return Fault(f"{path} is a folder, which mlx-lm takes for weights", is_incomplete=False)
        except OSError as error:
            return _unreadable(path, error)
        except Malformed as error:
            return Fault(f"{path} {error}")
    return None if names else Fault(f"there are no {WEIGHTS} files in {folder}")


def _pipe_problem(folder: Path, names: Iterable[str]) -> Fault | None:
    """Of the first file that a load would wait for without an end."""
    for name in sorted(names):
        if name.endswith(_READ):
            try:
                mode = os.stat(folder / name).st_mode
            except OSError:
                continue  # which ends at once, in the worker
            if stat.S_ISFIFO(mode):
                return Fault(f"{folder / name} is not a regular file", is_incomplete=False)
    return None


def _path_problem(folder: Path, weights: Iterable[str]) -> Fault | None:
    """mlx-lm searches by a pattern, in which the folder's own name is taken for one as well."""
    paths = [str(folder / name) for name in weights]
    what = ""
    if odd := [path for path in paths if not is_utf8(path)]:
        what = f"{min(odd)} is not a name in UTF-8, and MLX opens no other; rename it"
    elif sorted(glob.glob(str(folder / WEIGHTS))) != sorted(paths):
        what = f"mlx-lm takes *, ? and [ in the path {folder} for a pattern; rename the folder"
    return Fault(what, is_incomplete=False) if what else None


def _dangling(path: Path) -> Fault | None:
    return Fault(f"{path} is a link to a file that is missing") if path.is_symlink() else None


def _broken(folder: Path, files: Iterable[str]) -> str | None:
    """Raises OSError."""
    for path in (folder / name for name in sorted(files)):
        try:
            check_header(path)
        except Malformed as error:
            return f"{path} {error}"
    return None


def _missing(folder: Path, present: set[str]) -> str | None:
    """Raises OSError, Malformed."""
    promised = _promised(folder)
    if promised is None:
        lost = _lost_numbers(present)
        if lost and _has_all_layers(folder, _tensor_names(folder, present)):
            return None
    else:
        absent = {file for file in promised.values() if file not in present}
        there = _tensor_names(folder, present) if absent else set()
        needed = (name for name in promised if DROPPED.isdisjoint(name.split(".")))
        lost = {promised[name] for name in needed if name not in there} & absent
    return f"{min(lost)} is missing in {folder}" if lost else None


def _promised(folder: Path) -> dict[str, str] | None:
    """Tensor → file, by the index; None without one that can be used."""
    try:
        weight_map = read_object(folder / _INDEX).get("weight_map")
    except (OSError, Malformed):
        return None
    if not isinstance(weight_map, dict):
        return None
    return {str(name): str(file) for name, file in weight_map.items()}


def _lost_numbers(present: Iterable[str]) -> set[str]:
    """The files that are missing between those numbered `-00001-of-00003`."""
    names = set(present)
    lost: set[str] = set()
    for match in filter(None, map(_SHARD.fullmatch, names)):
        stem, _, total = match.groups()
        # A corrupt name must not become a long loop: no model has a thousand shards.
        count = min(int(total), 1000)
        lost.update(f"{stem}{i:05}-of-{total}.safetensors" for i in range(1, count + 1))
    return lost - names


def _tensor_names(folder: Path, files: Iterable[str]) -> set[str]:
    """Raises OSError, Malformed."""
    names: set[str] = set()
    for file in files:
        names.update(read_header(folder / file)[0])
    return names


def _has_all_layers(folder: Path, names: Iterable[str]) -> bool:
    """As far as the configuration tells how many there are. Raises OSError, Malformed."""
    try:
        layers = Facts(read_object(folder / "config.json")).merged("text_config").layers()
    except EstimateError:
        return False
    names = list(names)
    found = {int(match[1]) for match in map(_LAYER.search, names) if match}
    return found >= set(range(layers)) and any(_EMBEDDING.search(name) for name in names)
