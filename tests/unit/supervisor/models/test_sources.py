"""supervisor.models.sources against fake Hugging Face caches."""

import json
import os
import re
from pathlib import Path

import pytest

from supervisor.models import sources
from supervisor.models.discovery import discover
from supervisor.models.sources import SourceError
from tests.helpers.hub_cache import add_repo, find, plain_files, safetensors, write_folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    path = tmp_path / "hub"
    path.mkdir()
    return path


def refusal(source: str, hub: Path) -> str:
    with pytest.raises(SourceError) as caught:
        find(source, hub)
    return str(caught.value)


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
    told = refusal(source, hub)
    assert f"{source!r} is incomplete: there is no folder" in told
    assert told.endswith("; correct the model's source")


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
        (plain_files(model=None), "no model*.safetensors"),
        (plain_files(config=b"{"), "config.json is not JSON"),
        (plain_files(config=b"\xef\xbb\xbf{}"), "byte order mark"),
    ],
)
def test_an_incomplete_model_names_the_file(
    files: dict[str, bytes], missing: str, hub: Path, tmp_path: Path
) -> None:
    add_repo(hub, "org/m", files)
    message = refusal("org/m", hub)
    assert missing in message
    assert "run `hf download org/m`" in message
    assert discover(hub).found == {}
    folder = write_folder(tmp_path / "local", files)
    assert missing in refusal(str(folder), hub)


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors.index.json": INDEX.encode(), "model-1.safetensors": safetensors()},
        {"model-00001-of-00002.safetensors": safetensors()},
        {"model-00002-of-00002.safetensors": b""},
        {"model-00002-of-00002.safetensors": safetensors()[:-1]},
        {"model-00002-of-00002.safetensors": b"version https://git-lfs.github.com/spec/v1"},
    ],
)
def test_what_only_mlx_lm_can_judge_is_tried_and_the_missing_file_known(
    files: dict[str, bytes], hub: Path, tmp_path: Path
) -> None:
    files = plain_files(model=None) | files
    add_repo(hub, "org/m", files)
    place = sources.find("org/m", demo_dir=Path(), hub=hub)
    wrong = r"(is missing|is empty|is cut short|is a Git LFS pointer)"
    assert re.search(rf"model-(2|00002-of-00002).safetensors {wrong}", place.doubt)
    assert "run `hf download org/m`" in place.doubt
    # Nobody named it: it is not offered.
    (told,) = discover(hub).passed_over
    assert (told.source, told.is_mlx) == ("org/m", True)
    folder = write_folder(tmp_path / "local", files)
    assert "complete the folder" in sources.find(str(folder), demo_dir=Path(), hub=hub).doubt


def test_a_sharded_model_with_all_its_files_is_complete(hub: Path) -> None:
    shards = {f"model-{i}.safetensors": safetensors() for i in (1, 2)}
    index = {"model.safetensors.index.json": INDEX.encode()}
    snapshot = add_repo(hub, "org/m", plain_files(model=None) | shards | index)
    assert find("org/m", hub) == snapshot


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_without_its_blob_is_named(name: str, hub: Path) -> None:
    add_repo(hub, "org/m")
    (hub / "models--org--m" / "blobs" / f"c0ffee-{name}").unlink()
    assert f"{name} is a link to a file that is missing" in refusal("org/m", hub)
    assert discover(hub).found == {}


def add_partial(hub: Path, mtime: int) -> None:
    partial = hub / "models--org--m" / "blobs" / "abc.1234.incomplete"
    partial.write_bytes(b"half")
    os.utime(partial, (mtime, mtime))


def test_while_a_download_runs_the_older_complete_snapshot_serves(hub: Path) -> None:
    older = add_repo(hub, "org/m", commit="aaa", ref="v1", mtime=500)
    newer = add_repo(hub, "org/m", commit="bbb", mtime=1000)
    add_partial(hub, mtime=1001)
    place = sources.find("org/m", demo_dir=Path(), hub=hub)
    assert place.folder == older
    assert "abc.1234.incomplete" in place.note
    assert find("org/m@v1", hub) == older
    assert find("org/m@bbb", hub) == newer
    assert discover(hub).found == {"org/m": older}


