"""worker.engine.loading: mlx-lm's loader, watched, and what its failures mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_llama import make_llama
from worker.engine import loading
from worker.engine.thread import Unloadable

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("loading") / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A model to spoil."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def load(folder: Path, context: int = 0) -> loading.LoadedModel:
    return loading.load(folder, context, lambda done, total: None)


def configure(folder: Path, **members: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {k: v for k, v in {**config, **members}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(changed))


def write_header(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


# ── what can never be loaded ─────────────────────────────────────────────────────────────────────

Spoil = Callable[[Path], object]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "No safetensors found"),
    "unknown type": (lambda f: configure(f, model_type="nonsense"), "nonsense not supported"),
    "no type": (lambda f: configure(f, model_type=None), ""),
    "missing tensors": (lambda f: configure(f, num_hidden_layers=3), "Missing 9 parameters"),
    "very many missing tensors": (lambda f: configure(f, num_hidden_layers=60), "Missing"),
    "unexpected tensors": (lambda f: configure(f, num_hidden_layers=1), "not in model"),
    "another shape": (lambda f: configure(f, hidden_size=96), "shape"),
    "no dimensions": (lambda f: (f / "config.json").write_text('{"model_type":"llama"}'), "hidden"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "JSONDecodeError"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ""),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
    "weights are text": (lambda f: (f / WEIGHTS).write_bytes(b"version https" * 99), "header"),
    "weights are empty": (lambda f: (f / WEIGHTS).write_bytes(b""), ""),
    "weights end early": (lambda f: (f / WEIGHTS).write_bytes(b"\x10\0\0"), ""),
    "huge header": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 200), "header"),
    "header is no JSON": (lambda f: write_header(f, b'{"a": nope'), ""),
    "half a download": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-200_000]),
        "incomplete download",
    ),
    "no folder": (shutil.rmtree, ""),
}


@pytest.mark.parametrize("what", SPOILT)
def test_files_that_can_never_be_served_are_told_with_the_reason(folder: Path, what: str) -> None:
    spoil, reason = SPOILT[what]
    spoil(folder)
    with pytest.raises(Unloadable) as caught:
        load(folder)
    assert reason in str(caught.value)
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("planned"),
        OSError(24, "planned"),
        OSError(5, "planned"),
        RuntimeError("[malloc] Unable to allocate 8 bytes."),
    ],
)
def test_what_may_go_well_next_time_is_not_permanent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from mlx_lm import utils

    def fail(path: str, lazy: bool, return_config: bool) -> None:
        raise error

    monkeypatch.setattr(utils, "load", fail)
    with pytest.raises(type(error)) as caught:
        load(folder)
    assert caught.value is error


# ── what is loaded ───────────────────────────────────────────────────────────────────────────────


def test_progress_grows_to_the_size_of_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_CHUNK_BYTES", 100_000)
    told: list[tuple[int, int]] = []
    loading.load(folder, 0, lambda done, total: told.append((done, total)))
    (total,) = {total for _, total in told}
    assert len(told) > 3
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (total, total)
    assert 0 < (folder / WEIGHTS).stat().st_size - total < 10_000  # the rest is its header


@pytest.mark.parametrize(
    ("members", "cap", "context"),
    [
        ({}, 0, 4096),
        ({}, 100, 100),
        ({}, 100_000, 4096),
        ({"max_position_embeddings": None, "max_seq_len": 77}, 0, 77),
        ({"max_position_embeddings": None, "text_config": {"n_positions": 99}}, 0, 99),
        ({"max_position_embeddings": None}, 0, 32768),
        ({"max_position_embeddings": None}, 50, 50),
    ],
)
def test_the_context_is_the_models_own_unless_capped(
    folder: Path, members: dict[str, Any], cap: int, context: int
) -> None:
    configure(folder, **members)
    assert load(folder, cap).context == context


@pytest.mark.parametrize(
    ("content", "temperature", "top_p"),
    [
        (None, 1.0, 1.0),
        ("{", 1.0, 1.0),
        ("{}", 1.0, 1.0),
        ('{"temperature": 0.6, "top_p": 0.95}', 0.6, 0.95),
        ('{"temperature": 1, "top_p": null}', 1.0, 1.0),
        ('{"do_sample": false, "temperature": 0.6}', 0.0, 1.0),
        ('{"do_sample": true, "temperature": 0.6}', 0.6, 1.0),
        ('{"temperature": "hot"}', 1.0, 1.0),
    ],
)
def test_sampling_defaults_are_the_makers(
    folder: Path, content: str | None, temperature: float, top_p: float
) -> None:
    path = folder / "generation_config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    model = load(folder)
    assert (model.defaults.temperature, model.defaults.top_p) == (temperature, top_p)


@pytest.mark.parametrize(
    ("said", "limit"), [(None, None), (7, 7), (0, None), (-1, None), (True, None), ("7", None)]
)
def test_the_longest_answer_is_the_makers(folder: Path, said: object, limit: int | None) -> None:
    content = {} if said is None else {"max_answer_tokens": said}
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert load(folder).answer_limit == limit
