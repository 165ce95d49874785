"""worker.engine.embedding: what inputs become, together and alone."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from supervisor.errors import BulkheadError
from supervisor.wire.frames import Embed, Embedded, Failed, Vector
from tests.helpers.embedder import (
    CONTEXT,
    POOLINGS,
    TEXTS,
    Run,
    busy,
    embed,
    finish,
    make_embeddings,
    start,
    step,
)
from tests.helpers.tiny_embedding import HIDDEN, make_embedding
from tests.helpers.tiny_llama import EOS, make_llama
from worker.engine import embedding
from worker.engine.embedding import Embedder

STEP = 256
"""Tokens of a step, where the inputs are longer: their attention takes seconds at its true size."""


def reference(model: Any, tokens: Sequence[int], pooling: str) -> Any:
    """The vector as its definition has it: one input, nothing around it, one pass."""
    hidden = np.array(model.model(mx.array([list(tokens)]))[0])
    pooled = hidden[-1] if pooling == "lasttoken" else hidden.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_embeddings(tmp_path_factory.mktemp("embedding"))


@pytest.fixture(params=POOLINGS)
def pooling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "STEP_TOKENS", STEP)
    monkeypatch.setattr(embedding, "SHORT", STEP // 2)


def passes_of(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of each pass through the model from now on."""
    shapes: list[tuple[int, int]] = []
    body = embedder._body

    def watched(tokens: Any, **more: Any) -> Any:
        shapes.append(tokens.shape)
        return body(tokens, **more)

    monkeypatch.setattr(embedder, "_body", watched)
    return shapes


def refused(embedder: Embedder, inputs: Sequence[Any], **more: Any) -> tuple[str, str | None, str]:
    """(code, param, message) of the refusal."""
    with pytest.raises(BulkheadError) as caught:
        embedder.prepare(Embed("r", tuple(inputs), **more))
    return caught.value.code, caught.value.param, caught.value.message


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────


def test_a_batch_gives_what_each_gives_alone(folders: dict[str, Path], pooling: str) -> None:
    embedder, model = start(folders[pooling])
    inputs = embedder.prepare(Embed("r", tuple(TEXTS)))
    assert len({len(tokens) for tokens in inputs}) == len(TEXTS)
    wanted = np.array([reference(model, tokens, pooling) for tokens in inputs])
    vectors = embed(embedder, TEXTS)
    assert vectors.dtype == np.dtype("<f4")
    assert vectors.shape == (len(TEXTS), HIDDEN)
    np.testing.assert_allclose(vectors, wanted, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # The texts have little in common, or the comparison would prove nothing.
    assert np.abs(vectors @ vectors.T - np.eye(len(TEXTS))).max() < 0.9


def test_padding_changes_no_state(folders: dict[str, Path]) -> None:
    _, model = start(folders["lasttoken"])
    tokens = list(range(40, 60))
    alone = model.model(mx.array([tokens + [0] * 30]))[:, :20]
    for padding in (0, 7, 255):
        rows = mx.array([tokens + [padding] * 30, list(range(100, 150))])
        assert mx.allclose(model.model(rows)[:1, :20], alone, atol=2e-6)
    # Before the input it would: that is what the test would see.
    assert not mx.allclose(model.model(mx.array([[0] * 30 + tokens]))[:, 30:], alone, atol=1e-3)


@pytest.mark.usefixtures("short_steps")
def test_a_long_input_goes_through_in_chunks(folders: dict[str, Path], pooling: str) -> None:
    embedder, model = start(folders[pooling])
    long = [1 + index * 7 % 250 for index in range(2 * STEP + 100)]
    run = Run(embedder, [long, [5, 6, 7]])
    steps = 0
    while busy(embedder):
        step(embedder)
        steps += 1
    assert steps == 5  # the first one is short: its speed is not known
    np.testing.assert_allclose(run.vectors[0], reference(model, long, pooling), atol=1e-5)
    np.testing.assert_allclose(run.vectors[1], reference(model, [5, 6, 7], pooling), atol=2e-6)


def test_dimensions(folders: dict[str, Path]) -> None:
    embedder, _ = start(folders["lasttoken"])
    whole = embed(embedder, TEXTS)
    for size in (1, 10, HIDDEN):
        wanted = whole[:, :size] / np.linalg.norm(whole[:, :size], axis=1, keepdims=True)
        np.testing.assert_allclose(embed(embedder, TEXTS, dimensions=size), wanted, atol=1e-6)
    code, param, message = refused(embedder, TEXTS, dimensions=HIDDEN + 1)
    assert (code, param) == ("invalid_value", "dimensions")
    assert str(HIDDEN) in message
    assert refused(embedder, TEXTS, dimensions=0)[:2] == ("invalid_value", "dimensions")


def test_bytes_are_little_endian_float32(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])
    run = Run(embedder, [[1, 2, 3]])
    finish(embedder)
    (frame, end) = run.frames
    assert isinstance(frame, Vector)
    assert end == Embedded(3)
    numbers = struct.unpack(f"<{HIDDEN}f", frame.values)
    np.testing.assert_allclose(numbers, reference(model, [1, 2, 3], "lasttoken"), atol=2e-6)