def test_a_model_with_all_its_files_is_served_whatever_else_is_downloaded(hub: Path) -> None:
    snapshot = add_repo(hub, "org/m", mtime=1000)
    add_partial(hub, mtime=1001)
    assert find("org/m", hub) == snapshot
    assert discover(hub).found == {"org/m": snapshot}


def test_an_unfinished_download_explains_what_is_missing(hub: Path) -> None:
    add_repo(hub, "org/m", plain_files(model=None), mtime=1000)
    add_partial(hub, mtime=1001)
    assert "abc.1234.incomplete" in refusal("org/m", hub)


def test_the_litter_of_an_older_download_harms_nobody(hub: Path) -> None:
    snapshot = add_repo(hub, "org/m", mtime=1000)
    add_partial(hub, mtime=999)
    assert find("org/m", hub) == snapshot
    assert discover(hub).found == {"org/m": snapshot}


def test_a_main_with_one_new_file_leaves_the_complete_snapshot_in_place(hub: Path) -> None:
    older = add_repo(hub, "org/m", commit="aaa", mtime=1000)
    add_repo(hub, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    place = sources.find("org/m", demo_dir=Path(), hub=hub)
    assert place.folder == older
    assert "bbb, is not complete" in place.note
    assert "run `hf download org/m`" in place.note


@pytest.mark.parametrize(
    ("name", "files", "words"),
    [
        ("a", {"m.Q4_K_M.gguf": b"GGUF"}, ["this is GGUF", "MLX build", "mlx_lm.convert"]),
        ("a", {"config.json": b"{}", "m.gguf": b""}, ["this is GGUF", "mlx_lm.convert"]),
        ("a", {"config.json": b"{}", "pytorch_model.bin": b""}, ["PyTorch", "mlx_lm.convert"]),
        ("a", {"model.pth": b""}, ["PyTorch", "mlx_lm.convert"]),
        ("a", {"consolidated.pt": b""}, ["PyTorch"]),
        ("a", {"config.json": b"{}", "model.onnx": b""}, ["ONNX"]),
        ("a", {"config.json": b"{}", "weights.npz": b""}, ["early MLX", "mlx_lm.convert"]),
        (
            "a",
            {
                "adapter_config.json": b'{"base_model_name_or_path": "org/base"}',
                "adapter_model.safetensors": b"",
            },
            ["LoRA adapter of org/base", "mlx_lm.fuse --model org/base"],
        ),
        (
            "a",
            {"adapter_config.json": b'{"model": "org/base"}', "adapters.safetensors": b""},
            ["LoRA adapter of org/base"],
        ),
        ("a", {"adapters.safetensors": b""}, ["LoRA adapter, not", "--model MODEL"]),
        ("a", {}, ["is empty", "MLX build"]),
        ("a", {".DS_Store": b"x"}, ["is empty"]),
        ("a", {"model_index.json": b"{}"}, ["diffusers"]),
        ("a", {"config.json": b"{}", "consolidated.safetensors": b""}, ["consolidated", "rename"]),
        ("a", {"config.json": b"{}", "model.SAFETENSORS": b""}, ["model.SAFETENSORS", "rename"]),
    ],
)
def test_other_folders_get_advice_that_fits(
    name: str, files: dict[str, bytes], words: list[str], hub: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / name, files)
    message = refusal(str(folder), hub)
    assert all(word in message for word in words), message
    assert "hf download" not in message


@pytest.mark.parametrize("source", ["gguf", "./gguf", "gguf/m.gguf"])
def test_a_folder_of_gguf_is_no_repo_to_download(
    source: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "gguf", {"m.gguf": b"GGUF"})
    monkeypatch.chdir(tmp_path)
    message = refusal(source, hub)
    assert "this is GGUF" in message
    assert "hf download" not in message


def test_a_repo_of_gguf_is_not_worth_a_download(hub: Path) -> None:
    for name in ("TheBloke/Llama-2-7B-GGUF", "gguf", "org/gguf"):
        assert "MLX build" in refusal(name, hub)
        assert "hf download" not in refusal(name, hub)


def test_the_folder_around_a_model_says_where_it_is(hub: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "outer" / "inner", plain_files())
    assert str(tmp_path / "outer" / "inner") in refusal(str(tmp_path / "outer"), hub)
    repo = add_repo(hub, "org/m").parent.parent
    assert "'org/m'" in refusal(str(repo), hub)
