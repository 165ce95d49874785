"""supervisor.models.sources against fake Hugging Face caches."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.models.sources import SourceError, discover, hub_dir, resolve

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


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    path = tmp_path / "hub"
    path.mkdir()
    return path


def find(source: str, hub: Path) -> Path:
    return resolve(source, demo_dir=Path("/shipped/demo"), hub=hub)


def refusal(source: str, hub: Path) -> str:
    with pytest.raises(SourceError) as caught:
        find(source, hub)
    return str(caught.value)


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_demo_is_the_shipped_folder(hub: Path) -> None:
    assert find("demo", hub) == Path("/shipped/demo")


@pytest.mark.parametrize("spelling", ["{}/m", "./m", "m", "~/m"])
def test_a_local_folder_by_any_path(
    spelling: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m", plain_files())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find(spelling.format(tmp_path), hub) == folder


def test_a_local_folder_goes_before_a_repo_only_with_a_config(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = add_repo(hub, "org/m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "m").mkdir(parents=True)
    assert find("org/m", hub) == snapshot
    for name, data in plain_files().items():
        (tmp_path / "org" / "m" / name).write_bytes(data)
    assert find("org/m", hub) == tmp_path / "org" / "m"


def test_an_empty_source_is_not_the_working_directory(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_folder(tmp_path / "m", plain_files()))
    assert "neither" in refusal("", hub)


@pytest.mark.parametrize("source", ["a/b/c", "org/", "a--b/c", "x..y", "or g/m", "a\0b", "-a/b"])
def test_what_is_neither_folder_nor_repo_is_refused(source: str, hub: Path) -> None:
    assert (
        f"{source!r} is neither a model folder (with config.json) nor a Hugging Face repo id"
        in (refusal(source, hub))
    )


@pytest.mark.parametrize("source", ["./nothing", "/no/such/folder", "~/nothing", "../nothing"])
def test_a_path_without_a_folder_is_refused(
    source: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{source!r} is incomplete: there is no folder" in refusal(source, hub)


def test_a_repo_that_is_not_cached_tells_the_download(hub: Path) -> None:
    message = refusal("org/m", hub)
    assert str(hub) in message
    assert message.endswith("run `hf download org/m`")
    assert refusal("org/m@v2", hub).endswith("run `hf download org/m --revision v2`")


@pytest.mark.parametrize("repo", ["org/m", "gpt2", "mlx-community/Qwen2.5-0.5B_4bit"])
def test_a_cached_repo_is_its_main_snapshot(repo: str, hub: Path) -> None:
    snapshot = add_repo(hub, repo, commit="aaa", mtime=1000)
    add_repo(hub, repo, commit="bbb", ref=None, mtime=2000)
    assert find(repo, hub) == snapshot


def test_without_a_ref_the_newest_snapshot_serves(hub: Path) -> None:
    add_repo(hub, "org/m", commit="bbb", ref=None, mtime=1000)
    newest = add_repo(hub, "org/m", commit="aaa", ref=None, mtime=2000)
    assert find("org/m", hub) == newest


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", "bbb"])
def test_a_revision_is_a_ref_or_a_commit(revision: str, hub: Path) -> None:
    add_repo(hub, "org/m", commit="aaa")
    wanted = add_repo(hub, "org/m", commit="bbb", ref="v2" if revision == "bbb" else revision)
    assert find(f"org/m@{revision}", hub) == wanted


@pytest.mark.parametrize("revision", ["v9", "../refs/main", "/etc"])
def test_another_revision_never_stands_in(revision: str, hub: Path) -> None:
    add_repo(hub, "org/m")
    assert "not" in refusal(f"org/m@{revision}", hub)


def test_a_ref_cannot_lead_out_of_the_snapshots(hub: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", plain_files())
    snapshot = add_repo(hub, "org/m")
    (hub / "models--org--m" / "refs" / "main").write_text("../../../elsewhere")
    assert find("org/m", hub) == snapshot


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (plain_files(config=None), "config.json is missing"),
        (plain_files(model=None), "no *.safetensors"),
        (
            plain_files(model=None)
            | {"model.safetensors.index.json": INDEX.encode(), "model-1.safetensors": b""},
            "model-2.safetensors is missing",
        ),
        (
            plain_files(model=None) | {"model-00001-of-00002.safetensors": b""},
            "model-00002-of-00002.safetensors is missing",
        ),
        (plain_files() | {"model.safetensors.index.json": b"{"}, "index.json is not JSON"),
        (plain_files() | {"model.safetensors.index.json": b"{}"}, "has no weight_map"),
        (plain_files() | {"model.safetensors.index.json": b"[" * 100_000}, "is not JSON"),
    ],
)
def test_an_incomplete_model_names_the_file(
    files: dict[str, bytes], missing: str, hub: Path, tmp_path: Path
) -> None:
    add_repo(hub, "org/m", files)
    message = refusal("org/m", hub)
    assert missing in message
    assert "run `hf download org/m`" in message
    assert discover(hub) == {}
    folder = write_folder(tmp_path / "local", files)
    assert missing in refusal(str(folder), hub)


def test_a_sharded_model_with_all_its_files_is_complete(hub: Path) -> None:
    shards = {f"model-{i}.safetensors": safetensors() for i in (1, 2)}
    index = {"model.safetensors.index.json": INDEX.encode()}
    snapshot = add_repo(hub, "org/m", plain_files(model=None) | shards | index)
    assert find("org/m", hub) == snapshot


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_without_its_blob_is_named(name: str, hub: Path) -> None:
    add_repo(hub, "org/m")
    (hub / "models--org--m" / "blobs" / f"c0ffee-{name}").unlink()
    assert f"{name} is a link to a file that is missing" in refusal("org/m", hub)
    assert discover(hub) == {}


def add_partial(hub: Path, mtime: int) -> None:
    partial = hub / "models--org--m" / "blobs" / "abc.1234.incomplete"
    partial.write_bytes(b"half")
    os.utime(partial, (mtime, mtime))


def test_a_running_download_makes_the_newest_snapshot_incomplete(hub: Path) -> None:
    older = add_repo(hub, "org/m", commit="aaa", ref="v1", mtime=500)
    add_repo(hub, "org/m", commit="bbb", mtime=1000)
    add_partial(hub, mtime=1001)
    message = refusal("org/m", hub)
    assert "abc.1234.incomplete" in message
    assert '"org/m@aaa"' in message
    assert find("org/m@v1", hub) == older
    assert discover(hub) == {}


def test_the_litter_of_an_older_download_harms_nobody(hub: Path) -> None:
    snapshot = add_repo(hub, "org/m", mtime=1000)
    add_partial(hub, mtime=999)
    assert find("org/m", hub) == snapshot
    assert discover(hub) == {"org/m": snapshot}


def test_a_main_with_one_new_file_points_to_the_complete_snapshot(hub: Path) -> None:
    add_repo(hub, "org/m", commit="aaa", mtime=1000)
    add_repo(hub, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    assert '"org/m@aaa", which is complete' in refusal("org/m", hub)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/o", "HF_HOME": "/b"}, "/o"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/huggingface/hub"),
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "HF_HOME": "~/hf"}, "/h/hf/hub"),
    ],
)
def test_hub_dir_follows_huggingface_hub(environ: dict[str, str], expected: str) -> None:
    assert hub_dir(environ) == Path(expected)


PYTORCH = safetensors({"__metadata__": {"format": "pt"}})


@pytest.mark.parametrize(
    ("repo", "files", "served"),
    [
        ("org/saved-by-mlx", plain_files(), True),
        ("org/pytorch", plain_files(model=PYTORCH), False),
        ("org/no-metadata", plain_files(model=safetensors({})), False),
        (
            "org/quantized",
            plain_files(model=PYTORCH, config=json.dumps(QUANTIZED).encode()),
            True,
        ),
        (
            "org/other-quantization",
            plain_files(
                model=PYTORCH, config=b'{"model_type": "llama", "quantization": {"method": "awq"}}'
            ),
            False,
        ),
        ("mlx-community/no-metadata", plain_files(model=safetensors({})), True),
        ("mlx-community/no-model-type", plain_files(config=b"{}"), False),
        ("mlx-community/odd-model-type", plain_files(config=b'{"model_type": 3}'), False),
        ("mlx-community/no-tokenizer", plain_files(tokenizer=None), False),
        (
            "mlx-community/sentencepiece",
            plain_files(tokenizer=None) | {"tokenizer.model": b""},
            True,
        ),
        ("mlx-community/broken-config", plain_files(config=b'{"model_type'), False),
        ("mlx-community/list-config", plain_files(config=b"[]"), False),
        ("org/empty-weights", plain_files(model=b""), False),
        ("org/huge-header", plain_files(model=b"\xff" * 64), False),
        ("org/cut-header", plain_files(model=safetensors()[:-1]), False),
        ("org/binary-header", plain_files(model=(8).to_bytes(8, "little") + b"\xff" * 8), False),
    ],
)
def test_discover_lists_mlx_language_models_only(
    repo: str, files: dict[str, bytes], served: bool, hub: Path
) -> None:
    snapshot = add_repo(hub, repo, files)
    assert discover(hub) == ({repo: snapshot} if served else {})


def test_a_corrupt_header_length_is_not_allocated(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = add_repo(hub, "org/m")
    length = len(safetensors()) - 8
    monkeypatch.setattr("supervisor.models.jsonfiles.MAX_BYTES", length)
    assert discover(hub) == {"org/m": snapshot}
    monkeypatch.setattr("supervisor.models.jsonfiles.MAX_BYTES", length - 1)
    assert discover(hub) == {}


def test_discover_sorts_and_survives_whatever_lies_in_the_hub(hub: Path, tmp_path: Path) -> None:
    for repo in ("z/b", "a/b", "solo"):
        add_repo(hub, repo)
    (hub / "datasets--a--b").mkdir()
    (hub / "models--").mkdir()
    (hub / "models--a-file--x").write_text("")
    (hub / "models--empty--repo").mkdir()
    add_repo(hub, "not/a/repo")
    add_repo(hub, "bad\nname/m")
    loop = add_repo(hub, "loop/m", plain_files(config=None))
    (loop / "config.json").symlink_to("config.json")
    (hub / "models--ref--dir" / "refs" / "main").mkdir(parents=True)
    add_repo(hub, "binary/ref")
    (hub / "models--binary--ref" / "refs" / "main").write_bytes(b"\xff\xfe")
    add_repo(hub, "long/ref")
    (hub / "models--long--ref" / "refs" / "main").write_text("c" * 300)
    add_repo(hub, "at/m@v1")
    assert list(discover(hub)) == ["a/b", "solo", "z/b"]
    for repo in ("binary/ref", "long/ref"):
        assert "cannot be read" in refusal(repo, hub)
    assert discover(tmp_path / "missing") == {}
    assert discover(hub / "models--a-file--x") == {}


def test_whatever_is_discovered_resolves_to_the_same_folder(hub: Path) -> None:
    for repo in ("org/m", "mlx-community/Qwen3-4B-4bit", "gpt2"):
        add_repo(hub, repo)
    found = discover(hub)
    assert len(found) == 3
    assert {name: find(name, hub) for name in found} == found
