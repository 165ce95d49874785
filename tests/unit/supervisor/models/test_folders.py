"""supervisor.models.folders and worker.engine.loading, together, agree with mlx-lm: a folder that
it loads is served, any other is refused with the file and the reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from supervisor.config.schema import ModelSettings
from supervisor.models.catalog import Catalog
from supervisor.models.folders import doubt, problem
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.models.sources import SourceError
from tests.helpers.tiny_llama import Shape, make_llama
from worker.engine.loading import load
from worker.engine.thread import Unloadable

SMALL = Shape(32, 32, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("folders") / "good", shape=SMALL)


def shards(folder: Path, *, index: bool = True) -> None:
    """Two of them, in place of one file."""
    whole: Any = mx.load(str(folder / WEIGHTS))
    names = sorted(whole)
    weight_map: dict[str, str] = {}
    for number in (1, 2):
        file = f"model-{number:05}-of-00002.safetensors"
        part = {name: whole[name] for name in names[number - 1 :: 2]}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def apple_double(folder: Path) -> None:
    """What macOS leaves beside every file on a disk of another system."""
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def both(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for step in steps:
            step(folder)

    return spoil


def write(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(*patterns: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return spoil


def rename(to: str, name: str = WEIGHTS) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / to)


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def configure(**members: Any) -> Callable[[Path], object]:
    return edit("config.json", lambda old: json.dumps({**json.loads(old), **members}).encode())


def make_folder(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        if (folder / name).exists():
            (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def gone_index(folder: Path) -> None:
    names = dict.fromkeys(mx.load(str(folder / WEIGHTS)), "model-00001-of-00009.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def as_npz(folder: Path) -> None:
    mx.savez(str(folder / "weights.npz"), **mx.load(str(folder / WEIGHTS)))  # type: ignore[arg-type]
    (folder / WEIGHTS).unlink()


def link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def not_utf8(name: bytes) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / WEIGHTS, os.fsdecode(os.fsencode(folder) + name))


Spoil = Callable[[Path], object]
BOM = b"\xef\xbb\xbf"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
LOADED: dict[str, Spoil] = {
    "as it is made": lambda folder: None,
    "AppleDouble files of everything": apple_double,
    "shards, and AppleDouble files of them": both(shards, apple_double),
    "shards": shards,
    "shards without an index": lambda folder: shards(folder, index=False),
    "shards and a broken index": both(shards, write(INDEX, "{")),
    "an index of shards that never existed": gone_index,
    "an index without a weight_map": write(INDEX, "{}"),
    "an index that is a folder": make_folder(INDEX),
    "one numbered file that holds everything": rename("model-00001-of-00002.safetensors"),
    "an unusual name": rename("model-part.safetensors"),
    "a copy": lambda folder: shutil.copy(folder / WEIGHTS, folder / "model copy.safetensors"),
    "a file without tensors": write("model-x.safetensors", b"\2\0\0\0\0\0\0\0{}"),
    "bytes behind the data": edit(WEIGHTS, lambda data: data + b"junk"),
    "consolidated weights beside": write("consolidated.safetensors", b""),
    "an adapter beside": both(
        write("adapters.safetensors", b""), write("adapter_config.json", "{}")
    ),
    "GGUF beside": write("model.gguf", b"GGUF"),
    "a blob of a download": write("model.safetensors.incomplete", b"half"),
    "a name in another encoding": not_utf8(b"/caf\xe9.txt"),
    "no tokenizer_config.json": remove("tokenizer_config.json"),
    "no generation_config.json": remove("generation_config.json"),
    "a broken generation_config.json": write("generation_config.json", "{"),
    "a template that does not compile": write("chat_template.jinja", "{% for x in %}"),
    "a template that is a folder": make_folder("chat_template.jinja"),
    "another quantization's name": configure(quantization_config={"quant_method": "bitsandbytes"}),
    "links to files": both(rename("data"), link(WEIGHTS, "data")),
}
REFUSED: dict[str, tuple[Spoil, str]] = {
    "no config": (remove("config.json"), "config.json is missing"),
    "a config that is a link to nothing": (link("config.json", "nowhere"), "config.json is a link"),
    "a config with a mark": (edit("config.json", lambda data: BOM + data), "byte order mark"),
    "a config in UTF-16": (
        edit("config.json", lambda data: data.decode().encode("utf-16")),
        "config.json is not JSON",
    ),
    "a config that is a list": (write("config.json", "[]"), "config.json does not hold"),
    "a config that is a folder": (make_folder("config.json"), "config.json cannot be read: is a"),
    "a config for Git LFS": (write("config.json", LFS), "git lfs pull"),
    "a deep config": (write("config.json", "[" * 100_000), "config.json is not JSON"),
    "no weights": (remove(WEIGHTS), "there are no model*.safetensors files"),
    "an index alone": (both(shards, remove("model-*")), "no model*.safetensors"),
    "consolidated weights": (rename("consolidated.safetensors"), "consolidated.safetensors"),
    "capitals": (rename("model.SAFETENSORS"), "model.SAFETENSORS"),
    "an early MLX": (as_npz, "weights.npz"),
    "weights for Git LFS": (write(WEIGHTS, LFS), "model.safetensors is a Git LFS pointer"),
    "an empty file of weights": (write("model-x.safetensors", b""), "model-x.safetensors is empty"),
    "weights cut short": (edit(WEIGHTS, lambda data: data[:-5]), "model.safetensors is cut short"),
    "a header cut short": (edit(WEIGHTS, lambda data: data[:90]), "model.safetensors is cut short"),
    "weights that are a folder": (make_folder("model-x.safetensors"), "model-x.safetensors is a f"),
    "weights that are a link to nothing": (
        link("model-x.safetensors", "nowhere"),
        "model-x.safetensors is a link to a file that is missing",
    ),
    "weights in another encoding": (not_utf8(b"/model-\xff.safetensors"), "not a name in UTF-8"),
    "a shard missing": (
        both(shards, remove("model-00002*")),
        "model-00002-of-00002.safetensors is missing",
    ),
    "a shard missing, without an index": (
        both(lambda folder: shards(folder, index=False), remove("model-00001*")),
        "model-00001-of-00002.safetensors is missing",
    ),
    "no tokenizer": (remove("tokenizer*"), "there is no tokenizer"),
    "a tokenizer for Git LFS": (write("tokenizer.json", LFS), "tokenizer.json is a Git LFS"),
    "a broken tokenizer": (write("tokenizer.json", "{"), "tokenizer.json is not JSON"),
    "a tokenizer that is a folder": (
        make_folder("tokenizer.json"),
        "tokenizer.json cannot be read: is a directory",
    ),
    "an unknown tokenizer": (write("tokenizer.json", '{"model": 1}'), ""),
    "a broken tokenizer_config.json": (
        write("tokenizer_config.json", "{"),
        "tokenizer_config.json is not JSON",
    ),
    "a broken special_tokens_map.json": (write("special_tokens_map.json", "{"), "special_tokens"),
    "a generation_config.json that is a list": (
        write("generation_config.json", "[]"),
        "generation_config.json does not hold a JSON object",
    ),
    "a generation_config.json in another encoding": (
        write("generation_config.json", b'{"a": "\xff"}'),
        "generation_config.json is not text in UTF-8",
    ),
    "a generation_config.json that is a folder": (
        make_folder("generation_config.json"),
        "generation_config.json cannot be read: is a directory",
    ),
    "a template in another encoding": (
        write("chat_template.jinja", b"\xff"),
        "chat_template.jinja is not text in UTF-8",
    ),
    "another broken configuration": (
        write("hf_quant_config.json", "{"),
        "hf_quant_config.json is not JSON",
    ),
    "code of its own": (configure(model_file="x.py"), "code from its own folder"),
    "an unknown type": (configure(model_type="nonsense"), "upgrade mlx-lm"),
    "other dimensions": (configure(hidden_size=48), "shape"),
    "more layers": (configure(num_hidden_layers=9), "Missing"),
    "fewer layers": (configure(num_hidden_layers=1), "parameters not in model"),
    "quantized by a way that mlx-lm can't read": (
        configure(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 64}),
        "",
    ),
}


def verdict(folder: Path) -> str:
    """Ours: "" when it is served, else the reason."""
    sizing = Sizing(
        Catalog({"m": ModelSettings(source=str(folder))}, folder.parent / "hub"),
        SizeCache(folder.parent / "sizes.json"),
        None,
    )
    try:
        load(sizing.folder("m"), 0, lambda done, total: None)
    except SourceError as error:
        return str(error)
    except Unloadable as error:
        return sizing.explained("m", str(error))
    return ""


def mlx_lm_loads(folder: Path) -> bool:
    """mlx-lm's own, which is what it is compared with."""
    from mlx_lm.utils import load

    try:
        model: Any = load(str(folder))[0]
        mx.eval(model.parameters())
    except Exception:  # noqa: BLE001
        return False
    return True


