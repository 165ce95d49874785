"""supervisor.models.catalog: which models are served, and where their files are now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.flags import Overrides
from supervisor.config.rules import ConfigError
from supervisor.config.schema import ModelSettings
from supervisor.config.settings import from_tree
from supervisor.models import catalog
from supervisor.models.catalog import DEFAULT_CONCURRENCY, DEMO_DIR, Catalog
from supervisor.models.discovery import PassedOver
from supervisor.models.sources import SourceError
from tests.helpers.hub_cache import plain_files, write_folder


def write_model(folder: Path) -> Path:
    return write_folder(folder, plain_files())


def cached_repo(hub: Path, name: str) -> Path:
    """A repo of mlx-community in a Hugging Face cache."""
    repo = hub / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    return write_model(repo / "snapshots" / "abc")


def build(hub: Path, *preload: str, **sections: Any) -> tuple[Any, Catalog]:
    overrides = Overrides(preload=preload)
    config = from_tree(sections, environ={}, overrides=overrides)
    return catalog.build(config, {"HF_HUB_CACHE": str(hub)})


def test_configured_models_are_served_and_nothing_else(tmp_path: Path) -> None:
    cached_repo(tmp_path, "mlx-community/Some-4bit")
    config, served = build(tmp_path, models={"a": {"source": "demo"}})
    assert list(served.models) == ["a"]
    assert config.models == served.models


def test_without_any_the_demo_and_the_cache_are_served(tmp_path: Path) -> None:
    folder = cached_repo(tmp_path, "mlx-community/Some-4bit")
    config, served = build(tmp_path, "mlx-community/Some-4bit")
    assert set(served.models) == {"demo", "mlx-community/Some-4bit"}
    assert config.models["mlx-community/Some-4bit"].preload
    assert not config.models["demo"].preload
    assert served.locate("demo") == DEMO_DIR
    assert served.locate("mlx-community/Some-4bit") == folder


def test_what_was_passed_over_tells_of_its_own_model_alone(tmp_path: Path) -> None:
    models = {name: ModelSettings(source=f"org/{name}") for name in ("m", "m2", "other", "half")}
    passed = (PassedOver("org/m@bbb", "cut short"), PassedOver("org/half", "it lacks x"))
    served = Catalog(models, tmp_path, passed)
    assert [name for name in models if served.tells_of(name)] == ["m", "half"]
    assert not any(map(Catalog(models, tmp_path).tells_of, models))


def test_an_empty_cache_leaves_the_demo(tmp_path: Path) -> None:
    _, served = build(tmp_path / "nowhere")
    assert list(served.models) == ["demo"]
    assert served.locate("demo").is_dir()


def test_a_preload_of_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        build(tmp_path, "no-such-model")


@pytest.mark.parametrize(("configured", "used"), [(0, DEFAULT_CONCURRENCY), (2, 2)])
def test_how_many_may_decode_at_once(tmp_path: Path, configured: int, used: int) -> None:
    _, served = build(tmp_path, models={"a": {"source": "demo", "max_concurrency": configured}})
    assert served.concurrency("a") == used


def test_files_are_looked_up_anew_each_time(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _, served = build(tmp_path, models={"a": {"source": str(folder)}})
    with pytest.raises(SourceError, match="model"):
        served.locate("a")
    write_model(folder)
    assert served.locate("a") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="safetensors"):
        served.locate("a")


Change = Callable[[Path], object]


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: weights(folder).write_bytes(b"other weights"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "qwen3"}'),
        lambda folder: (folder / "added.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: weights(folder).unlink(),
        lambda folder: folder.rename(folder.with_name("elsewhere")),
        # Who may read them is no change of the files, and yet a load may go another way.
        lambda folder: (folder / "config.json").chmod(0o600),
        lambda folder: folder.chmod(0o700),
    ],
)
def test_a_stamp_changes_with_the_files_alone(tmp_path: Path, change: Change) -> None:
    folder = write_model(tmp_path / "model")
    folder.chmod(0o755)
    _, served = build(tmp_path, models={"a": {"source": str(folder)}})
    before = served.stamp("a", folder)
    assert served.stamp("a", folder) == before
    change(folder)
    assert served.stamp("a", folder) != before


def test_a_stamp_changes_when_missing_files_come(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _, served = build(tmp_path, models={"a": {"source": str(folder)}})
    before = served.stamp("a", None)
    write_model(folder)
    assert served.stamp("a", None) != before


def test_a_stamp_changes_when_another_snapshot_comes(tmp_path: Path) -> None:
    folder = cached_repo(tmp_path, "org/m")
    _, served = build(tmp_path, models={"a": {"source": "org/m"}})
    before = served.stamp("a", folder)
    write_model(folder.with_name("def"))
    assert served.stamp("a", folder) != before


def test_a_fingerprint_is_of_the_files_whoever_may_read_them(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "dangling").symlink_to("nowhere")
    _, served = build(tmp_path, models={"a": {"source": str(folder)}})
    before = served.fingerprint(folder)
    (folder / "config.json").chmod(0o600)
    assert served.fingerprint(folder) == before
    weights(folder).write_bytes(b"other weights")
    assert served.fingerprint(folder) != before
