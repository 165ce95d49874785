"""A crash the client never sees: workers die, and every answer is what it would have been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.engine import Script, text_of
from tests.serving import Answer, Server, serving
from tests.tiny import make_llama

CONFIG = """
[server]
port = 0
[models.calm]
source = "{source}"
[models.stormy]
source = "{source}"
env = {{ {env} }}
"""
POISON = 7
TEXT = {"prompt": "Tell me", "max_tokens": 60, "ignore_eos": True}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {**TEXT, "temperature": 0},
    "seeded": {**TEXT, "temperature": 0.9, "seed": 7},
    "several": {**TEXT, "temperature": 0.9, "seed": 3, "n": 3},
    "stops": {**TEXT, "temperature": 0.9, "seed": 5, "stop": ["zq", "\u00e9"]},
    "logprobs": {**TEXT, "temperature": 0.9, "seed": 7, "logprobs": 2},
    "echo": {**TEXT, "temperature": 0.9, "seed": 11, "echo": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model") / "m", seed=5)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def config(model: Path, more: str = "", **env: str) -> str:
    table = ", ".join(f'{key} = "{value}"' for key, value in env.items())
    return CONFIG.format(source=model, env=table) + more


def complete(server: Server, model: str, **body: Any) -> Answer:
    return server.request("POST", "/v1/completions", {"model": model, **body})


def choices(answer: Answer) -> Any:
    """All that an answer says of its choices and its usage, streamed or not."""
    assert answer.status == 200, answer.body
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["choices"], answer.json["usage"]
    assert answer.events[-1] == "[DONE]", answer.events[-1]
    chunks = [json.loads(event) for event in answer.events[:-1]]
    of: dict[int, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            of.setdefault(choice["index"], []).append(choice)
    return of, chunks[-1].get("usage")


def test_nobody_notices_four_deaths(
    model: Path, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Requests of every kind, streamed and not, in a worker that dies in their midst, is stopped
    while they stand trial, dies while it loads, and holds the interpreter's lock for ever."""
    asked = [
        {
            **kind,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        for kind in KINDS.values()
        for stream in (False, True)
    ]
    ends = {"FAKE_DEATHS": "150 40 0 500", "FAKE_ENDS": "abort stop abort hog"}
    stall = "[recovery]\nstall_seconds = 1\n"
    with serving(tmp_path, scripted=True, config=config(model, stall, **ends)) as server:
        calm = list(threads.map(lambda body: complete(server, "calm", **body), asked))
        stormy = list(threads.map(lambda body: complete(server, "stormy", **body), asked))
        assert server.wait_for("stormy")["deaths"] == 4
        assert server.wait_for("calm")["deaths"] == 0
        log = server.log()
    for body, quiet, cut in zip(asked, calm, stormy, strict=True):
        assert choices(cut) == choices(quiet), body
    told = [answer for answer in stormy if "x-bulkhead-recoveries" in answer.headers]
    comments = [answer for answer in stormy if b": recoveries " in answer.body]
    assert told or comments
    for answer in comments:
        assert answer.body.rindex(b": recoveries ") < answer.body.index(b"data: [DONE]")
    stalled = [f"worker stormy#{n} has stalled and is killed" in log for n in range(1, 6)]
    assert stalled == [False, True, False, True, False]
    # Who could say where it was has said it, all but the stopped one.
    stderr = [file.read_text() for file in sorted((tmp_path / "logs").glob("*stormy*.stderr"))]
    assert ["in end" in said for said in stderr] == [True, False, False, True, False]


@pytest.mark.parametrize("depth", [0, 20])
def test_the_request_that_kills_is_found_and_the_others_complete(
    model: Path, tmp_path: Path, threads: ThreadPoolExecutor, depth: int
) -> None:
    bodies = [
        {"prompt": [40 + n, 41, 42], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        for n in range(15)
    ]
    poison = {**bodies[0], "prompt": [50, POISON, 51]}
    bodies.insert(6, poison)
    env = config(model, FAKE_POISON=f"{POISON} {depth}")
    with serving(tmp_path, scripted=True, config=env) as server:
        calm = list(threads.map(lambda body: complete(server, "calm", **body), bodies))
        got = list(threads.map(lambda body: complete(server, "stormy", **body), bodies))
        assert server.wait_for("stormy")["deaths"] == 3
        assert got[6].status == 422, got[6].body
        assert got[6].json["error"]["code"] == "request_crashed_worker"
        assert got[6].headers["x-should-retry"] == "false"
        for quiet, answer in zip(calm[:6] + calm[7:], got[:6] + got[7:], strict=True):
            assert choices(answer) == choices(quiet)
        again = complete(server, "stormy", **poison)
        assert again.status == 422
        assert server.wait_for("stormy")["deaths"] == 3
    # The verdict outlives the server.
    with serving(tmp_path, scripted=True, config=env) as server:
        assert complete(server, "stormy", **poison).status == 422
        assert choices(complete(server, "stormy", **bodies[0])) == choices(calm[0])


def test_the_sdk_sees_nothing(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, scripted=True, config=config(model, FAKE_DEATHS="20")) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        with client:
            texts = []
            for name in ("calm", "stormy"):
                stream = client.chat.completions.create(
                    model=name,
                    messages=[{"role": "user", "content": "hello"}],
                    max_tokens=50,
                    temperature=0,
                    stream=True,
                )
                texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
        assert texts[0] == texts[1]
        assert server.wait_for("stormy")["deaths"] == 1


def test_replay_mode_runs_again_what_had_no_token(model: Path, tmp_path: Path) -> None:
    mode = '[recovery]\nmode = "replay"\n'
    env = config(model, mode, FAKE_DEATHS="0 30")
    with serving(tmp_path, scripted=True, config=env) as server:
        answer = complete(server, "stormy", **KINDS["greedy"])
        assert answer.status == 503
        assert answer.json["error"]["code"] == "worker_crashed"
        quiet = complete(server, "calm", **KINDS["greedy"])
        assert choices(complete(server, "stormy", **KINDS["greedy"])) == choices(quiet)


def test_a_model_that_makes_tokens_between_its_deaths_is_not_left_alone(tmp_path: Path) -> None:
    """However soon after them it dies."""
    folder = Script().write(tmp_path / "m")
    deaths = config(folder, FAKE_DEATHS="20 20 20 20")
    with serving(tmp_path / "s", scripted=True, config=deaths) as server:
        assert server.chat("stormy", max_tokens=100).text == text_of(100)
        assert server.wait_for("stormy")["deaths"] == 4


def test_a_model_that_always_dies_is_left_alone_for_a_while(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, scripted=True, config=config(model, FAKE_DEATHS="0 0 0")) as server:
        answer = complete(server, "stormy", **KINDS["greedy"])
        assert answer.status == 503
        assert answer.json["error"]["code"] == "model_unavailable"
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        # Asked by hand it is tried at once, and lives this time.
        assert server.request("POST", "/admin/models/stormy/load").status == 200
        assert complete(server, "stormy", **KINDS["greedy"]).status == 200
