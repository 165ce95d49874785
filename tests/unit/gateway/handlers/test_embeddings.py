"""Embeddings, from the request to the vector: gateway.handlers.embeddings, worker.engine.embedding, worker.engine.pooling."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway import app as gateway_app
from gateway.handlers.embeddings import INPUTS_MAX, parse
from gateway.http.exchange import RELAY
from supervisor.config.settings import ServerSettings
from supervisor.errors import BulkheadError, WorkerCrashed
from supervisor.wire.frames import Embed, Embedded, Failed, FromEngine, Vector
from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_embedding import HIDDEN, make_embedding, say
from tests.helpers.tiny_llama import EOS, make_llama
from worker.engine.embedding import STEP_TOKENS, Embedder
from worker.engine.thread import Job, Prepared

CONTEXT = 4096
TEXTS = ["a", "The quick brown fox", "0123456789" * 9, "naïve 模型 😀", "of middling length " * 6]


class Run:
    """A job and, as its sink, what it was given."""

    def __init__(self, embedder: Embedder, inputs: Sequence[Any], **more: Any) -> None:
        self.frames: list[FromEngine] = []
        request = Embed("r", tuple(inputs), **more)
        self.job = Job(request, Prepared(inputs=embedder.prepare(request)), self)
        embedder.insert(self.job)

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.frames.extend(frames)

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def vectors(self) -> Any:
        """float32, [inputs, dimensions]."""
        assert isinstance(self.frames[-1], Embedded)
        return np.array([np.frombuffer(f.values, "<f4") for f in self.frames[:-1]])  # type: ignore[union-attr]


def step(embedder: Embedder) -> None:
    for job, frames in embedder.step():
        job.sink.send(frames)


def finish(embedder: Embedder) -> None:
    while embedder.busy:
        step(embedder)


def embed(embedder: Embedder, inputs: Sequence[Any], **more: Any) -> Any:
    run = Run(embedder, inputs, **more)
    finish(embedder)
    return run.vectors


def start(folder: Path) -> tuple[Embedder, Any]:
    from mlx_lm import utils

    load: Any = utils.load
    model, tokenizer = load(str(folder))
    return Embedder(model, tokenizer, folder, CONTEXT), model


def reference(model: Any, tokens: Sequence[int], pooling: str) -> Any:
    """The vector as its definition has it: one input, nothing around it, one pass."""
    hidden = np.array(model.model(mx.array([list(tokens)]))[0])
    pooled = hidden[-1] if pooling == "lasttoken" else hidden.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("embedding")
    return {
        mode: make_embedding(base / mode, pooling=mode) for mode in ("lasttoken", "mean_tokens")
    }


@pytest.fixture(params=["lasttoken", "mean_tokens"])
def pooling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


def test_a_long_input_goes_through_in_chunks(folders: dict[str, Path], pooling: str) -> None:
    embedder, model = start(folders[pooling])
    long = [1 + index * 7 % 250 for index in range(2 * STEP_TOKENS + 100)]
    run = Run(embedder, [long, [5, 6, 7]])
    steps = 0
    while embedder.busy:
        step(embedder)
        steps += 1
    assert steps == 4
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


def test_a_step_is_bounded_and_the_jobs_take_turns(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, _ = start(folders["lasttoken"])
    shapes = []
    body = embedder._body

    def watched(tokens: Any, **more: Any) -> Any:
        shapes.append(tokens.shape)
        return body(tokens, **more)

    monkeypatch.setattr(embedder, "_body", watched)
    big = Run(embedder, [[1] * 200] * 50)
    huge = Run(embedder, [[1] * (STEP_TOKENS * 3)])
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
    assert max(rows * width for rows, width in shapes) <= STEP_TOKENS
    # Whole batches: 50 rows of 200 in tens of passes would be one row a pass.
    assert len(shapes) <= 10 + 3 + 1


def test_single_inputs_of_many_jobs_share_a_pass(folders: dict[str, Path]) -> None:
    embedder, model = start(folders["lasttoken"])
    runs = [Run(embedder, [[1 + i, 2, 3]]) for i in range(20)]
    step(embedder)
    assert not embedder.busy
    for i, run in enumerate(runs):
        np.testing.assert_allclose(
            run.vectors[0], reference(model, [1 + i, 2, 3], "lasttoken"), atol=2e-6
        )


def test_a_removed_job_leaves_nothing(folders: dict[str, Path]) -> None:
    embedder, _ = start(folders["lasttoken"])
    gone = Run(embedder, [[1] * (STEP_TOKENS * 3), [1] * 10])
    stays = Run(embedder, [[2] * (STEP_TOKENS + 5)])
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
    assert "1_Pooling" in str(Embedder.supported(folder))
    embedder, _ = start(folder)
    code, param, message = refused(embedder, ["x"])
    assert (code, param) == ("unsupported_value", "model")
    assert message.startswith("This model makes no embeddings: ")


def test_what_the_files_may_say(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for pooling in ("lasttoken", "mean_tokens"):
        say(folder, pooling)
        assert Embedder.supported(folder) is None
    for pooling in ("cls_token", "max_tokens", "none_at_all"):
        say(folder, pooling)
        assert "pooling" in str(Embedder.supported(folder))
    say(folder, "lasttoken", pooling_mode_mean_tokens=True)
    assert "lasttoken and mean" in str(Embedder.supported(folder)).replace("mean_tokens", "mean")
    say(folder, "none", pooling_mode="lasttoken")  # as newer versions write it
    assert Embedder.supported(folder) is None
    for key, value in (("is_causal", False), ("use_bidirectional_attention", True)):
        (folder / "config.json").write_text(json.dumps({key: value}))
        assert "both ways" in str(Embedder.supported(folder))
    (folder / "config.json").write_text(json.dumps({"is_causal": True}))
    assert Embedder.supported(folder) is None
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "Dense" in str(Embedder.supported(folder))
    (folder / "modules.json").unlink()
    assert Embedder.supported(folder) is None
    (folder / "1_Pooling" / "config.json").write_text("no JSON")
    assert Embedder.supported(folder) is not None
    assert Embedder.supported(tmp_path / "absent") is not None


def test_a_conversion_without_the_files_is_known_by_name_and_tokenizer(tmp_path: Path) -> None:
    named, other = tmp_path / "Qwen3-Embedding-tiny", tmp_path / "chat"
    for folder, appended, supported in (
        (named, True, True),
        (named, False, False),
        (other, True, False),
    ):
        make_embedding(folder, appended=appended)
        (folder / "modules.json").unlink()
        (folder / "1_Pooling" / "config.json").unlink()
        # The name of the folder that pytest makes must not say it.
        assert "embed" not in str(tmp_path).lower()
        assert (Embedder.supported(folder) is None) is supported


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


# ── the request ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("input", "inputs"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1], "a"], ((1,), "a")),
        ([7] * (INPUTS_MAX + 1), ((7,) * (INPUTS_MAX + 1),)),
        (["a"] * INPUTS_MAX, ("a",) * INPUTS_MAX),
    ],
)
def test_forms_of_input(input: Any, inputs: tuple[Any, ...]) -> None:
    parsed = parse({"model": "m", "input": input, "user": "u"})
    assert parsed.embed("r") == Embed("r", inputs)
    assert parsed.encoding_format == "float"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": [[1], []]}, "invalid_value", "input[1]"),
        ({"input": [[1], [-1]]}, "invalid_value", "input[1][0]"),
        ({"input": [2**31]}, "invalid_value", "input[0]"),
        ({"input": [2**70]}, "invalid_value", "input[0]"),
        ({"input": ["a", 1]}, "invalid_type", "input[1]"),
        ({"input": [1.5]}, "invalid_type", "input[0]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": {"text": "a"}}, "invalid_type", "input"),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "invalid_value", "input"),
        ({"input": [[1]] * (INPUTS_MAX + 1)}, "invalid_value", "input"),
        ({"input": "a", "encoding_format": "int8"}, "unsupported_value", "encoding_format"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": "9"}, "invalid_type", "dimensions"),
        ({"input": "a", "model": 1}, "invalid_type", "model"),
        ({"input": "a", "truncate": True}, "unsupported_parameter", "truncate"),
    ],
)
def test_requests_that_are_refused(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(BulkheadError) as caught:
        parse(body).embed("r")
    assert (caught.value.code, caught.value.param) == (code, param)


class Scripted:
    """Stands in for the relay and for the generation that it starts."""

    model, worker = "tiny/é", "tiny#1"

    def __init__(self, frames: Sequence[Any]) -> None:
        self._frames = iter(frames)
        self.requests: list[Embed] = []
        self.recoveries = 0
        self.asked = ""
        self.closed = False

    async def start(self, request: Embed, model: str, hold: float, digest: bytes) -> Scripted:
        self.requests.append(request)
        return self

    async def receive_vector(self) -> Any:
        frame = next(self._frames)
        if isinstance(frame, Exception):
            raise frame
        return frame

    def close(self) -> Any:
        """As a generation's, and awaited as the relay's at the end."""
        self.closed = True
        return asyncio.sleep(0)


def posted(relay: Scripted, body: dict[str, Any]) -> Answer:
    """The gateway's answer when the worker says what `relay` holds."""

    async def play() -> Answer:
        app = gateway_app.build(ServerSettings(), "/no/such/socket")
        app[RELAY] = cast(Any, relay)
        async with TestClient(TestServer(app)) as client:
            response = await client.post("/v1/embeddings", json=body)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, headers, await response.read())

    return asyncio.run(play())


