"""A worker or a gateway hangs: it is found, says what it does if it can, and is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import DEADLINE, Deadline, Server, serving


@contextlib.contextmanager
def scripted(folder: Path, mode: str, **scripts: Script) -> Iterator[Server]:
    """A server whose models follow the scripts."""
    config = f'[server]\nport = 0\n[recovery]\nmode = "{mode}"\nstall_seconds = 2\n'
    for name, script in scripts.items():
        config += f'[models.{name}]\nsource = "{script.write(folder / name)}"\n'
    with serving(folder / "s", scripted=True, config=config) as server:
        yield server


def told_by(server: Server, model: str | None) -> dict[str, Any]:
    """The report of the model's, or the gateway's, only crash."""
    deadline = Deadline()
    while True:
        briefs = server.request("GET", "/admin/crashes").json["crashes"]
        for brief in briefs:
            if brief["model"] == model:
                return dict(server.request("GET", f"/admin/crashes/{brief['id']}").json)
        deadline.check("the report")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    slow = Script(load_steps=20, prefill_steps=20, step_seconds=0.08)
    folder = tmp_path_factory.mktemp("stalling")
    blocks = Script(deeds={"decode": "block"})
    with scripted(folder, "resume", slow=slow, quick=Script(), blocks=blocks) as running:
        yield running


def test_slow_is_not_stuck(server: Server) -> None:
    """A load and a prefill that take longer than `stall_seconds`, in steps that take less."""
    assert server.chat("slow", max_tokens=5).text == text_of(5)
    assert server.wait_for("slow", state="ready")["deaths"] == 0


def test_a_call_that_never_returns_is_a_pause(server: Server) -> None:
    assert server.stream("blocks", max_tokens=20).answer().text == text_of(20)
    assert server.loaded("blocks")["generation"] == 2
    assert "blocks#1 has stalled and is killed (its generation thread" in server.log()


def test_a_worker_that_was_stopped_at_rest_is_replaced_when_somebody_comes(server: Server) -> None:
    assert server.chat("quick").status == 200
    os.kill(server.loaded("quick")["pid"], signal.SIGSTOP)
    assert server.chat("quick", max_tokens=5).text == text_of(5)
    assert server.loaded("quick")["generation"] == 2
    assert "quick#1 has stalled and is killed (its event loop" in server.log()


def test_a_gateway_that_hangs_is_replaced(server: Server) -> None:
    assert server.chat("quick").status == 200
    generation, before = server.loaded("quick")["generation"], server.gateway.pid
    os.kill(before, signal.SIGSTOP)
    # It waits in the listening socket, which is the next one's too.
    assert server.chat("quick", max_tokens=5).text == text_of(5)
    assert server.gateway.pid != before
    assert server.loaded("quick")["generation"] == generation
    assert "the gateway has stalled and is killed: its event loop" in server.log()
    report = told_by(server, None)
    assert report["cause"] == "stalled"
    assert report["put_down"].startswith("it stalled: its event loop")


def test_those_in_it_are_told_that_it_stalled(tmp_path: Path) -> None:
    blocks = Script(deeds={"decode": "block"})
    with scripted(tmp_path, "off", m=blocks) as server:
        told = server.stream("m", max_tokens=8)
        told.saw("w2 ")
        waits = server.stream("m", max_tokens=8, stream=False)
        cut = told.answer()
        assert cut.text == text_of(3)
        error = json.loads(cut.events[-1])["error"]
        assert (error["type"], error["code"]) == ("server_error", "worker_stalled")
        assert "in one step" in error["message"]
        refused = waits.answer()
        assert refused.status == 503
        assert refused.json["error"]["code"] == "worker_stalled"
        assert 1 <= int(refused.headers["retry-after"]) <= 59
        assert refused.headers["x-should-retry"] == "true"
        assert server.chat("m", max_tokens=5).text == text_of(5)
        assert server.wait_for("m")["deaths"] == 1
        assert "m#1 has stalled and is killed (its generation thread" in server.log()
        assert "in end" in server.worker_log("m")
        report = told_by(server, "m")
        assert report["id"] in error["message"]
        assert (report["cause"], report["signal"]) == ("stalled", "SIGKILL")
        assert report["put_down"].startswith("it stalled: its generation thread has been")
        assert "in end" in report["stacks"]
        assert report["in_flight"] == 2
        assert [each["outcome"] for each in report["recovery"]] == ["ended with worker_stalled"] * 2


def test_a_worker_that_was_stopped_does_not_hold_up_a_quick_end(tmp_path: Path) -> None:
    model = Script(deeds={"decode": "block"}).write(tmp_path / "m")
    config = (
        f'[server]\nport = 0\n[recovery]\nstall_seconds = 600\n[models.m]\nsource = "{model}"\n'
    )
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        hits = server.stream("m", max_tokens=8)
        hits.saw("w2 ")
        os.kill(server.loaded("m")["pid"], signal.SIGSTOP)
        for said in ("asked to stop:", "asked to stop again"):
            server.process.send_signal(signal.SIGTERM)
            deadline = Deadline()
            while said not in server.log():
                deadline.check(said)
        assert server.process.wait(DEADLINE) == 0
        assert "worker m#1 has not moved for" in server.log()
        with contextlib.suppress(Exception):
            hits.answer()
