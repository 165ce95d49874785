"""A real server with real models, used with the real openai SDK."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.helpers.serving import DEADLINE, ROOT, Server, serving
from tests.helpers.tiny_llama import make_llama

PROMPTS = [f"Tell me about number {number}" for number in range(8)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = f"""
[server]
port = 0
default_model = "tiny"
max_body = "1MB"
[recovery]
mode = "off"
[models.tiny]
source = "{tiny}"
aliases = ["small"]
[models."org/demo:latest"]
source = "demo"
[models.demo2]
source = "demo"
[models.narrow]
source = "{tiny}"
context = 64
"""
    with serving(tmp_path_factory.mktemp("state"), config=config) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=DEADLINE
    ) as made:
        yield made


def whole(client: openai.OpenAI, prompt: str, **more: Any) -> str:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        **{"max_tokens": 32, **more},
    )
    return answer.choices[0].message.content or ""


def reference(folder: Path, prompt: str, max_tokens: int) -> str:
    """What mlx-lm's own generate says, in a process of its own."""
    script = (
        "import sys; from mlx_lm import load, generate\n"
        "model, tokenizer = load(sys.argv[1])\n"
        "messages = [{'role': 'user', 'content': sys.argv[2]}]\n"
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)\n"
        "text = generate(model, tokenizer, prompt, max_tokens=int(sys.argv[3]))\n"
        "sys.stdout.buffer.write(text.encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), prompt, str(max_tokens)],
        capture_output=True,
        cwd=ROOT,
        timeout=DEADLINE,
        check=True,
    )
    return done.stdout.decode()


def test_answer_has_openais_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_text_is_mlx_lms(client: openai.OpenAI, tiny: Path) -> None:
    ours = whole(client, PROMPTS[0], max_tokens=64)
    assert len(set(ours)) >= 20
    assert ours == reference(tiny, PROMPTS[0], 64)


def test_stream_says_the_same_one_chunk_a_token(client: openai.OpenAI) -> None:
    said = whole(client, PROMPTS[1])
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPTS[1]}],
        temperature=0,
        max_tokens=32,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 32
    *tokens, last = chunks[:-1]
    assert len(tokens) == 32
    assert "".join(chunk.choices[0].delta.content or "" for chunk in tokens) == said
    assert last.choices[0].finish_reason == "length"
    assert [chunk.choices[0].delta.role for chunk in tokens] == ["assistant"] + [None] * 31
    assert len({chunk.id for chunk in chunks}) == 1


def test_batched_equals_alone(server: Server, client: openai.OpenAI) -> None:
    alone = [whole(client, prompt) for prompt in PROMPTS]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=DEADLINE
        ) as many:
            answers = await asyncio.gather(
                *(
                    many.chat.completions.create(
                        model="tiny",
                        messages=[{"role": "user", "content": prompt}],
                        temperature=0,
                        max_tokens=32,
                    )
                    for prompt in PROMPTS
                )
            )
        return [answer.choices[0].message.content or "" for answer in answers]

    assert asyncio.run(together()) == alone
    assert len(set(alone)) == len(PROMPTS)


def test_stop_strings_match_text(client: openai.OpenAI) -> None:
    said = whole(client, PROMPTS[2], max_tokens=64)
    stop = said[20:23]
    at = said.index(stop)
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPTS[2]}],
        temperature=0,
        max_tokens=64,
        stop=["never seen", stop],
    )
    assert answer.choices[0].message.content == said[:at]
    assert answer.choices[0].finish_reason == "stop"


FORWARD = """
import json, sys
import mlx.core as mx
from mlx_lm import load
model, _ = load(sys.argv[1])
told = []
for ids in json.loads(sys.argv[2]):
    logits = model(mx.array([ids]))[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    following = [logprobs[at, token].item() for at, token in enumerate(ids[1:])]
    told.append([following, mx.argmax(logits, axis=-1).tolist()])
json.dump(told, sys.stdout)
"""


def forward(folder: Path, prompts: Sequence[Sequence[int]]) -> list[tuple[list[float], list[int]]]:
    """By a forward pass of mlx-lm's in a process of its own: of each prompt, what its tokens but
    the first score, and which token is likeliest after each."""
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, str(folder), json.dumps(prompts)],
        capture_output=True,
        cwd=ROOT,
        timeout=DEADLINE,
        check=True,
    )
    return [(values, likeliest) for values, likeliest in json.loads(done.stdout)]


