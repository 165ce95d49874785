"""The wheel: it has the demo model, and nothing of what made it."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.helpers.children import ROOT
from worker.demo import MODEL_DIR


@pytest.fixture(scope="module")
def files() -> set[str]:
    """The names in it, as hatchling would put them there."""
    builder = WheelBuilder(str(ROOT))
    return {str(PurePosixPath(file.distribution_path)) for file in builder.recurse_included_files()}


def test_it_has_every_module_but_the_trainers(files: set[str]) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for package in ("gateway", "supervisor", "worker")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules - files == {name for name in modules if name.startswith("worker/demo/trainer/")}
    assert "worker/demo/trainer/train.py" in modules


def test_it_has_the_model(files: set[str]) -> None:
    model = {str(path.relative_to(ROOT)) for path in MODEL_DIR.iterdir()}
    assert "worker/demo/model/model.safetensors" in model
    assert model <= files


def test_it_has_nothing_of_the_trainer_and_no_tests(files: set[str]) -> None:
    assert not [name for name in files if name.startswith(("worker/demo/trainer", "tests/"))]
