"""Where a model's files are: a local folder, the Hugging Face cache, or the shipped demo.

Only looks; nothing is ever downloaded, created or changed. Everything here reads the disk and
blocks, for milliseconds a model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.files import expand
from supervisor.models import advice, folders
from supervisor.models.folders import Fault, problem
from supervisor.models.hub import REPO, choose, repo_dir, state_of
from supervisor.wire.text import as_utf8, reason

__all__ = ["Place", "SourceError", "find", "resolve", "state"]


class SourceError(Exception):
    """A model's files are not there or not whole; the message says why and what to do, and can be
    printed whatever the files are called."""

    def __init__(self, message: str) -> None:
        super().__init__(as_utf8(message))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is loaded from."""

    folder: Path
    doubt: str = ""
    """What its files seem to lack, with what to do; should mlx-lm refuse them, this is why."""
    is_whole: bool = True
    """Whether nothing is known to be missing; a doubt is then that of a running download."""
    note: str = ""
    """That another snapshot of the repo serves than `main`, and why."""


def resolve(source: str, *, demo_dir: Path, hub: Path) -> Path:
    """`find`, the folder alone."""
    return find(source, demo_dir=demo_dir, hub=hub).folder


def find(source: str, *, demo_dir: Path, hub: Path) -> Place:
    """The folder with the files of `source`.

    `demo` is `demo_dir`, as it is. A folder that exists and holds config.json comes before a
    repo id of the same spelling, any other after what the cache has. A repo id, or
    `ORG/NAME@REVISION`, is looked up in `hub`: the revision's snapshot, see `hub.choose`.
    The answer is absolute but for `demo_dir`. Raises SourceError when nothing is found or when
    the files are such that mlx-lm can't load them.
    """
    if source == "demo":
        return Place(demo_dir)
    try:
        folder = _folder(source)
        if _is_path(source) or (source and (folder / "config.json").is_file()):
            return _local(folder, source)
        match = REPO.fullmatch(source)
        if match is not None and not any(bad in match["repo"] for bad in ("--", "..")):
            place = _from_hub(match["repo"], match["revision"], hub)
            if place is not None:
                return place
        if source and os.path.lexists(folder):
            return _local(folder, source)
        if match is not None and not any(bad in match["repo"] for bad in ("--", "..")):
            raise SourceError(_not_cached(match["repo"], match["revision"], hub))
        raise SourceError(
            f"{source!r} is neither a model folder (with config.json) nor a Hugging Face repo "
            'id such as "mlx-community/Qwen3-4B-4bit"'
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{source!r} cannot be read: {reason(error)}") from error


def state(source: str, hub: Path) -> list[str]:
    """What `find` depends on beside the files in the folder that it found. Raises OSError."""
    folder = _folder(source)
    if source == "demo" or _is_path(source) or (folder / "config.json").is_file():
        return []
    match = REPO.fullmatch(source)
    return [] if match is None else state_of(repo_dir(hub, match["repo"]))


def _folder(source: str) -> Path:
    return expand(source, os.environ)


def _is_path(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~")) or source in (".", "..")


def _local(folder: Path, source: str) -> Place:
    found = problem(folder)
    if found is not None:
        cure = f"complete the folder {folder}" if folder.is_dir() else "correct the model's source"
        raise _refusal(source, found, cure)
    lacks = folders.doubt(folder)
    cure = f"{lacks}; complete the folder {folder}" if lacks else ""
    return Place(folder.absolute(), cure, is_whole=not lacks)


def _from_hub(name: str, revision: str | None, hub: Path) -> Place | None:
    """None when the cache knows nothing of it. Raises SourceError, OSError."""
    found = choose(repo_dir(hub, name), revision)
    if found is None:
        return None
    download = _download(name, revision)
    unfinished = f" ({found.download})" if found.download else ""
    if found.problem is not None:
        full_name = f"{name}@{revision}" if revision else name
        raise _refusal(full_name, found.problem, download + unfinished)
    note = ""
    if found.passed is not None:
        note = (
            f"the snapshot {found.folder.name} of {name} is served, since that of `main`, "
            f"{found.passed.name}, is not complete: {found.passed_why}; {download}"
        )
    doubt = f"{found.doubt}; {download}{unfinished}" if found.doubt else found.download
    return Place(found.folder.absolute(), doubt, not found.doubt, note)


def _refusal(source: str, found: Fault, cure: str) -> SourceError:
    if found.is_incomplete:
        return SourceError(f"{source!r} is incomplete: {found.text}; {cure}")
    return SourceError(f"{source!r} cannot be served: {found.text}")


def _not_cached(name: str, revision: str | None, hub: Path) -> str:
    full_name = f"{name}@{revision}" if revision else name
    return (
        f"{full_name!r} is neither a model folder (with config.json) nor in the Hugging Face "
        f"cache at {hub}; {advice.of_name(name) or _download(name, revision)}"
    )


def _download(name: str, revision: str | None) -> str:
    return f"run `hf download {name}" + (f" --revision {revision}`" if revision else "`")
