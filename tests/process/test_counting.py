"""Counting tokens: as many as a worker counts, without one, and whatever becomes of the process."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.openai.chat import parse_chat
from gateway.relay.client import Relay
from supervisor.errors import BulkheadError
from supervisor.wire.frames import Chat
from tests.helpers.dialects import TOOLS
from tests.helpers.serving import Deadline, Server, alive, serving
from tests.helpers.strict_templates import GEMMA_2
from tests.helpers.tiny_llama import make_llama
from tests.unit.worker.engine.test_mlx_lm_tokenizers import WITH_TOOLS

HI = Chat([{"role": "user", "content": "hi"}])
LONG = Chat([{"role": "user", "content": "All of it, again and again. " * 40_000}])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models that differ in their templates alone."""
    root = tmp_path_factory.mktemp("counting")
    made = make_llama(root / "tiny")
    for name, template in (("tools", WITH_TOOLS), ("strict", GEMMA_2)):
        folder = shutil.copytree(made, root / name)
        (folder / "chat_template.jinja").write_text(template)
    return root


def config_for(files: Path) -> str:
    tables = "".join(
        f'[models.{name}]\nsource = "{files / name}"\naliases = ["{name}-alias"]\n'
        for name in ("tiny", "tools", "strict")
    )
    return f"[server]\nport = 0\n[recovery]\nstall_seconds = 2\n{tables}"


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("state") / "s"
    with serving(state, scripted=True, config=config_for(files)) as running:
        yield running
        running.see_children()


def relaying(server: Server, story: Callable[[Relay], Awaitable[None]]) -> None:
    """With a relay of the test's own: to the supervisor it is a gateway's."""

    async def whole() -> None:
        relay = Relay(str(server.state / "run" / "control.sock"))
        try:
            await story(relay)
        finally:
            await relay.close()

    asyncio.run(whole())


def count(server: Server, model: str, chat: Chat = HI) -> int:
    counted: list[int] = []

    async def story(relay: Relay) -> None:
        counted.append(await relay.count(chat, model, time.time()))

    relaying(server, story)
    return counted[0]


def refused(server: Server, model: str, chat: Chat = HI) -> BulkheadError:
    with pytest.raises(BulkheadError) as caught:
        count(server, model, chat)
    return caught.value


def counter(server: Server) -> int:
    """The pid of the process that counts; 0 = there is none."""
    server.see_children()
    children = json.loads((server.state / "children.json").read_text())["children"]
    return next((child["pid"] for child in children if child["role"] == "counter"), 0)


def crashes(server: Server) -> list[Any]:
    found = server.request("GET", "/admin/crashes").json["crashes"]
    return [crash for crash in found if crash["process"] == "counter"]


def test_counting_loads_no_model_and_a_worker_counts_the_same(server: Server) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    user = {"role": "user", "content": "héllo 模 <|end|>"}
    bodies: list[dict[str, Any]] = [
        {"model": "tiny", "messages": [user]},
        {"model": "tools", "messages": [user], "tools": TOOLS, "tool_choice": "none"},
        {
            "model": "tools-alias",
            "messages": [
                user,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "42"},
            ],
            "tools": TOOLS,
            "chat_template_kwargs": {"enable_thinking": False},
            "reasoning_effort": "low",
        },
        # Its template knows no system messages, and none that do not alternate.
        {"model": "strict", "messages": [{"role": "system", "content": "be kind"}, user, user]},
    ]
    counts = []
    for body in bodies:
        (choice, *_) = parse_chat(body).choices("r", time.time(), 0)
        assert isinstance(choice.prompt, Chat)
        counts.append(count(server, body["model"], choice.prompt))
    health = server.health()
    assert health["cached_models"] == []
    assert {model["state"] for model in health["models"]} == {"cold"}
    assert health["memory"]["counter"] == "ready"
    assert [*server.state.glob("logs/worker.*")] == []
    assert health["memory"]["charged_bytes"] == health["memory"]["reserved_bytes"]
    used = [
        server.request("POST", "/v1/chat/completions", {**body, "max_tokens": 1}).json["usage"]
        for body in bodies
    ]
    assert counts == [usage["prompt_tokens"] for usage in used]
    # And so it is beside the loaded ones.
    assert counts[0] == count(server, "tiny-alias", Chat([user]))


