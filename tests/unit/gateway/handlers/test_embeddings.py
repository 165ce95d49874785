"""gateway.handlers.embeddings: scripted answers, and a worker's as the openai SDK reads them."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import openai
import pytest
from aiohttp.test_utils import TestClient, TestServer

from gateway import app as gateway_app
from gateway.handlers.common import RELAY
from supervisor.config.schema import ServerSettings
from supervisor.errors import WorkerCrashed
from supervisor.wire.frames import Embed, Embedded, Vector
from tests.helpers.embedder import POOLINGS, TEXTS, embed, make_embeddings, start
from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_llama import make_llama


class Scripted:
    """Stands in for the relay and for the generation that it starts."""

    model, worker = "tiny/é", "tiny#1"

    def __init__(self, frames: Sequence[Any]) -> None:
        self._frames = iter(frames)
        self.requests: list[Embed] = []
        self.recoveries = 0
        self.asked = ""
        self.keep_alive: float | None = None
        self.closed = False

    async def start(
        self, request: Embed, model: str, hold: float, digest: bytes, keep_alive: float | None
    ) -> Scripted:
        self.requests.append(request)
        self.keep_alive = keep_alive
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


def posted(relay: Scripted, body: dict[str, Any], path: str = "/v1/embeddings") -> Answer:
    """The gateway's answer when the worker says what `relay` holds."""

    async def play() -> Answer:
        app = gateway_app.build(ServerSettings(), "/no/such/socket")
        app[RELAY] = cast(Any, relay)
        async with TestClient(TestServer(app)) as client:
            response = await client.post(path, json=body)
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


# ── with a worker ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_embeddings(tmp_path_factory.mktemp("embedding"))


@pytest.fixture(params=POOLINGS)
def pooling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