def test_numbers_that_overflowed_are_an_error(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])
    model.model.norm.weight = mx.full((HIDDEN,), float("nan"))
    run = Run(embedder, [[1], [2]])
    finish(embedder)
    (frame,) = run.frames
    assert isinstance(frame, Failed)
    assert frame.code == "internal_error"
    assert not embedder.busy


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────


def test_texts_are_tokenized_as_the_tokenizer_does(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    embedder, _ = start(folders["lasttoken"])
    ((*letters, end),) = embedder.prepare(Embed("r", ("abc",)))
    assert end == embedder._tokenizer.convert_tokens_to_ids(EOS)
    bare, _ = start(make_embedding(tmp_path / "bare", appended=False))
    assert bare.prepare(Embed("r", ("abc",))) == [letters]
    # Token arrays are the client's own, to the last one.
    assert embedder.prepare(Embed("r", (tuple(letters), "abc"))) == [letters, [*letters, end]]


def test_inputs_that_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    embedder, _ = start(folders["lasttoken"])
    size = len(embedder._tokenizer.get_vocab())
    for bad in (-1, size, 2**31, 2**63, -(2**63)):
        code, param, message = refused(embedder, [[1], [1, bad]])
        assert (code, param) == ("invalid_value", "input")
        assert "input[1]" in message
    assert refused(embedder, [[]])[:2] == ("invalid_value", "input")
    assert refused(embedder, [])[:2] == ("invalid_value", "input")
    bare, _ = start(make_embedding(tmp_path / "bare", appended=False))
    assert refused(bare, ["x", ""])[:2] == ("invalid_value", "input")
    for long in ([1] * (CONTEXT + 1), "a" * CONTEXT, "secret" * 2**20):
        code, param, message = refused(embedder, [long])
        assert (code, param) == ("context_length_exceeded", "input")
        assert message.startswith(
            f"This model's maximum context length is {CONTEXT} tokens. However, your input "
        )
        assert "secret" not in message
    assert len(embed(embedder, [[1] * CONTEXT])) == 1


def test_an_id_above_the_embedding_matrix_is_refused(tmp_path: Path) -> None:
    """A tokenizer may know more tokens than the model has rows; the gather would read beyond."""
    folder = make_embedding(tmp_path / "m")
    embedder, model = start(folder)
    model.model.embed_tokens.weight = model.model.embed_tokens.weight[:100]
    small = Embedder(model, embedder._tokenizer, folder, CONTEXT)
    assert refused(small, [[100]])[0] == "invalid_value"
    assert small.prepare(Embed("r", ((99,),))) == [[99]]


# ── many at once ─────────────────────────────────────────────────────────────────────────────────


def test_vectors_come_in_the_order_of_the_inputs(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])
    inputs = [[1 + (i * 31 + j) % 250 for j in range(1 + i * 37 % 200)] for i in range(60)]
    vectors = embed(embedder, inputs)
    for tokens, vector in zip(inputs, vectors, strict=True):
        np.testing.assert_allclose(vector, reference(model, tokens, "lasttoken"), atol=2e-6)


