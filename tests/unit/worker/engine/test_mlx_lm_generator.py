"""worker.engine.mlx_lm_generator: batches of our own in mlx-lm's generator, which is refused where
it is not as expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from tests.helpers.mlx_lm_versions import own_classes, refused
from tests.helpers.tiny_llama import make_model
from worker.engine import mlx_lm_expected as expected
from worker.engine.decoding import BatchDecoder
from worker.engine.mlx_lm_compat import load_lazily
from worker.engine.mlx_lm_generator import make_generator, next_tokens
from worker.engine.rows import BatchRow
from worker.engine.sampling import Parameters

PROMPT = list(b"The quick brown fox")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_model(tmp_path_factory.mktemp("m") / "m", "llama", vocabulary=300, seed=2)
    return load_lazily(str(folder))[0]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    return own_classes(monkeypatch)


def test_memory_that_stays_wired_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    limit = 5

    def set_wired_limit(new: int) -> int:
        nonlocal limit
        old, limit = limit, new
        return old

    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    monkeypatch.setattr(
        generate, "maybe_set_recommended_wired_limit", lambda: mx.set_wired_limit(1000)
    )
    make_generator(model, BatchDecoder())
    assert limit == 5
    monkeypatch.setattr(generate.BatchGenerator, "close", lambda self: None)
    assert "leaves memory wired" in refused(lambda: make_generator(model, BatchDecoder()))
    assert limit == 5


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
        *(("BatchGenerator", name) for name in ("_generation_batch", "_prompt_batch")),
    ],
)
def test_an_attribute_that_is_gone_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any, kind: str, attribute: str
) -> None:
    owner = getattr(generate, kind)
    _spoil_instances(monkeypatch, owner, lambda made: delattr(made, attribute))
    told = refused(lambda: make_generator(model, BatchDecoder()))
    assert f"a {kind} has no {attribute}" in told


def test_an_attribute_that_prompts_have_besides_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    """It may hold something for each prompt, which `split` would lose."""
    kind = generate.PromptProcessingBatch
    _spoil_instances(monkeypatch, kind, lambda made: setattr(made, "adapters", []))
    assert "adapters" in refused(lambda: make_generator(model, BatchDecoder()))


@pytest.mark.parametrize("kind", ["GenerationBatch", "PromptProcessingBatch"])
def test_a_class_that_is_not_put_in_its_place_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any, kind: str
) -> None:
    theirs = getattr(generate, kind)
    attribute = {"GenerationBatch": "_generation_batch"}.get(kind, "_prompt_batch")

    def keep(generator: Any) -> None:
        setattr(generator, attribute, theirs.empty(generator.model, generator.sampler))

    _spoil_instances(monkeypatch, generate.BatchGenerator, keep)
    assert kind in refused(lambda: make_generator(model, BatchDecoder()))


def test_a_sampler_that_does_not_arrive_is_told(
    generate: Any, monkeypatch: pytest.MonkeyPatch, model: Any
) -> None:
    kind = generate.GenerationBatch
    _spoil_instances(monkeypatch, kind, lambda made: setattr(made, "fallback_sampler", None))
    assert "sampler" in refused(lambda: make_generator(model, BatchDecoder()))


def test_the_own_step_decodes_from_the_first_token_on(generate: Any, model: Any) -> None:
    decoder = BatchDecoder()
    generator = make_generator(model, decoder)
    (uid,) = generator.insert([PROMPT], max_tokens=[4], samplers=[BatchRow(Parameters())])
    while not generator._generation_batch.uids:
        generator.next()
    batch = generator._generation_batch
    assert type(batch) is generate.GenerationBatch
    assert batch.fallback_sampler is decoder
    waiting = next_tokens(generator, [uid])[uid]
    assert (waiting.left, waiting.row) == (3, batch.samplers[0])
    assert generator.next()[1][0].token == waiting.token
    assert next_tokens(generator, [uid])[uid].left == 2


def test_a_second_generator_is_built_on_mlx_lms_own_classes(generate: Any, model: Any) -> None:
    make_generator(model, BatchDecoder())
    make_generator(model, BatchDecoder())
    assert generate.GenerationBatch.__mro__[1].__module__ == "mlx_lm.generate"
    assert generate.PromptProcessingBatch.__mro__[1].__module__ == "mlx_lm.generate"


def test_generators_with_another_sampler_step_as_mlx_lm_does(generate: Any, model: Any) -> None:
    ours = make_generator(model, BatchDecoder())
    ours.insert([PROMPT], max_tokens=[24], samplers=[BatchRow(Parameters())])
    plain = generate.BatchGenerator(model)
    plain.close()
    plain.insert([PROMPT], max_tokens=[24])
    tokens: list[list[int]] = []
    for generator in (ours, plain):
        made: list[int] = []
        while len(made) < 24:
            made += [response.token for response in generator.next()[1]]
        tokens.append(made)
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) > 5
