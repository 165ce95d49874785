"""worker.engine.mlx_lm_generator: batches of our own over mlx-lm's, which are refused where these
are not as expected."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mlx_lm_versions import refused
from tests.helpers.tiny_llama import make_model
from worker.engine import mlx_lm_expected as expected
from worker.engine.decoding import BatchDecoder
from worker.engine.mlx_lm_compat import load_lazily
from worker.engine.mlx_lm_generator import Batches, Pending
from worker.engine.rows import BatchRow
from worker.engine.sampling import Parameters
from worker.engine.thread import Unloadable

PROMPT = list(b"The quick brown fox")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_model(tmp_path_factory.mktemp("m") / "m", "llama", vocabulary=300, seed=2)
    return load_lazily(str(folder))[0]


@pytest.fixture
def generate() -> Any:
    return importlib.import_module("mlx_lm.generate")


def _spoil_instances(
    monkeypatch: pytest.MonkeyPatch, kind: Any, spoil: Callable[[Any], None]
) -> None:
    made = kind.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        spoil(self)

    monkeypatch.setattr(kind, "__init__", init)


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [
        *(("GenerationBatch", name) for name in sorted(expected.GENERATION_BATCH)),
        *(("PromptProcessingBatch", name) for name in sorted(expected.PROMPT_BATCH)),
    ],
)
def test_an_attribute_that_is_gone_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any, kind: str, attribute: str
) -> None:
    owner = getattr(generate, kind)
    _spoil_instances(monkeypatch, owner, lambda made: delattr(made, attribute))
    told = refused(lambda: Batches(model, BatchDecoder()))
    assert f"a {kind} has no {attribute}" in told


def test_an_attribute_that_prompts_have_besides_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    """It may hold something for each prompt, which `split` would lose."""
    kind = generate.PromptProcessingBatch
    _spoil_instances(monkeypatch, kind, lambda made: setattr(made, "adapters", []))
    assert "adapters" in refused(lambda: Batches(model, BatchDecoder()))


@pytest.mark.parametrize("kind", ["GenerationBatch", "PromptProcessingBatch"])
def test_a_sampler_that_does_not_arrive_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any, kind: str
) -> None:
    owner = getattr(generate, kind)
    _spoil_instances(monkeypatch, owner, lambda made: setattr(made, "fallback_sampler", None))
    assert "sampler" in refused(lambda: Batches(model, BatchDecoder()))


def begun(model: Any, most: int) -> Any:
    """A batch that decodes one sequence, from its first token on."""
    batches = Batches(model, BatchDecoder())
    pending = Pending(7, [], BatchRow(Parameters()), most, batches.stops)
    prompts = batches.prompts([pending])
    prompts.prompt([PROMPT[:-1]])
    assert pending.known == PROMPT[:-1]
    return batches.decoding(prompts, PROMPT[-1:])


def test_a_cache_of_which_no_batch_can_be_made_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    kinds: Any = importlib.import_module("mlx_lm.models.cache")
    plain, chunked = kinds.KVCache(), kinds.ChunkedKVCache(8)
    for caches in ([plain, chunked], [kinds.CacheList(plain, chunked)]):
        monkeypatch.setattr(
            "worker.engine.mlx_lm_generator.make_prompt_cache", lambda model, made=caches: made
        )
        with pytest.raises(Unloadable, match="mlx-lm's ChunkedKVCache has no `merge`"):
            Batches(model, BatchDecoder())


def test_the_own_step_decodes_from_the_first_token_on(model: Any) -> None:
    batch = begun(model, 4)
    waiting = batch.next_tokens([7])[7]
    assert (waiting.left, waiting.row) == (3, batch.samplers[0])
    assert batch.next()[0].token == waiting.token
    assert batch.next_tokens([7])[7].left == 2
    assert batch.tokens == [[*PROMPT, waiting.token]]  # those in the cache


def test_mlx_lms_own_classes_stay_as_they_are(generate: Any, model: Any) -> None:
    ours = begun(model, 24)
    plain = generate.BatchGenerator(model)
    plain.close()
    plain.insert([PROMPT], max_tokens=[24])
    assert type(plain._generation_batch) is generate.GenerationBatch
    assert type(ours) is not generate.GenerationBatch
    tokens: list[list[int]] = []
    for step in (ours.next, lambda: plain.next()[1]):
        made: list[int] = []
        while len(made) < 24:
            made += [response.token for response in step()]
        tokens.append(made)
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) > 5


@pytest.mark.parametrize(
    ("architecture", "grows"),
    [("llama", True), ("gemma3_text", True), ("lfm2", True), ("granitemoehybrid", True)],
)
def test_caches_that_hold_states_do_not_grow(
    tmp_path: Path, architecture: str, grows: bool
) -> None:
    folder = make_model(tmp_path / "m", architecture)
    assert Batches(load_lazily(str(folder))[0], BatchDecoder()).grows == grows