@pytest.mark.usefixtures("short_steps")
def test_a_step_is_bounded_and_the_jobs_take_turns(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, _ = start(folders["lasttoken"])
    shapes = passes_of(embedder, monkeypatch)
    big = Run(embedder, [[1] * 50] * 50)
    huge = Run(embedder, [[1] * (STEP * 3)])
    small = Run(embedder, [[2, 3]])
    late = 0
    while not small.frames:
        step(embedder)
        late += 1
    assert late <= 3
    assert not big.frames or not isinstance(big.frames[-1], Embedded)
    finish(embedder)
    assert len(big.vectors) == 50
    assert len(huge.vectors) == 1
    assert max(rows * width for rows, width in shapes) <= STEP
    # Whole batches: 50 rows of 50 in tens of passes would be one row a pass.
    assert len(shapes) <= 10 + 3 + 2


def test_single_inputs_of_many_jobs_share_a_pass(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])
    runs = [Run(embedder, [[1 + i, 2, 3]]) for i in range(20)]
    step(embedder)
    assert not embedder.busy
    for i, run in enumerate(runs):
        np.testing.assert_allclose(
            run.vectors[0], reference(model, [1 + i, 2, 3], "lasttoken"), atol=2e-6
        )


@pytest.mark.usefixtures("short_steps")
def test_long_inputs_take_turns_with_those_who_come_later(folders: dict[str, Path]) -> None:
    """Two clients that come back at once do not keep a third with many inputs waiting."""
    embedder, _ = start(folders["lasttoken"])
    many = Run(embedder, [[1] * (embedding.SHORT + 1 + n) for n in range(6)], now=1.0)
    ones = [Run(embedder, [[2] * (embedding.SHORT + 1)], now=2.0) for _ in range(2)]
    served = 0
    while busy(embedder):
        step(embedder)
        for place, one in enumerate(ones):
            if one.frames and served < 12:
                served += 1
                ones[place] = Run(embedder, [[2] * (embedding.SHORT + 1)], now=3.0 + served)
        long = embedder.wanted.long
        assert long is None or many.frames or long.since == 1.0
    assert isinstance(many.frames[-1], Embedded)
    assert served == 12


@pytest.mark.usefixtures("short_steps")
def test_short_inputs_of_two_jobs_take_turns_beside_a_long_one(
    folders: dict[str, Path],
) -> None:
    embedder, _ = start(folders["lasttoken"])
    long = Run(embedder, [[1] * (STEP * 3), *([[1] * embedding.SHORT] * 12)])
    other = Run(embedder, [[2] * embedding.SHORT] * 12)
    for _ in range(8):
        step(embedder)
    left = {work.job: len(work.short) for work in embedder._works}
    assert abs(left[long.job] - left[other.job]) <= 2
    assert left[other.job] < 12
    finish(embedder)
    assert len(long.vectors) == 13
    assert len(other.vectors) == 12


