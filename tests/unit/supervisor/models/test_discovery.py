"""supervisor.models.discovery: what of a Hugging Face cache is offered, and why the rest is not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from supervisor.models.discovery import Discovery, PassedOver, log_passed_over
from supervisor.models.discovery import discover as discovery
from tests.helpers.hub_cache import QUANTIZED, add_repo, find, plain_files, safetensors


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    path = tmp_path / "hub"
    path.mkdir()
    return path


def discover(hub: Path) -> dict[str, Path]:
    return dict(discovery(hub).found)


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
    # A ref that names no snapshot is as good as none.
    assert list(discover(hub)) == ["a/b", "binary/ref", "long/ref", "solo", "z/b"]
    assert discover(tmp_path / "missing") == {}
    assert discover(hub / "models--a-file--x") == {}


def test_whatever_is_discovered_resolves_to_the_same_folder(hub: Path) -> None:
    for repo in ("org/m", "mlx-community/Qwen3-4B-4bit", "gpt2"):
        add_repo(hub, repo)
    found = discover(hub)
    assert len(found) == 3
    assert {name: find(name, hub) for name in found} == found


def passed_over(hub: Path) -> dict[str, tuple[str, bool]]:
    return {each.source: (each.reason, each.is_mlx) for each in discovery(hub).passed_over}


def test_an_incomplete_newest_snapshot_is_told_and_the_complete_one_served(hub: Path) -> None:
    older = add_repo(hub, "mlx-community/m", commit="aaa", mtime=1000)
    metadata = {"config.json": json.dumps(QUANTIZED).encode()}
    add_repo(hub, "mlx-community/m", metadata, commit="bbb", mtime=2000)
    assert discover(hub) == {"mlx-community/m": older}
    (source, (why, is_mlx)) = passed_over(hub).popitem()
    assert source == "mlx-community/m@bbb"
    assert "there are no model*.safetensors files" in why
    assert "aaa is served instead" in why
    assert "hf download mlx-community/m" in why
    assert is_mlx
    assert find("mlx-community/m", hub) == older


def test_of_several_complete_snapshots_the_newest_is_served(hub: Path) -> None:
    add_repo(hub, "org/m", commit="aaa", ref=None, mtime=1000)
    newest = add_repo(hub, "org/m", commit="ccc", ref=None, mtime=1500)
    add_repo(hub, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    assert discover(hub) == {"org/m": newest}


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "the folder"])
def test_a_model_of_which_nothing_is_whole_is_told(gone: str, hub: Path) -> None:
    snapshot = add_repo(hub, "mlx-community/m")
    if gone == "the folder":
        for path in snapshot.iterdir():
            path.unlink()
        snapshot.rmdir()
    else:
        (snapshot / gone).unlink()
    assert discover(hub) == {}
    (source, (why, is_mlx)) = passed_over(hub).popitem()
    assert (source, is_mlx) == ("mlx-community/m", True)
    assert (gone if gone == "config.json" else str(snapshot)) in why
    assert "hf download mlx-community/m" in why


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (plain_files(model=PYTORCH), "not converted for MLX"),
        ({"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"x"}, "PyTorch"),
        ({"model_index.json": b"{}", "unet": b""}, "diffusers"),
        ({"m.Q4_K_M.gguf": b"GGUF"}, "GGUF"),
        (plain_files(config=b"{}"), "model_type"),
        (plain_files(tokenizer=None), "no tokenizer"),
        ({"config.json": b'{"model_type": "whisper"}', "weights.npz": b"x"}, "early MLX"),
    ],
)
def test_models_of_other_programs_are_no_surprise(
    files: dict[str, bytes], word: str, hub: Path
) -> None:
    add_repo(hub, "org/other", files)
    assert discover(hub) == {}
    (why, is_mlx) = passed_over(hub)["org/other"]
    assert word in why
    assert not is_mlx
    assert "hf download" not in why


def test_what_huggingface_hub_leaves_of_a_refused_download_is_nothing(hub: Path) -> None:
    (hub / "models--org--gated" / "blobs").mkdir(parents=True)
    assert discovery(hub) == Discovery({})


def test_a_cache_that_is_no_folder_offers_nothing(tmp_path: Path) -> None:
    assert discovery(tmp_path / "missing") == Discovery({})
    assert PassedOver("a", "b").is_mlx


def test_the_log_has_what_its_owner_may_miss_and_the_others_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = [PassedOver(f"org/o{number}", "no", is_mlx=False) for number in range(12)]
    with caplog.at_level(logging.INFO):
        log_passed_over([PassedOver("org/half", "it lacks x"), *others])
    first, second = caplog.records
    assert (first.levelname, first.message) == ("WARNING", "passed over org/half: it lacks x")
    assert second.levelname == "INFO"
    assert second.message.startswith("not MLX language models, and not offered: org/o0, org/o1")
    assert second.message.endswith(", org/o7, …")
