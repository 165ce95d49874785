"""worker.engine.load_faults: what a failed load means, and which file is at fault."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny_llama import make_llama
from worker.engine.load_faults import file_at_fault, told_of
from worker.engine.loading import load
from worker.engine.thread import Unloadable

NOBODY = 65534
OPTIONAL = (
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "hf_quant_config.json",
)


@pytest.fixture(scope="module")
def good() -> Iterator[Path]:
    """Where every user may read it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        made = make_llama(Path(folder) / "good")
        load(made, 0, lambda done, total: None)  # imports all that a load needs
        yield made


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(0)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *OPTIONAL, ""],
)
def test_what_may_not_be_read_is_told_with_the_file(good: Path, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=good.parent) as place:
        os.chmod(place, 0o755)
        folder = Path(shutil.copytree(good, f"{place}/model"))
        if name in OPTIONAL:
            (folder / name).write_text("{}")
        (folder / name).chmod(0)
        with without_privileges(), pytest.raises(Unloadable) as caught:
            load(folder, 0, lambda done, total: None)
        (folder / name).chmod(0o700)
        assert f"{folder / (name or 'config.json')} cannot be read: permission denied" in str(
            caught.value
        )


class Panic(BaseException):
    """As tokenizers that are written in Rust raise it."""


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/there/config.json"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "/there/config.json"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/there/config.json"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/there/config.json"),
        OSError(errno.ELOOP, "Too many levels of symbolic links", "/there/config.json"),
        OSError("Can't load tokenizer for '/there/config.json'"),
        ImportError("No module named 'sentencepiece', for config.json"),
        KeyError("config.json"),
        RecursionError("maximum recursion depth exceeded in config.json"),
        RuntimeError("an expert of config.json has no weights"),
        RuntimeError("[load_safetensors] Invalid json header length config.json"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "config.json"),
        Panic("called `Option::unwrap()` on a `None` value: config.json"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_retry_can_cure_is_told(good: Path, error: BaseException) -> None:
    with pytest.raises(Unloadable, match=r"config\.json"), told_of(good):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error", "/there/model.safetensors"),
        OSError(errno.EMFILE, "Too many open files", "/there/model.safetensors"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
        RuntimeError("[malloc] Unable to allocate 9 bytes."),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_what_may_go_well_next_time_passes_through(good: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, told_of(good):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_disk_that_fails_while_it_is_looked_at_is_nobodys_fault(
    good: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(ValueError, match="planned"), told_of(good):
        raise ValueError("planned")


def test_files_without_a_fault_have_none(good: Path) -> None:
    assert file_at_fault(good) is None


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ModuleNotFoundError("no", name="mlx_lm.models.gpt99"), "upgrade mlx-lm"),
        (ModuleNotFoundError("no", name="timm"), "needs the Python package 'timm'"),
    ],
)
def test_an_unknown_type_and_a_missing_package_are_told_apart(
    good: Path, cause: Exception, words: str
) -> None:
    with pytest.raises(Unloadable) as caught, told_of(good):
        raise ValueError("Model type gpt99 not supported.") from cause
    assert words in str(caught.value)
    assert "gpt99" in str(caught.value)
    assert ("mlx-lm 0." in str(caught.value)) is ("upgrade" in words)


@pytest.mark.parametrize(
    ("name", "key", "value", "told"),
    [
        ("config.json", "model_type", None, "config.json names no model_type"),
        ("config.json", "num_hidden_layers", "one", "config.json holds what cannot be used"),
        ("config.json", "num_hidden_layers", 9, "do not fit its config.json"),
        ("config.json", "vocab_size", 7, "do not fit its config.json"),
        ("tokenizer.json", "added_tokens", None, "tokenizer.json holds what cannot be used"),
    ],
)
def test_what_a_file_holds_is_told_with_the_file(
    good: Path, name: str, key: str, value: object, told: str
) -> None:
    with tempfile.TemporaryDirectory(dir=good.parent) as place:
        folder = Path(shutil.copytree(good, f"{place}/model"))
        values = json.loads((folder / name).read_text())
        values.pop(key)
        if value is not None:
            values[key] = value
        (folder / name).write_text(json.dumps(values))
        with pytest.raises(Unloadable) as caught:
            load(folder, 0, lambda done, total: None)
    assert told in str(caught.value)
    assert str(folder) in str(caught.value)