class Tight:
    """Memory in which so many tokens of a step fit."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def slice(self, context: int, *, scored: bool = False) -> int:
        return self.tokens

    def watch_prefill(self, rows: int, tokens: int, context: int) -> None:
        """Nothing is learned."""

    def learn(self) -> None:
        """Nothing is learned."""


def test_steps_are_as_small_as_memory_wants(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, pooling: str
) -> None:
    embedder, model = start(folders[pooling])
    shapes = passes_of(embedder, monkeypatch)
    inputs = [
        [1 + i * 7 % 250 for i in range(length)]
        for length in (embedding.SHORT + 90, 60, 60, 70, 20)
    ]
    run = Run(embedder, inputs)
    memory: Any = Tight(100)
    while busy(embedder):
        step(embedder, memory)
    assert max(rows * width for rows, width in shapes) <= 100
    for tokens, vector in zip(inputs, run.vectors, strict=True):
        np.testing.assert_allclose(vector, reference(model, tokens, pooling), atol=1e-5)


@pytest.mark.usefixtures("short_steps")
def test_a_removed_job_leaves_nothing(folders: dict[str, Path]) -> None:
    embedder, _ = start(folders["lasttoken"])
    gone = Run(embedder, [[1] * (STEP * 3), [1] * 10])
    stays = Run(embedder, [[2] * (STEP + 5)])
    step(embedder)
    step(embedder)
    embedder.remove(gone.job)
    embedder.remove(gone.job)
    told = len(gone.frames)
    finish(embedder)
    assert len(gone.frames) == told
    assert len(stays.vectors) == 1
    assert embedder._long is None


# ── which models ─────────────────────────────────────────────────────────────────────────────────


def test_a_plain_model_is_refused(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "chat")
    embedder, _ = start(folder)
    code, param, message = refused(embedder, ["x"])
    assert (code, param) == ("unsupported_value", "model")
    assert message.startswith("This model makes no embeddings: ")
    assert "1_Pooling" in message


def test_a_model_without_hidden_states_is_refused(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])

    class Strange:
        """Something that has no inner model."""

    class Broken:
        def __init__(self) -> None:
            self.model = self

        def __call__(self, tokens: Any) -> Any:
            raise ValueError("two arguments, please")

        def named_modules(self) -> list[Any]:
            return []

    for odd in (Strange(), Broken()):
        refusing = Embedder(odd, embedder._tokenizer, folders["lasttoken"], CONTEXT)
        assert refused(refusing, ["x"])[:2] == ("unsupported_value", "model")

    class Nested:
        language_model = model

    nested = Embedder(Nested(), embedder._tokenizer, folders["lasttoken"], CONTEXT)
    np.testing.assert_allclose(embed(nested, TEXTS), embed(embedder, TEXTS), atol=1e-6)


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, 40 * CONTEXT])
def test_what_is_too_long_is_cut_on_request(tmp_path: Path, appended: bool, length: int) -> None:
    """A token that ends every text ends this one too: its state may be the embedding."""
    embedder, _ = start(make_embedding(tmp_path / "m", appended=appended))
    text = "ab" * (length // 2) + "a" * (length % 2)
    (tokens,) = embedder.prepare(Embed("r", (text,), truncate=True))
    (whole,) = embedder.prepare(Embed("r", (text[:100],)))
    assert len(tokens) == min(CONTEXT, length + appended)
    ends = [embedder.prepare(Embed("r", (each,)))[0][-1] for each in ("a", "b")]
    assert (ends[0] == ends[1]) == appended
    assert (tokens[-1] == ends[0] == ends[1]) == appended
    assert tokens[: len(whole) - appended] == whole[: len(whole) - appended]
    assert embedder.prepare(Embed("r", ((5,) * (CONTEXT + 1),), truncate=True)) == [[5] * CONTEXT]


def test_what_fails_in_one_job_leaves_those_it_shared_a_step_with_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder, _ = start(folders["lasttoken"])
    alone = embed(embedder, TEXTS[:2])
    good, bad = Run(embedder, TEXTS[:2]), Run(embedder, TEXTS[1:3])
    vector = embedding._vector

    def fails(values: Any, job: Any) -> bytes:
        if job is bad.job:
            raise KeyError(TEXTS[1])
        return vector(values, job)

    monkeypatch.setattr(embedding, "_vector", fails)
    finish(embedder)
    (failure,) = bad.frames
    assert isinstance(failure, Failed)
    assert failure.code == "internal_error"
    assert TEXTS[1] not in failure.message + caplog.text
    assert "request r ends with KeyError" in caplog.text
    np.testing.assert_allclose(good.vectors, alone, atol=2e-6)
