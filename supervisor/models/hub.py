"""The Hugging Face cache: which snapshot of a repo is the model.

Its layout is huggingface_hub's: `models--ORG--NAME/` holds `refs/REVISION` (a file with a commit),
`snapshots/COMMIT/` (links into `blobs/`) and, while a download runs or after it broke,
`blobs/*.incomplete`. Everything here reads the disk and blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.files import expand
from supervisor.models import folders
from supervisor.models.folders import Fault, problem

REPO = re.compile(
    r"(?P<repo>(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The snapshot that stands for a repo, which need not exist."""

    folder: Path
    problem: Fault | None = None
    """Why it can't be loaded."""
    doubt: str = ""
    """What it seems to lack; mlx-lm may think otherwise."""
    download: str = ""
    """That one may still be running."""
    passed: Path | None = None
    """The snapshot that `refs/main` names, where another one serves."""
    passed_why: str = ""

    @property
    def is_complete(self) -> bool:
        return self.problem is None and not self.doubt and not self.download


def hub_dir(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache folder that `environ` selects, by huggingface_hub's own rules.

    $HF_HUB_CACHE, else its old name $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, else
    $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub; empty counts as unset.
    """
    for variable, below in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := environ.get(variable):
            return expand(value, environ) / below
    return expand("~/.cache/huggingface/hub", environ)


def repo_dir(hub: Path, name: str) -> Path:
    return hub / ("models--" + name.replace("/", "--"))


def choose(repo: Path, revision: str | None = None) -> Choice | None:
    """The snapshot of `revision`; without one `main`, or the newest complete one where `main`, or
    what there is of it, is not complete. None when the cache has no clue. Raises OSError."""
    wanted = _snapshot(repo, revision)
    if wanted is None:
        return None
    first = _judged(wanted)
    if revision is not None or first.is_complete:
        return first
    for other in reversed(_snapshots(repo)):
        judged = _judged(other)
        if other != wanted and judged.is_complete:
            why = first.problem.text if first.problem is not None else first.doubt
            return Choice(other, passed=wanted, passed_why=why or first.download)
    return first


def state_of(repo: Path) -> list[str]:
    """What a choice depends on beside the files of the snapshot that was chosen: refs, and names
    and times of the snapshots and of downloads. Raises OSError."""
    ref = repo / "refs" / "main"
    blobs = [path for path in (repo / "blobs").glob("*.incomplete")]
    paths = [path for path in (ref, *_snapshots(repo), *blobs) if path.exists()]
    told = [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(paths)]
    return [ref.read_text("ascii", "replace") if ref.is_file() else "", *told]


def _judged(snapshot: Path) -> Choice:
    found = problem(snapshot)
    doubt = folders.doubt(snapshot) or "" if found is None else ""
    return Choice(snapshot, found, doubt, _unfinished_download(snapshot) or "")


def _snapshot(repo: Path, revision: str | None) -> Path | None:
    """The snapshot folder of `revision`, which may not exist; None when the cache has no clue."""
    wanted = revision or "main"
    if ".." in wanted or wanted.startswith("/"):
        return None
    ref = repo / "refs" / wanted
    if ref.is_file():
        commit = ref.read_text("ascii", "replace").strip()
        if re.fullmatch(r"\w[\w.-]*", commit, re.ASCII):
            return repo / "snapshots" / commit
    if revision is not None:
        folder = repo / "snapshots" / revision
        return folder if folder.is_dir() else None
    snapshots = _snapshots(repo)
    return snapshots[-1] if snapshots else None


def _snapshots(repo: Path) -> list[Path]:
    """Every snapshot, the one changed last at the end."""
    folders = [path for path in (repo / "snapshots").glob("*") if path.is_dir()]
    return sorted(folders, key=lambda path: (path.stat().st_mtime_ns, path.name))


def _unfinished_download(snapshot: Path) -> str | None:
    """The partial blob that the newest snapshot waits for, if any.

    huggingface_hub never removes the partial files of a killed download and does not resume
    them, so one that was last written before the snapshot got its last file is only litter.
    """
    repo = snapshot.parent.parent
    if _snapshots(repo)[-1:] != [snapshot]:
        return None
    changed = snapshot.stat().st_mtime_ns if snapshot.is_dir() else 0
    for partial in sorted((repo / "blobs").glob("*.incomplete")):
        if partial.stat().st_mtime_ns > changed:
            return f"its download has not finished: {partial}"
    return None
