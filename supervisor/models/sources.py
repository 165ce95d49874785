"""Where a model's files are: a local folder, the Hugging Face cache, or the shipped demo.

Only looks; nothing is ever downloaded, created or changed. Everything here reads the disk and
blocks, for milliseconds a model.

The cache's layout is huggingface_hub's: `models--ORG--NAME/` holds `refs/REVISION` (a file with a
commit), `snapshots/COMMIT/` (links into `blobs/`) and, while a download runs or after it broke,
`blobs/*.incomplete`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from supervisor.models.jsonfiles import Malformed, read_header, read_object

__all__ = ["SourceError", "discover", "hub_dir", "resolve"]

_REPO = re.compile(
    r"(?P<repo>(?:[A-Za-z0-9_][\w.-]*/)?[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_SHARD = re.compile(r"(.*-)([0-9]{5})-of-([0-9]{5})\.safetensors", re.ASCII)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
_INDEX = "model.safetensors.index.json"


class SourceError(Exception):
    """A model's files are not there or not whole; the message says why and what to do."""


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
            return _expand(value, environ) / below
    return _expand("~/.cache/huggingface/hub", environ)


def resolve(source: str, *, demo_dir: Path, hub: Path) -> Path:
    """The folder with the files of `source`.

    `demo` is `demo_dir`, as it is. A folder that exists and holds config.json comes before a
    repo id of the same spelling. A repo id, or `ORG/NAME@REVISION`, is looked up in `hub`: the
    revision's snapshot (`main` unless given; the newest when the cache has no ref for it).
    The answer is absolute but for `demo_dir`. Raises SourceError when nothing is found or when
    files are missing.
    """
    if source == "demo":
        return demo_dir
    try:
        folder = _expand(source, os.environ)
        if source.startswith(("/", "./", "../", "~")) or source in (".", ".."):
            return _whole(folder, source, f"complete the folder {folder}")
        if source and (folder / "config.json").is_file():
            return _whole(folder, source, f"complete the folder {folder}")
        match = _REPO.fullmatch(source)
        if match is None or any(bad in match["repo"] for bad in ("--", "..")):
            raise SourceError(
                f"{source!r} is neither a model folder (with config.json) nor a Hugging Face repo "
                'id such as "mlx-community/Qwen3-4B-4bit"'
            )
        return _from_hub(match["repo"], match["revision"], hub)
    except (OSError, ValueError) as error:
        raise SourceError(f"{source!r} cannot be read: {error}") from error


def discover(hub: Path) -> dict[str, Path]:
    """Every whole MLX language model in `hub`: repo id → snapshot folder, sorted by repo id.

    MLX means: saved by mlx (the safetensors header says so), quantized by mlx-lm (config.json
    says so), or published by mlx-community. Repos without `model_type` or a tokenizer (diffusion,
    speech), incomplete ones and those that cannot be read are left out. Never raises.
    """
    found: dict[str, Path] = {}
    try:
        repos = sorted(hub.glob("models--*"))
    except OSError:
        return found
    for repo in repos:
        name = repo.name.removeprefix("models--").replace("--", "/")
        match = _REPO.fullmatch(name)
        try:
            snapshot = _snapshot(repo, None)
            if (
                match is not None
                and match["repo"] == name
                and snapshot is not None
                and _problem(snapshot) is None
                and _is_mlx_language_model(name, snapshot)
            ):
                found[name] = snapshot
        except (OSError, ValueError):
            continue
    return found


def _from_hub(name: str, revision: str | None, hub: Path) -> Path:
    repo = hub / ("models--" + name.replace("/", "--"))
    full_name = f"{name}@{revision}" if revision else name
    download = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    snapshot = _snapshot(repo, revision)
    if snapshot is None:
        raise SourceError(
            f"{full_name!r} is neither a model folder (with config.json) nor in the Hugging Face "
            f"cache at {hub}; run `{download}`"
        )
    # Whoever asks the hub for one new file moves `main` to a snapshot with that file alone.
    whole = [other.name for other in _snapshots(repo) if _problem(other) is None]
    instead = f', or use "{name}@{whole[-1]}", which is complete' if whole else ""
    return _whole(snapshot, full_name, f"run `{download}`{instead}")