NUMBERS = (0.6, -0.8)
VECTOR = Vector(struct.pack("<2f", *NUMBERS))


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_the_answers_form() -> None:
    floats = posted(Scripted([VECTOR, VECTOR, Embedded(7)]), {"input": ["a", "b"], "model": "m"})
    assert floats.status == 200
    values = [struct.unpack("<f", struct.pack("<f", number))[0] for number in NUMBERS]
    assert floats.json == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": values} for index in range(2)
        ],
        "model": "tiny/é",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert floats.headers["content-type"] == "application/json; charset=utf-8"
    assert floats.headers["x-bulkhead-worker"] == "tiny#1"
    assert floats.headers["x-bulkhead-model"] == "tiny/\\xe9"
    body = {"input": "a", "model": "m", "encoding_format": "base64"}
    encoded = posted(Scripted([VECTOR, Embedded(1)]), body).json["data"][0]["embedding"]
    assert base64.b64decode(encoded, validate=True) == VECTOR.values


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
def test_failures_are_statuses_and_give_the_place_back() -> None:
    for frames, status in (
        ([VECTOR, WorkerCrashed("died", retry_after=3)], 503),
        ([VECTOR, Embedded(1)], 500),  # one vector less than inputs
    ):
        relay = Scripted(frames)
        answer = posted(relay, {"input": ["a", "b"]})
        assert answer.status == status
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
        assert relay.closed


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = {**folders, "plain": make_llama(tmp_path_factory.mktemp("plain") / "m")}
    named = [f"--model={name}={folder}" for name, folder in models.items()]
    with serving(tmp_path_factory.mktemp("state"), *named) as running:
        yield running