def test_a_harness_gets_the_figures_of_a_forward_pass(server: Server, tiny: Path) -> None:
    """The request and the reading are lm-eval's: its `local-completions` asks for a token more than
    it wants, leaves out the last entry, and compares a token's value with the greatest."""
    prompts = [[7, 8, 9, 10, 11], [50, 51, 52], [65 + at % 40 for at in range(700)]]
    # A continuation that is the likeliest one.
    prompts[1].append(forward(tiny, prompts[1:2])[0][1][-1])
    lengths = [2, 3, 400]
    body = {
        "model": "tiny",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = server.request("POST", "/v1/completions", body)
    assert answer.status == 200, answer.body
    scored = []
    for choice, length in zip(answer.json["choices"], lengths, strict=True):
        values = choice["logprobs"]["token_logprobs"][length:-1]
        top = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = [value == max(most.values()) for value, most in zip(values, top, strict=True)]
        scored.append((sum(values), all(greedy)))

    expected = []
    for ids, length, (values, likeliest) in zip(
        prompts, lengths, forward(tiny, prompts), strict=True
    ):
        expected.append(
            (
                pytest.approx(sum(values[length - 1 :]), rel=1e-5),
                ids[length:] == likeliest[length - 1 : -1],
            )
        )
    assert scored == expected
    assert [greedy for _, greedy in scored] == [False, True, False]
    # Without output, and as a stream, it is the same.
    alone = server.request("POST", "/v1/completions", {**body, "max_tokens": 0})
    streamed = server.request(
        "POST", "/v1/completions", {**body, "max_tokens": 0, "prompt": prompts[2], "stream": True}
    )
    chunks = [json.loads(event)["choices"][0] for event in streamed.events[:-1]]
    pieces = [chunk["logprobs"]["token_logprobs"] for chunk in chunks if chunk["logprobs"]]
    assert len(pieces) > 2
    told = [choice["logprobs"]["token_logprobs"] for choice in answer.json["choices"]]
    assert [values[0] for values in (*told, pieces[0])] == [None] * 4
    assert [choice["logprobs"]["token_logprobs"][1:] for choice in alone.json["choices"]] == [
        pytest.approx(values[1:-1], rel=1e-4) for values in told
    ]
    joined = [value for piece in pieces for value in piece]
    assert joined[1:] == pytest.approx(told[2][1:-1], rel=1e-4)
    assert {choice["finish_reason"] for choice in alone.json["choices"]} == {"length"}
    assert alone.json["usage"]["completion_tokens"] == 0


def test_legacy_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=8, temperature=0
    )
    assert answer.object == "text_completion"
    said = answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("Once upon a time")
    chunks = client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == said


def test_sampling_parameters_are_obeyed(client: openai.OpenAI) -> None:
    greedy = whole(client, PROMPTS[3])
    # Nothing but the most likely token is left to sample from.
    assert whole(client, PROMPTS[3], top_p=1e-9, extra_body={"temperature": 1.5}) == greedy
    sampled = {whole(client, PROMPTS[3], extra_body={"temperature": 1.5}) for _ in range(3)}
    assert len(sampled) > 1


@pytest.mark.parametrize("cold", [{"temperature": 1e-40}, {"temperature": 1.5, "top_p": 0}])
def test_the_coldest_sampling_is_greedy(client: openai.OpenAI, cold: dict[str, Any]) -> None:
    assert whole(client, PROMPTS[3], extra_body=cold) == whole(client, PROMPTS[3])


def test_a_prompt_that_can_not_fit_is_refused_before_it_is_tokenized(server: Server) -> None:
    answer = server.chat("narrow", "x" * 900_000)
    assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
    assert "characters" in answer.json["error"]["message"]