def _snapshot(repo: Path, revision: str | None) -> Path | None:
    """The snapshot folder of `revision`, which may not exist; None when the cache has no clue."""
    wanted = revision or "main"
    if ".." in wanted or wanted.startswith("/"):
        return None
    ref = repo / "refs" / wanted
    if ref.is_file():
        commit = ref.read_text("utf-8").strip()
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


def _whole(folder: Path, source: str, advice: str) -> Path:
    """`folder`, or a SourceError that tells what it lacks."""
    problem = _problem(folder)
    if problem is None:
        return folder.absolute()
    raise SourceError(f"{source!r} is incomplete: {problem}; {advice}")


def _problem(folder: Path) -> str | None:
    """Why the model in `folder` cannot be loaded, as far as its file names tell, else None."""
    if not folder.is_dir():
        return f"there is no folder {folder}"
    for path in [folder / "config.json", *sorted(folder.glob("[!.]*"))]:
        if path.is_symlink() and not path.exists():
            return f"{path.name} is a link to a file that is missing"
    if not (folder / "config.json").is_file():
        return f"config.json is missing in {folder}"
    weights = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    try:
        expected = _expected_weights(folder, weights)
    except Malformed as error:
        return f"{_INDEX} {error} in {folder}"
    for name in sorted(expected):
        if name not in weights and not (folder / name).is_file():
            return f"{name} is missing in {folder}"
    if not weights:
        return f"there are no *.safetensors files in {folder}"
    return _unfinished_download(folder)


def _expected_weights(folder: Path, weights: set[str]) -> set[str]:
    """The weight files that the index or a shard's own name (`-00001-of-00003`) promises. Raises
    Malformed for the index."""
    expected: set[str] = set()
    index = folder / _INDEX
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise Malformed("has no weight_map")
        expected.update(str(name) for name in weight_map.values())
    for match in filter(None, map(_SHARD.fullmatch, weights)):
        stem, _, total = match.groups()
        # A corrupt name must not become a long loop: no model has a thousand shards.
        count = min(int(total), 1000)
        expected.update(f"{stem}{i:05}-of-{total}.safetensors" for i in range(1, count + 1))
    return expected


def _unfinished_download(snapshot: Path) -> str | None:
    """The partial blob that the newest snapshot waits for, if any.

    huggingface_hub never removes the partial files of a killed download and does not resume
    them, so one that was last written before the snapshot got its last file is only litter.
    """
    repo = snapshot.parent.parent
    if snapshot.parent.name != "snapshots" or _snapshots(repo)[-1:] != [snapshot]:
        return None
    changed = snapshot.stat().st_mtime_ns
    for partial in sorted((repo / "blobs").glob("*.incomplete")):
        if partial.stat().st_mtime_ns > changed:
            return f"its download has not finished ({partial})"
    return None


def _is_mlx_language_model(name: str, snapshot: Path) -> bool:
    config = read_object(snapshot / "config.json")
    if not (isinstance(config.get("model_type"), str) and config["model_type"]):
        return False
    has_tokenizer = any((snapshot / file).is_file() for file in _TOKENIZERS)
    if not (has_tokenizer or any(snapshot.glob("*.tiktoken"))):
        return False
    if name.startswith("mlx-community/"):
        return True
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and {"group_size", "bits"} <= quantization.keys():
        return True
    weights = min(path for path in snapshot.glob("*.safetensors") if path.is_file())
    metadata = read_header(weights)[0].get("__metadata__")
    return isinstance(metadata, dict) and metadata.get("format") == "mlx"


def _expand(path: str, environ: Mapping[str, str]) -> Path:
    if environ.get("HOME") and (path == "~" or path.startswith("~/")):
        return Path(environ["HOME"] + path[1:])
    return Path(os.path.expanduser(path))
