"""A crash the client never sees: workers die, and every answer is what it would have been."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.chaos.traffic import said
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.responses import read_events, without_ids
from tests.helpers.serving import Answer, Server, serving
from tests.helpers.tiny_llama import make_llama

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


def deaths(server: Server) -> int:
    """Of the model that dies, loaded or not."""
    known = {model["name"]: model["deaths"] for model in server.health()["models"]}
    return int(known["stormy"])


def test_nobody_notices_four_deaths(
    model: Path, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Requests of every kind, streamed and not, in a worker that dies in their midst, is stopped
    while they are on probation, dies while it loads, and holds the interpreter's lock for ever."""
    asked = [
        {
            **kind,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        for kind in KINDS.values()
        for stream in (False, True)
    ]
    ends = {"FAKE_DEATHS": "150 40 0", "FAKE_ENDS": "abort stop abort"}
    stall = "[recovery]\nstall_seconds = 3\n"
    with serving(tmp_path, scripted=True, config=config(model, stall, **ends)) as server:
        calm = list(threads.map(lambda body: complete(server, "calm", **body), asked))
        stormy = list(threads.map(lambda body: complete(server, "stormy", **body), asked))
        assert deaths(server) == 3
        log = server.log()
    for body, quiet, cut in zip(asked, calm, stormy, strict=True):
        assert said(cut) == said(quiet), body
    told = [answer for answer in stormy if "x-bulkhead-recoveries" in answer.headers]
    comments = [answer for answer in stormy if b": recoveries " in answer.body]
    assert told or comments
    for answer in comments:
        assert answer.body.rindex(b": recoveries ") < answer.body.index(b"data: [DONE]")
    stalled = [f"worker stormy#{n} has stalled and is killed" in log for n in range(1, 5)]
    assert stalled == [False, True, False, False]
    # Who could say where it was has said it, all but the stopped one.
    stderr = [file.read_text() for file in sorted((tmp_path / "logs").glob("*stormy*.stderr"))]
    assert ["in end" in said for said in stderr] == [True, False, False, False]


def test_nobody_notices_in_anthropics_form(tmp_path: Path) -> None:
    """Blocks are announced once, their numbers go on, and the text is what it would have been."""
    body = {
        "max_tokens": 60,
        "temperature": 0,
        "stream": True,
        "messages": [
            {"role": "user", "content": "What is Bulkhead?"},
            {"role": "assistant", "content": "Bulkhead is"},
        ],
    }
    ends = {"FAKE_DEATHS": "12", "FAKE_ENDS": "abort"}
    with serving(tmp_path, scripted=True, config=config(Path("demo"), **ends)) as server:
        calm, stormy = (
            server.request("POST", "/v1/messages", {**body, "model": name})
            for name in ("calm", "stormy")
        )
        assert deaths(server) == 1
    assert b": recoveries 1\n\n" in stormy.body
    told = [
        [
            json.loads(line.removeprefix("data: "))
            for line in answer.body.decode().split("\n")
            if line.startswith("data: ")
        ]
        for answer in (calm, stormy)
    ]
    for events in told:
        del events[0]["message"]["id"], events[0]["message"]["model"]
    # Who waits is pinged.
    quiet, cut = ([each for each in events if each["type"] != "ping"] for events in told)
    assert cut == quiet
    assert len(cut) > 20


def test_responses_go_on_with_their_numbers_and_ids(model: Path, tmp_path: Path) -> None:
    """Events of a response whose worker dies twice are those of one whose worker lives."""
    asked = {"input": "Tell me", "max_output_tokens": 60, "ignore_eos": True, "stream": True}
    env = config(model, FAKE_DEATHS="20 20")
    with serving(tmp_path, scripted=True, config=env) as server:
        calm, stormy = (
            server.request("POST", "/v1/responses", {"model": name, "temperature": 0, **asked})
            for name in ("calm", "stormy")
        )
        assert deaths(server) == 2
    assert b": recoveries 2\n\n" in stormy.body
    quiet, cut = read_events(calm.body), read_events(stormy.body)
    for events in (quiet, cut):
        ids = [event["item_id"] for event in events if "item_id" in event]
        assert len(set(ids)) == 1
        for event in events:
            event.get("response", {}).pop("model", None)
            event.get("response", {}).pop("created_at", None)
            event.get("response", {}).pop("completed_at", None)
    assert without_ids(cut) == without_ids(quiet)


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_what_a_prompt_scores_is_told_once(model: Path, tmp_path: Path, max_tokens: int) -> None:
    """The worker dies with a part of the prompt told, and the next one goes on behind it."""
    body: dict[str, Any] = {
        "prompt": "scored, and longer than a step of the prefill. " * 30,
        "max_tokens": max_tokens,
        "echo": True,
        "logprobs": 1,
        "stream": True,
    }
    with serving(tmp_path, scripted=True, config=config(model, FAKE_DEATHS="600")) as server:
        calm = complete(server, "calm", **body)
        stormy = complete(server, "stormy", **body)
        assert deaths(server) == 1
    assert said(stormy) == said(calm)
    assert b": recoveries 1" in stormy.body
    tokens, *_ = (
        [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["tokens"]]
        for chunks in said(stormy)[0].values()
    )
    assert "".join(tokens)[: len(body["prompt"])] == body["prompt"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A scripted model: what it says is known beforehand."""
    return Script(generations=()).write(tmp_path / "words")


@pytest.mark.parametrize("depth", [0, 20])
def test_the_request_that_kills_is_found_and_the_others_complete(
    words: Path, tmp_path: Path, threads: ThreadPoolExecutor, depth: int
) -> None:
    bodies = [{"prompt": [40 + n, 41, 42], "max_tokens": 60} for n in range(15)]
    poison = {**bodies[0], "prompt": [50, POISON, 51]}
    bodies.insert(6, poison)
    env = config(words, FAKE_POISON=f"{POISON} {depth}")
    with serving(tmp_path / "s", scripted=True, config=env) as server:
        got = list(threads.map(lambda body: complete(server, "stormy", **body), bodies))
        died = deaths(server)
        assert died <= 4
        killer = got.pop(6)
        assert killer.status == 422, killer.body
        assert killer.json["error"]["code"] == "request_crashed_worker"
        assert killer.headers["x-should-retry"] == "false"
        texts = [said(answer)[0][0]["text"] for answer in got]
        assert texts == [text_of(60)] * 15
        again = complete(server, "stormy", **poison)
        assert again.status == 422
        assert deaths(server) == died
    # The quarantine outlives the server.
    with serving(tmp_path / "s", scripted=True, config=env) as server:
        assert complete(server, "stormy", **poison).status == 422
        assert complete(server, "stormy", **bodies[0]).status == 200


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"FAKE_ROWS_MAX": "3", "FAKE_ENDS": "memory"}, 1),
        ({"FAKE_ROWS_MAX": "3"}, 2),
        ({"FAKE_TOKENS_MAX": "250", "FAKE_ENDS": "memory"}, 1),
    ],
    ids=["rows", "rows, of an unknown cause", "tokens"],
)
def test_a_crowd_that_is_too_large_comes_back_as_a_smaller_one(
    words: Path, tmp_path: Path, threads: ThreadPoolExecutor, limits: dict[str, str], most: int
) -> None:
    """Whether the worker says that it lacks memory or not."""
    bodies = [{"prompt": [40 + n, 41, 42], "max_tokens": 60} for n in range(6)]
    ends = {name: f"{end} " * 9 for name, end in limits.items() if name == "FAKE_ENDS"}
    env = {**limits, **ends, "FAKE_CROWD": str(len(bodies))}
    with serving(tmp_path / "s", scripted=True, config=config(words, **env)) as server:
        got = list(threads.map(lambda body: complete(server, "stormy", **body), bodies))
        assert [said(answer)[0][0]["text"] for answer in got] == [text_of(60)] * 6
        assert 1 <= deaths(server) <= most


def test_a_hold_that_is_too_short_for_all_prefills_loses_nobody(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """Prompts that take 3.2 s together, one after another, and a hold of a quarter of that."""
    slow = Script(prefill_steps=4, step_seconds=0.1, generations=()).write(tmp_path / "slow")
    settings = config(slow, FAKE_DEATHS="100").replace("port = 0", "port = 0\nhold_seconds = 0.8")
    with serving(tmp_path / "s", scripted=True, config=settings) as server:
        server.request("POST", "/admin/models/stormy/load")
        server.wait_for("stormy", state="ready")
        bodies = [{"prompt": [40 + n, 41, 42], "max_tokens": 60} for n in range(8)]
        got = list(threads.map(lambda body: complete(server, "stormy", **body), bodies))
        assert [said(answer)[0][0]["text"] for answer in got] == [text_of(60)] * 8
        assert deaths(server) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_sees_nothing(words: Path, tmp_path: Path, stream: bool) -> None:
    env = config(words, FAKE_DEATHS="20")
    with (
        serving(tmp_path / "s", scripted=True, config=env) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        asked: Any = {"role": "user", "content": "hello"}
        answer: Any = client.chat.completions.create(
            model="stormy", messages=[asked], max_tokens=50, stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            text = answer.choices[0].message.content
        assert text == text_of(50)
        assert deaths(server) == 1


def test_replay_mode_runs_again_what_had_no_token(words: Path, tmp_path: Path) -> None:
    mode = '[recovery]\nmode = "replay"\n'
    env = config(words, mode, FAKE_DEATHS="0 30")
    body = {"prompt": "x", "max_tokens": 60}
    with serving(tmp_path / "s", scripted=True, config=env) as server:
        answer = complete(server, "stormy", **body)
        assert answer.status == 503
        assert answer.json["error"]["code"] == "worker_crashed"
        assert said(complete(server, "stormy", **body))[0][0]["text"] == text_of(60)


def test_a_model_that_always_dies_is_left_alone_for_a_while(words: Path, tmp_path: Path) -> None:
    env = config(words, FAKE_DEATHS="0 0 0")
    with serving(tmp_path / "s", scripted=True, config=env) as server:
        answer = complete(server, "stormy", prompt="x")
        assert answer.status == 503
        assert answer.json["error"]["code"] == "model_unavailable"
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        # Asked by hand it is tried at once, and lives this time.
        assert server.request("POST", "/admin/models/stormy/load").status == 200
        assert complete(server, "stormy", prompt="x").status == 200


FALLBACK = """
[server]
port = 0
[models.first]
source = "{first}"
fallback = "second"
env = {{ FAKE_DEATHS = "{deaths}" }}
[models.second]
source = "{second}"
"""


@pytest.mark.parametrize(("deaths", "deed"), [("0 0 0", ""), ("- -", "unloadable")])
def test_a_fallback_serves_what_is_unavailable_and_says_so(
    words: Path, tmp_path: Path, deaths: str, deed: str
) -> None:
    """A silent fallback once let its user believe for days that the large model answered."""
    first = Script(deeds={"load": deed} if deed else {}).write(tmp_path / "first")
    config = FALLBACK.format(first=first, second=words, deaths=deaths)
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        for _ in range(2):  # the one that finds out, and one that comes later
            answer = server.chat("first", max_tokens=5)
            assert answer.text == text_of(5)
            assert answer.json["model"] == "second"
            assert answer.headers["x-bulkhead-model"] == "second"
            assert answer.headers["x-bulkhead-fallback"] == "first"
        assert "asked for first and is served by its fallback second" in server.log()
        assert "x-bulkhead-fallback" not in server.chat("second", max_tokens=1).headers


def test_a_fallback_does_not_serve_what_merely_loads(words: Path, tmp_path: Path) -> None:
    config = FALLBACK.format(first=words, second=words, deaths="0")
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        answer = server.chat("first", max_tokens=5)
        assert answer.headers["x-bulkhead-worker"] == "first#2"
        assert "x-bulkhead-fallback" not in answer.headers
