"""supervisor.models.sizing: what a model is charged, from its files and from earlier loads."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.schema import ModelSettings
from supervisor.models.catalog import Catalog
from supervisor.models.discovery import PassedOver
from supervisor.models.estimate import Estimate, estimate
from supervisor.models.size_cache import MeasuredLoad, SizeCache, key
from supervisor.models.sizing import Need, Sizing
from supervisor.models.sources import SourceError
from supervisor.scheduler.model import NextCharge
from supervisor.wire.frames import Allowance
from tests.helpers.architectures import config_of
from tests.helpers.hub_cache import add_repo
from tests.helpers.published import published, write_headers, write_safetensors
from tests.unit.supervisor.models.test_estimate import write_tensors

GB = 10**9
MB = 10**6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 4,096 tokens of context and 8 layers."""
    write_tensors(tmp_path / "model", config_of("llama"))
    return tmp_path / "model"


def sizing(folder: Path, *, budget: int | None = None, **settings: Any) -> Sizing:
    """Of one model `m`, with `sizes.json` beside its folder."""
    models = {"m": ModelSettings(source=str(folder), **settings)}
    sizes = SizeCache.load(folder.parent / "sizes.json")
    return Sizing(Catalog(models, folder.parent), sizes, budget)


def grow(folder: Path) -> None:
    """Other weights: 400 bytes instead of 64."""
    header = {"embed": {"dtype": "F32", "shape": [10, 10], "data_offsets": [0, 400]}}
    write_safetensors(folder / "model.safetensors", header, 400)


def test_a_load_is_charged_one_conversation(folder: Path) -> None:
    told = estimate(folder)
    need = sizing(folder).need("m")
    assert need.estimate == told.total(2048, 1)
    assert need.headroom == need.estimate - told.loaded
    # All else is lent, however many may run, and whatever the machine has.
    assert sizing(folder, max_concurrency=40).need("m") == need
    assert sizing(folder, budget=1).need("m") == need


def test_no_request_is_longer_than_the_context(folder: Path) -> None:
    assert sizing(folder, context=512).need("m").estimate == estimate(folder).total(512, 1)


def test_a_worker_is_told_what_it_may_hold(folder: Path) -> None:
    told, asked = estimate(folder), sizing(folder)
    need = asked.need("m")
    told_worker = asked.allowance("m", NextCharge(need.estimate, need.headroom, None))
    assert (told_worker.room, told_worker.limit) == (told.room(2048), 0)
    assert told_worker.prompt_token == told.prompt_token * 5 // 4
    assert told_worker.score == told.scores * 5 // 4
    assert told_worker.row == told.logits * 5 // 4


def test_a_kv_budget_of_the_configuration_is_the_limit(folder: Path) -> None:
    told = estimate(folder)
    asked = sizing(folder, kv_budget="5MB")
    need = asked.need("m")
    charge = NextCharge(need.estimate, need.headroom, 100 * GB)
    assert asked.allowance("m", charge).limit == 5 * MB + told.transient(2048)


def test_the_context_is_the_models_or_less(folder: Path) -> None:
    def context(asked: Sizing, most: int | None = None) -> int:
        need = asked.need("m")
        return asked.context("m", NextCharge(need.estimate, need.headroom, most))

    assert context(sizing(folder)) == 4096
    assert context(sizing(folder, context=512)) == 512
    assert context(sizing(folder, context=9999)) == 4096
    assert context(sizing(folder), 100 * GB) == 4096
    # With 300 kB a token
    write_tensors(folder, {**config_of("llama"), "num_hidden_layers": 800})
    assert 256 < context(sizing(folder, kv_budget="300MB")) < 1500
    assert 256 < context(sizing(folder), sizing(folder).need("m").estimate + 100 * MB) < 4096


def test_of_a_model_without_files_there_is_nothing_to_tell(tmp_path: Path) -> None:
    asked = sizing(tmp_path / "nowhere", context=77)
    assert asked.allowance("m", NextCharge(3 * GB, 2 * GB, None)) == Allowance(2 * GB)
    assert asked.context("m", NextCharge(3 * GB, 2 * GB, None)) == 77