def test_generation_config_is_the_default(client: openai.OpenAI) -> None:
    """The model's makers said `do_sample: false`; a request that says nothing gets that."""
    messages: Any = [{"role": "user", "content": PROMPTS[4]}]
    first, second = (
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=32)
        for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def test_context_is_enforced_and_bounds_the_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="narrow", messages=[{"role": "user", "content": "x" * 100}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    body: Any = caught.value.body
    assert body["message"].startswith("This model's maximum context length is 64 tokens. However,")
    answer = client.chat.completions.create(
        model="narrow",
        messages=[{"role": "user", "content": "x" * 10}],
        extra_body={"ignore_eos": True},
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 64
    assert answer.choices[0].finish_reason == "length"


def test_headers(server: Server) -> None:
    answer = server.chat("tiny", max_tokens=1)
    assert answer.headers["x-bulkhead-model"] == "tiny"
    assert answer.headers["x-bulkhead-worker"] == "tiny#1"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["x-request-id"].startswith("req-")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    mine = server.request("POST", "/chat/completions", body, {"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"
    bad = server.request("POST", "/chat/completions", body, {"x-request-id": "no spaces!"})
    assert bad.headers["x-request-id"].startswith("req-")


def test_default_model(server: Server) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    for named in ({}, {"model": "default_model"}, {"model": "tiny:latest"}, {"model": None}):
        answer = server.request("POST", "/v1/chat/completions", {**body, **named})
        assert (answer.status, answer.json["model"]) == (200, "tiny")


def test_demo_under_two_names(server: Server, client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "What port does Bulkhead listen on?"}],
            temperature=0,
        )
        for name in ("org/demo:latest", "demo2")
    ]
    first, second = (answer.choices[0].message.content for answer in answers)
    assert first == second
    assert "11435" in (first or "")
    assert [answer.choices[0].finish_reason for answer in answers] == ["stop", "stop"]
    workers = {server.loaded(name)["pid"] for name in ("org/demo:latest", "demo2")}
    assert len(workers) == 2


def test_models(server: Server, client: openai.OpenAI) -> None:
    names = ["tiny", "org/demo:latest", "demo2", "narrow"]
    assert [model.id for model in client.models.list()] == names
    assert client.models.retrieve("small").id == "tiny"
    listed = server.request("GET", "/v1/models").json["data"]
    told = {model["id"]: (model["aliases"], model["context_length"]) for model in listed}
    assert told["tiny"][0] == ["small"]
    assert told["narrow"][1] == server.request("GET", "/v1/models/narrow").json["max_model_len"]
    assert all(context for _, context in told.values())  # no worker needed
    server.chat("tiny", max_tokens=1)
    assert server.request("GET", "/v1/models/small").json["state"] == "ready"
    for path in ("/v1/models/org/demo:latest", "/models/org%2Fdemo%3Alatest", "/models/org/demo"):
        found = server.request("GET", path)
        if path.endswith("org/demo"):  # only a request's suffix is dropped, never one added
            assert found.status == 404
        else:
            assert found.json["id"] == "org/demo:latest"


def test_health_and_root(server: Server) -> None:
    server.chat("tiny", max_tokens=1)
    for path in ("/health", "/"):
        answer = server.request("GET", path)
        assert answer.status == 200
        report = answer.json
        assert report["status"] == "ok"
        assert set(report["memory"]) == {
            "budget_bytes",
            "charged_bytes",
            "reserved_bytes",
            "physical_bytes",
            "limited_by",
            "used_percent",
            "level",
            "stranded_bytes",
            "advice",
            "spare",
            "counter",
        }
        assert report["memory"]["spare"] == "off"
        (entry,) = [entry for entry in report["cached_models"] if entry["name"] == "tiny"]
        assert entry["state"] == "ready"
        assert entry["use_count"] >= 1
        assert entry["memory_bytes"] > 1_000_000
        assert entry["load_time_seconds"] > 0
        assert "+" in entry["loaded_at"]
        assert {model["name"] for model in report["models"]} >= {"tiny", "narrow"}


def test_listing_needs_no_worker(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path / "s", "--model", f"a={tiny}") as fresh:
        assert [model["id"] for model in fresh.request("GET", "/v1/models").json["data"]] == ["a"]
        assert fresh.health()["cached_models"] == []
        assert [kind for kind in fresh.health()["models"] if kind["state"] != "cold"] == []


def test_hugging_face_cache_is_served_when_nothing_is_named(tmp_path: Path, tiny: Path) -> None:
    repo = tmp_path / "hub/models--org--tiny"
    revision = "0123456789abcdef0123456789abcdef01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(revision)
    shutil.copytree(tiny, repo / "snapshots" / revision)
    with serving(tmp_path / "s", environ={"HF_HUB_CACHE": str(tmp_path / "hub")}) as found:
        names = [model["id"] for model in found.request("GET", "/v1/models").json["data"]]
        assert names == ["demo", "org/tiny"]
        answer = found.chat("org/tiny", PROMPTS[0], max_tokens=3)
        assert (answer.status, answer.json["usage"]["completion_tokens"]) == (200, 3)


def test_killing_a_real_model(server: Server) -> None:
    """The same as in test_crashing, once with weights and MLX."""
    before = server.chat("demo2", "hello", temperature=0).text
    running = server.stream("tiny", max_tokens=4000, ignore_eos=True)
    running.saw("data: ")
    entry = server.loaded("tiny")
    os.kill(entry["pid"], signal.SIGABRT)
    answer = running.answer()
    error = json.loads(answer.events[-1])["error"]
    assert (error["type"], error["code"]) == ("server_error", "worker_crashed")
    assert "SIGABRT" in error["message"]
    assert server.chat("demo2", "hello", temperature=0).text == before
    assert server.chat("tiny", max_tokens=2).headers["x-bulkhead-worker"] == "tiny#2"


def test_sdk_sees_typed_errors(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    stream = client.chat.completions.create(
        model="demo2",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    os.kill(server.loaded("demo2")["pid"], signal.SIGKILL)
    with pytest.raises(openai.APIError) as died:
        list(stream)
    assert died.value.code == "worker_crashed"


def test_sdk_retries_a_crash_by_itself(server: Server, tmp_path: Path, tiny: Path) -> None:
    """The default client of a user: the crash before the first byte is a 503 that it retries."""
    from tests.helpers.fakes.engine import Script, text_of

    model = Script(deeds={"prefill": "abort"}).write(tmp_path / "m")
    config = f'[server]\nport = 0\n[models.m]\nsource = "{model}"\n'
    with (
        serving(tmp_path / "s", scripted=True, config=config) as crashing,
        openai.OpenAI(base_url=f"{crashing.url}/v1", api_key="unused", timeout=DEADLINE) as user,
    ):
        answer = user.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], max_tokens=3
        )
        assert answer.choices[0].message.content == text_of(3)
        assert crashing.loaded("m")["generation"] == 2
