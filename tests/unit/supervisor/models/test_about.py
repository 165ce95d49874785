"""supervisor.models.about: what clients are told of a model, from files of all sorts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.models.about import about
from supervisor.models.catalog import DEMO_DIR
from supervisor.wire.about import About


def folder(path: Path, config: Any, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


QWEN = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "quantization": {"bits": 4, "group_size": 64},
}


def test_a_quantized_model(tmp_path: Path) -> None:
    template = "{% if tools %}{{ tools }}{% endif %}<think>"
    made = folder(tmp_path / "m", QWEN, chat_template__jinja=template)
    told = about(made, ("a 1 2",), 4_500)
    assert told.architecture == "qwen3"
    assert (told.quantization, told.parameters) == ("4bit", 8_000)  # 4.5 bits each, scales too
    assert (told.embedding_length, told.layers) == (64, 3)
    assert (told.template, told.tools, told.thinks, told.embeds) == (template, True, True, False)
    assert told.size_bytes == sum(file.stat().st_size for file in made.iterdir())
    assert told.modified == max(file.stat().st_mtime for file in made.iterdir())
    assert len(told.digest) == 64


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", QWEN)
    assert about(made, ("a 1 2",), 0).digest == about(made, ("a 1 2",), 9).digest
    assert about(made, ("a 1 3",), 0).digest != about(made, ("a 1 2",), 0).digest
    assert about(made, ("a\udc80",), 0).digest  # names are bytes to the disk


@pytest.mark.parametrize(
    ("dtype", "name", "parameters"), [("bfloat16", "bf16", 50), ("float32", "f32", 25)]
)
def test_a_model_that_is_not_quantized(
    tmp_path: Path, dtype: str, name: str, parameters: int
) -> None:
    made = folder(tmp_path / "m", {"model_type": "llama", "torch_dtype": dtype})
    told = about(made, (), 100)
    assert (told.quantization, told.parameters) == (name, parameters)


def test_the_older_place_of_a_template(tmp_path: Path) -> None:
    config = json.dumps({"chat_template": "{{ tools }}"})
    made = folder(tmp_path / "m", QWEN, tokenizer_config__json=config)
    assert about(made, (), 0).tools


def test_several_templates(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools }}"},
        {"name": "odd", "template": 3},
        "odd",
    ]
    config = json.dumps({"chat_template": named})
    told = about(folder(tmp_path / "m", QWEN, tokenizer_config__json=config), (), 0)
    assert (told.template, told.tools, told.thinks) == ("plain", True, False)


@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "plain"])
def test_a_model_for_embeddings(tmp_path: Path, name: str) -> None:
    files = {"modules__json": "[]"} if name == "plain" else {}
    assert about(folder(tmp_path / name, QWEN, **files), (), 0).embeds


def test_text_models_inside_of_others(tmp_path: Path) -> None:
    inner = {"model_type": "qwen3_text", "hidden_size": 7}
    told = about(folder(tmp_path / "m", {"model_type": "vl", "text_config": inner}), (), 0)
    assert (told.architecture, told.embedding_length) == ("vl", 7)


@pytest.mark.parametrize(
    "config",
    [[], {}, {"model_type": 3, "hidden_size": "x", "num_hidden_layers": -1, "quantization": 4}],
)
def test_odd_files_are_no_error(tmp_path: Path, config: Any) -> None:
    odd = folder(tmp_path / "m", config, chat_template__jinja="", tokenizer_config__json="{")
    told = about(odd, (), 0)
    assert (told.architecture, told.parameters, told.tools) == ("", 0, False)


def test_no_files_are_no_error(tmp_path: Path) -> None:
    told = about(tmp_path / "none", (), 0)
    assert told == About(digest=told.digest)


def test_the_demo_calls_tools_and_thinks() -> None:
    told = about(DEMO_DIR, (), 1)
    assert told.tools
    assert told.thinks