def test_who_names_no_model_of_ours_is_told(server: Server) -> None:
    error = refused(server, "nonsense")
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")


def test_a_template_that_refuses_the_messages_is_the_requests_error(server: Server) -> None:
    error = refused(server, "strict", Chat(HI.messages, TOOLS))
    assert (error.code, error.param) == ("unsupported_parameter", "tools")


def test_a_long_prompt_holds_up_no_other_model(server: Server) -> None:
    async def story(relay: Relay) -> None:
        long = asyncio.create_task(relay.count(LONG, "tiny", 1.0))
        behind = asyncio.create_task(relay.count(HI, "tiny", 1.0))
        for _ in range(3):
            await relay.count(HI, "tools", 1.0)
        assert not long.done()
        assert not behind.done()
        await asyncio.gather(long, behind)

    count(server, "tools")  # its tokenizer is there
    relaying(server, story)


def test_changed_files_are_read_again_and_broken_ones_told(
    files: Path, tmp_path: Path, server: Server
) -> None:
    template = files / "tools" / "chat_template.jinja"
    before = template.read_text()
    broken = files / "tools" / "tokenizer.json"
    kept = shutil.copy(broken, tmp_path)
    try:
        template.write_text("seven..")
        assert count(server, "tools") == 7
        broken.write_text("{")
        error = refused(server, "tools")
        assert (error.status, error.code, error.param) == (400, "model_load_failed", "model")
        assert "tokenizer.json is not JSON" in error.message
    finally:
        shutil.copy(kept, broken)
        template.write_text(before)
    assert count(server, "tools") != 7


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_counter_that_dies_or_hangs_costs_the_counts_in_it_and_nothing_else(
    server: Server, number: signal.Signals
) -> None:
    server.chat("tiny", max_tokens=1)
    worker, gateway, deaths = server.loaded("tiny"), server.gateway.pid, len(crashes(server))
    expected = count(server, "tiny")
    pid = counter(server)
    errors: list[BulkheadError] = []

    async def story(relay: Relay) -> None:
        counting = asyncio.create_task(relay.count(LONG, "tiny", 1.0))
        await relay.count(HI, "tools", 1.0)  # the long one is in it
        assert not counting.done()
        os.kill(pid, number)
        with pytest.raises(BulkheadError) as caught:
            await counting
        errors.append(caught.value)

    relaying(server, story)
    killed = number is signal.SIGKILL
    assert errors[0].status == 503
    assert errors[0].code == ("worker_crashed" if killed else "worker_stalled")
    assert errors[0].headers() == {"Retry-After": "1", "x-should-retry": "true"}
    assert count(server, "tiny") == expected
    assert counter(server) not in (pid, 0)
    assert not alive(pid)
    now = server.loaded("tiny")
    assert (now["pid"], now["deaths"]) == (worker["pid"], worker["deaths"])
    assert server.gateway.pid == gateway
    deadline = Deadline()
    while len(crashes(server)) == deaths:
        deadline.check("the report of its death")
    report = crashes(server)[0]
    assert report["cause"] == ("killed" if killed else "stalled")
    assert "No model" not in report["advice"]


def test_no_counter_outlives_its_server(files: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "s", scripted=True, config=config_for(files)) as running:
        assert counter(running) == 0  # nobody has counted
        assert running.health()["memory"]["counter"] == "off"
        count(running, "tiny")
        pid = counter(running)
        assert alive(pid)
        assert running.stop() == 0  # and `serving` sees that no process and no socket is left
        assert not alive(pid)
        assert "the counter, pid" in running.log()
        assert list((tmp_path / "s" / "crashes").glob("*")) == []