@pytest.mark.parametrize("what", LOADED)
def test_a_folder_that_mlx_lm_loads_is_served(good: Path, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    LOADED[what](folder)
    assert mlx_lm_loads(folder)
    assert verdict(folder) == ""
    assert problem(folder) is None


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_it_can_not_load_is_refused_with_the_file(
    good: Path, tmp_path: Path, what: str
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    spoil, reason = REFUSED[what]
    spoil(folder)
    assert not mlx_lm_loads(folder)
    told = verdict(folder)
    assert told
    assert reason in told


@pytest.mark.parametrize(
    ("name", "loads"),
    [("a model", True), ("a*c", True), ("a[b]c", False), ("caf\xe9", True), (b"caf\xe9", False)],
)
def test_a_folders_own_name(good: Path, tmp_path: Path, name: str | bytes, loads: bool) -> None:
    folder = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    shutil.copytree(good, folder)
    assert mlx_lm_loads(folder) is loads
    told = verdict(folder)
    assert (told == "") is loads
    assert loads or "rename" in told


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_pipe_is_not_waited_for(good: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    found = problem(folder)
    assert found is not None
    assert "is not a regular file" in found.text


def test_what_mlx_lm_throws_away_may_be_missing(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    shards(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["vision_tower.a.weight"] = "model-00003-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert doubt(folder) is None


@pytest.mark.parametrize("denied", ["config.json", WEIGHTS, ""])
def test_what_may_not_be_read_is_named(
    good: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    def refuse(path: Any, *args: Any, **more: Any) -> Any:
        if Path(path) == good / denied:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **more)

    opened: Any = os.listdir if not denied else open
    monkeypatch.setattr("os.listdir" if not denied else "builtins.open", refuse)
    found = problem(good)
    monkeypatch.undo()
    assert found is not None
    assert found.text.endswith("cannot be read: permission denied")
    assert str(good / denied) in found.text
    assert not found.is_incomplete