def test_the_sdk_reads_what_the_worker_made(
    server: Server, folders: dict[str, Path], pooling: str
) -> None:
    embedder, _ = start(folders[pooling])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        # The SDK asks for base64 and decodes it itself, unless told otherwise.
        plain = client.embeddings.create(model=pooling, input=TEXTS)
        floats = client.embeddings.create(model=pooling, input=TEXTS, encoding_format="float")
        short = client.embeddings.create(model=pooling, input=[[1, 2], [3]], dimensions=5)
    wanted = embed(embedder, TEXTS)
    for response in (plain, floats):
        assert [datum.index for datum in response.data] == list(range(len(TEXTS)))
        np.testing.assert_allclose([d.embedding for d in response.data], wanted, atol=2e-6)
        size = sum(map(len, embedder.prepare(Embed("r", tuple(TEXTS)))))
        assert response.usage.prompt_tokens == response.usage.total_tokens == size
        assert response.model == pooling
    np.testing.assert_allclose(
        [datum.embedding for datum in short.data],
        embed(embedder, [[1, 2], [3]], dimensions=5),
        atol=2e-6,
    )


def test_the_workers_refusals(server: Server) -> None:
    for body, code, param in (
        ({"model": "plain", "input": "a"}, "unsupported_value", "model"),
        ({"model": "lasttoken", "input": "a", "dimensions": 65}, "invalid_value", "dimensions"),
        ({"model": "lasttoken", "input": [99999]}, "invalid_value", "input"),
        ({"model": "lasttoken", "input": "a" * 9000}, "context_length_exceeded", "input"),
        ({"model": "absent", "input": "a"}, "model_not_found", None),
    ):
        answer = server.request("POST", "/v1/embeddings", body)
        assert answer.status == (404 if code == "model_not_found" else 400)
        error = answer.json["error"]
        assert (error["code"], error["param"]) == (code, param) or code == "model_not_found"
    assert not any(entry["deaths"] for entry in server.health()["cached_models"])


def test_chats_and_embeddings_share_a_worker(server: Server) -> None:
    """A chat goes on while a long request for embeddings runs on the same worker."""
    alone = server.chat("lasttoken", max_tokens=40).text
    many = {"model": "lasttoken", "input": [[1 + i % 250] * 500 for i in range(16)]}
    stream = server.stream("lasttoken", max_tokens=40)
    stream.saw("data: ")
    answer = server.request("POST", "/embeddings", many)
    assert stream.answer().text == alone
    assert len(answer.json["data"]) == 16
