"""A small model in an engine, for the tests of what the engine makes of requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engine_runs import PROMPTS, TOKENS, start
from tests.helpers.tiny_llama import make_llama
from worker.engine.batch import BatchEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    BatchEngine().warm_up()
    return make_llama(tmp_path_factory.mktemp("batch") / "model")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[BatchEngine]:
    engine, _ = start(folder)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: BatchEngine) -> Iterator[BatchEngine]:
    """The shared engine; whatever a test did, nothing may be left in it."""
    yield shared
    assert shared.step() == []
    assert not shared.busy
    made = shared._generation
    assert not any([made._queue, made._parked])
    assert made.sequences.nbytes == 0


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Tokens and text of each prompt by mlx-lm's own loop, one prompt at a time, greedily."""
    from mlx_lm import stream_generate, utils

    load: Any = utils.load
    model, tokenizer = load(str(folder))
    found = {}
    for prompt in PROMPTS:
        responses = list(stream_generate(model, tokenizer, prompt, max_tokens=TOKENS))
        tokens = [response.token for response in responses]
        # Its streaming detokenizer drops a first space, and has no NUL.
        found[prompt] = (tokens, tokenizer.decode(tokens))
    return found