def test_files_that_are_missing_are_unknown_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = sizing(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        assert asked.need("m") == asked.need("m") == Need()
    assert [
        record.message for record in caplog.records if "size of model m" in record.message
    ] != []
    assert len(caplog.records) == 1


def test_a_look_tells_what_cannot_be_loaded(folder: Path) -> None:
    known = sizing(folder)
    assert known.seems_whole("m")
    (folder / "model.safetensors").unlink()
    assert not sizing(folder).seems_whole("m")


def test_a_broken_config_is_unknown(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert sizing(folder).need("m") == Need()


def test_files_are_read_anew_when_they_change(folder: Path) -> None:
    asked = sizing(folder)
    before = asked.need("m")
    assert asked.look("m") is None
    grow(folder)
    look = asked.look("m")
    assert look is not None
    assert asked.take("m", look).estimate - before.estimate == 400 - 64
    assert asked.look("m") is None


@pytest.mark.parametrize("known", [True, False])
def test_what_changes_during_a_look_is_seen_by_the_next_one(
    known: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sizing(folder)
    if known:
        asked.need("m")
        (folder / "config.json").touch()
    before = estimate(folder).loaded

    def changed_meanwhile(path: Path) -> Estimate:
        told = estimate(path)
        grow(path)
        return told

    with monkeypatch.context() as patch:
        patch.setattr("supervisor.models.sizing.estimate", changed_meanwhile)
        need = asked.need("m")
    assert need.estimate - need.headroom == before
    need = asked.need("m")
    assert need.estimate - need.headroom == before + 400 - 64
    assert asked.look("m") is None


def test_a_folder_that_comes_or_goes_is_looked_at_once(folder: Path) -> None:
    asked = sizing(folder)
    elsewhere = folder.with_name("elsewhere")
    for _ in range(2):
        folder.rename(elsewhere)
        assert asked.need("m") == Need()
        assert asked.look("m") is None
        elsewhere.rename(folder)
        assert asked.need("m") != Need()
        assert asked.look("m") is None


def test_a_look_that_finds_nothing_new_reads_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "config.json").write_text("{")
    asked = sizing(folder)
    asked.need("m")
    monkeypatch.setattr(os, "open", None)
    monkeypatch.setattr("builtins.open", None)
    assert asked.look("m") is None


def test_the_folder_is_that_of_the_last_look(folder: Path) -> None:
    asked = sizing(folder)
    assert asked.folder("m") == folder
    (folder / "config.json").unlink()
    assert asked.folder("m") == folder
    asked.need("m")
    with pytest.raises(SourceError, match=r"config.json is missing"):
        asked.folder("m")


def test_a_load_that_lacks_weights_is_told_with_the_file(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    asked = sizing(folder)
    asked.need("m")
    told = asked.explained("m", "ValueError: Missing 9 parameters")
    assert told.startswith(f"model-00002-of-00002.safetensors is missing in {folder}")
    assert "Missing 9 parameters" in told
    assert (
        asked.explained("m", "config.json: permission denied") == "config.json: permission denied"
    )


def test_a_load_is_remembered_by_the_next_run(folder: Path) -> None:
    sizing(folder).save_load("m", 300 * MB, 12.5)
    known = sizing(folder).measured_load("m")
    assert known is not None
    assert (known.memory_bytes, known.load_seconds) == (300 * MB, 12.5)


def test_what_outgrew_its_charge_is_remembered_through_further_loads(folder: Path) -> None:
    asked = sizing(folder)
    asked.save_excess("m", 70 * MB)
    assert asked.measured_load("m") is None  # of what was never loaded nothing is known
    asked.save_load("m", 300 * MB, 12.5)
    asked.save_excess("m", 70 * MB)
    asked.save_load("m", 310 * MB, 11.5)
    known = sizing(folder).measured_load("m")
    assert known is not None
    assert (known.memory_bytes, known.load_seconds, known.excess_bytes) == (310 * MB, 11.5, 70 * MB)
    grow(folder)
    asked.need("m")
    asked.save_load("m", 320 * MB, 11.5)
    known = asked.measured_load("m")
    assert known is not None
    assert known.excess_bytes == 0


def test_what_an_earlier_version_measured_is_as_good(folder: Path) -> None:
    fingerprint = Catalog({}, folder.parent).fingerprint(folder)
    seen = MeasuredLoad("m", 300 * MB, 12.5, 1_769_000_000.0)
    sizing(folder).cache.remember(key(fingerprint, {"context": 512}), seen)
    assert sizing(folder, context=512).measured_load("m") == seen
    assert sizing(folder).measured_load("m") is None
    asked = sizing(folder, context=512)
    asked.save_load("m", 310 * MB, 1.0)
    assert sizing(folder).measured_load("m") == asked.measured_load("m") != seen


def test_other_files_or_another_environment_are_another_model(folder: Path) -> None:
    asked = sizing(folder)
    asked.save_load("m", 300 * MB, 12.5)
    # What is lent later is none of what a load takes.
    assert sizing(folder, context=512, max_concurrency=3, kv_budget="1GB").measured_load("m")
    assert sizing(folder, env={"MLX_X": "1"}).measured_load("m") is None
    grow(folder)
    asked.need("m")
    assert asked.measured_load("m") is None


def test_uses_belong_to_the_name_whatever_its_files_are(folder: Path) -> None:
    asked = sizing(folder)
    assert asked.cache.use_count("m") == 0
    asked.cache.save_use_counts({"m": 5})
    grow(folder)
    assert (asked.cache.use_count("m"), sizing(folder, context=512).cache.use_count("m")) == (5, 5)


@pytest.mark.parametrize("besides", [(), (PassedOver("org/m2@bbb", "cut", is_mlx=False),)])
def test_a_snapshot_that_is_passed_over_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, besides: tuple[PassedOver, ...]
) -> None:
    add_repo(tmp_path, "org/m", commit="aaa", mtime=1000)
    add_repo(tmp_path, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    models = {"m": ModelSettings(source="org/m")}
    asked = Sizing(Catalog(models, tmp_path, besides), SizeCache(tmp_path / "sizes.json"), None)
    asked.need("m")
    asked.need("m")
    *_, told = asked.passed_over()
    assert len(asked.passed_over()) == 1 + len(besides)
    assert (told["source"], told["mlx"]) == ("org/m", True)
    assert "aaa of org/m is served" in str(told["reason"])
    notes = [each for each in caplog.records if "aaa of org/m is served" in each.message]
    assert len(notes) == 1


def test_what_was_discovered_besides_is_told_as_it_was(tmp_path: Path) -> None:
    passed = (PassedOver("org/half", "it lacks x"), PassedOver("org/sd", "images", is_mlx=False))
    asked = Sizing(Catalog({}, tmp_path, passed), SizeCache(tmp_path / "sizes.json"), None)
    assert asked.passed_over() == [
        {"source": "org/half", "reason": "it lacks x", "mlx": True},
        {"source": "org/sd", "reason": "images", "mlx": False},
    ]


def test_models_that_took_turns_before_are_loaded_together(tmp_path: Path) -> None:
    """When each was charged 32 sequences, two of these needed more than all four do now."""
    names = [
        "Qwen3-14B-MLX-4bit",
        "openai/gpt-oss-20b, MXFP4-Q8",
        "mlx-community/NVIDIA-Nemotron-Nano-9B-v2-4bits",
        "Qwen3-1.7B-MLX-bf16",
    ]
    entries = {entry["name"]: entry for entry in published()}
    for i, name in enumerate(names):
        (tmp_path / str(i)).mkdir()
        write_headers(tmp_path / str(i), entries[name])
    models = {str(i): ModelSettings(source=str(tmp_path / str(i))) for i in range(len(names))}
    asked = Sizing(Catalog(models, tmp_path), SizeCache(tmp_path / "sizes.json"), None)
    together = sum(asked.need(name).estimate for name in models)
    weights = sum(estimate(tmp_path / name).weights for name in models)
    assert weights < together <= weights + 4_000_000_000 < 34_000_000_000
    former = [estimate(tmp_path / name).total(2048, 32) for name in models]
    assert sum(sorted(former)[-2:]) > together
