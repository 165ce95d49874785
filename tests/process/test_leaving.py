"""Clients that leave: streaming or not, queued, loading or decoding, they free what they held."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import Deadline, Server, gate, serving


def config_for(*folders: Path, extra: str = "") -> str:
    tables = "".join(
        f'[models.{folder.name}]\nsource = "{folder}"\n{extra}\n' for folder in folders
    )
    return f"[server]\nport = 0\n{tables}"


def quiet(server: Server) -> None:
    """Nobody calls a client that left an error."""
    for line in (server.log() + server.log("gateway.log")).splitlines():
        assert " ERROR " not in line
        assert "Traceback" not in line


def wait_for_line(server: Server, model: str, part: str) -> None:
    deadline = Deadline()
    while part not in server.worker_log(model):
        deadline.check(f"{part!r} in the worker's log")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["load", "prefill", "decode"])
def test_leaving_frees_the_place(phase: str, stream: bool, tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={phase: str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            leaving = server.stream("m", max_tokens=4000, stream=stream)
            stop.arrived()
            held = "queued" if phase == "load" else "in_flight"
            assert server.wait_for("m", **{held: 1})
            leaving.leave()
            server.wait_for("m", queued=0, in_flight=0)
            stop.open()
            if phase != "load":
                # The worker has dropped it too, long before its 4000 tokens.
                wait_for_line(server, "m", " prompt tokens, cancelled, ")
            assert server.chat("m", max_tokens=3).text == text_of(3)
            assert server.loaded("m")["generation"] == 1
            assert "code=client_left model=m " in server.log("gateway.log")
            quiet(server)


def test_leaving_during_load_cancels_nothing_for_others(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            leaving = server.stream("m", max_tokens=3)
            stop.arrived()
            staying = server.stream("m", max_tokens=3)
            server.wait_for("m", queued=2)
            leaving.leave()
            server.wait_for("m", queued=1)
            stop.open()
            assert staying.answer().text == text_of(3)


def test_leaving_the_queue_frees_its_place(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        config = config_for(model, extra="max_concurrency = 1\nmax_queue = 1")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            running = server.stream("m", max_tokens=5)
            stop.arrived()
            queued = server.stream("m", max_tokens=3)
            server.wait_for("m", in_flight=1, queued=1)
            refused = server.chat("m", max_tokens=3)
            assert (refused.status, refused.json["error"]["code"]) == (503, "queue_full")
            assert 1 <= int(refused.headers["retry-after"]) <= 10
            queued.leave()
            server.wait_for("m", in_flight=1, queued=0)
            later = server.stream("m", max_tokens=3)
            server.wait_for("m", in_flight=1, queued=1)
            stop.open()
            assert running.answer().text == text_of(5)
            assert later.answer().text == text_of(3)


def test_leaving_in_the_middle_of_the_body(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
        assert server.chat("m", max_tokens=3).text == text_of(3)
        assert server.loaded("m")["use_count"] == 1
        quiet(server)


def test_hold_is_the_clients_patience(tmp_path: Path) -> None:
    """A client that announces how long it waits gets our answer before it gives up."""
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
            answer = server.request(
                "POST", "/v1/chat/completions", body, {"x-stainless-read-timeout": "0.5"}
            )
            assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
            assert 1 <= int(answer.headers["retry-after"]) <= 59
            stop.arrived()
            stop.open()
            assert server.chat("m", max_tokens=3).text == text_of(3)
            assert server.loaded("m")["generation"] == 1


def test_an_impatient_sdk_outlives_a_long_prefill_and_a_recovery(tmp_path: Path) -> None:
    """What it announces is its own timeout, which each silence here exceeds: the long prompt, and
    the load after a death."""
    with (
        gate(tmp_path / "prefill") as prefill,
        gate(tmp_path / "decode") as decode,
        gate(tmp_path / "load") as load,
    ):
        model = Script(
            gates={"prefill": str(prefill.path), "decode": str(decode.path)},
            deeds={"decode": "abort"},
        ).write(tmp_path / "m")
        config = config_for(model, extra="preload = true")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            server.wait_for("m", state="ready")
            with openai.OpenAI(
                base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=1.2
            ) as client:
                streaming = client.chat.completions.with_streaming_response.create(
                    model="m",
                    messages=[{"role": "user", "content": "x"}],
                    max_tokens=6,
                    stream=True,
                )
                with streaming as response:  # the headers have come, and no token
                    prefill.arrived()
                    lines = response.iter_lines()
                    pings(lines, 3)
                    # The next incarnation's load stands still until it is let go.
                    Script(gates={"load": str(load.path)}, generations=(2,)).write(model)
                    prefill.open()
                    decode.arrived()
                    decode.open()
                    load.arrived()
                    pings(lines, 3)
                    load.open()
                    said = [line for line in lines if line]
            assert said[-2:] == [": recoveries 1", "data: [DONE]"]


def pings(lines: Iterator[str], count: int) -> None:
    """Read until so many pings have come in a row: more than the client's whole timeout."""
    row = 0
    while row < count:
        line = next(lines)
        row = row + 1 if line == ": ping" else row if not line else 0


def test_load_that_stalls(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        config = (
            "[server]\nport = 0\n[memory]\nload_stall_seconds = 1.5\n"
            f'[models.m]\nsource = "{model}"\n'
        )
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            answer = server.chat("m", max_tokens=2)
            assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
            assert "no progress" in answer.json["error"]["message"]
