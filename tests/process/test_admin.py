"""Loading, unloading and pinning over HTTP, and the events that tell what happened."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import DEADLINE, Answer, Deadline, Server, gate, serving


def config_for(*folders: Path, server: str = "", extra: str = "") -> str:
    tables = "".join(
        f'[models."{folder.name}"]\nsource = "{folder}"\n{extra}\n' for folder in folders
    )
    return f"[server]\nport = 0\n{server}\n{tables}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two scripted models: `m`, also known as `org/m:8b`, and `n`, which can't be loaded."""
    folder = tmp_path_factory.mktemp("admin")
    model = Script(generations=()).write(folder / "m")
    broken = Script(deeds={"load": "unloadable"}).write(folder / "n")
    config = (
        f'[server]\nport = 0\n[models.m]\nsource = "{model}"\naliases = ["org/m:8b"]\n'
        f'[models.n]\nsource = "{broken}"\n'
    )
    with serving(folder / "s", scripted=True, config=config) as made:
        yield made


def act(server: Server, model: str, action: str, headers: dict[str, str] | None = None) -> Answer:
    return server.request("POST", f"/admin/models/{model}/{action}", None, headers)


class Events:
    """`/admin/events`, read as they come."""

    def __init__(self, server: Server, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        self._connection.request("GET", "/admin/events", headers=headers or {})
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        assert self._response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
        assert self._response.readline() == b": watching\n"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def until(self, **wanted: Any) -> list[dict[str, Any]]:
        """All up to the first that has the wanted members."""
        seen = []
        for event in self:
            seen.append(event)
            if all(event.get(name) == value for name, value in wanted.items()):
                return seen
        raise AssertionError(f"the events ended without {wanted}: {seen}")

    def close(self) -> None:
        self._response.close()
        self._connection.close()


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def test_a_load_waits_until_the_model_is_ready_and_an_unload_ends_it(server: Server) -> None:
    answer = act(server, "m", "load")
    assert (answer.status, answer.json) == (200, {"id": "m", "state": "ready", "pinned": False})
    loaded = server.loaded("m")
    assert (loaded["state"], loaded["use_count"], loaded["in_flight"]) == ("ready", 0, 0)
    # Loaded already: the same answer, no other worker.
    assert act(server, "m", "load").json["state"] == "ready"
    assert server.loaded("m")["generation"] == loaded["generation"]
    answer = act(server, "m", "unload")
    assert (answer.status, answer.json["state"]) == (200, "stopping")
    deadline = Deadline()
    while act(server, "m", "unload").json["state"] != "cold":
        deadline.check("the model to be cold")


@pytest.mark.parametrize("name", ["org/m:8b", "org%2Fm%3A8b", "m:latest"])
def test_names_are_those_of_requests(name: str, server: Server) -> None:
    assert act(server, name, "pin").json["id"] == "m"
    assert act(server, name, "unpin").json["id"] == "m"


def test_a_pin_holds_until_it_is_taken_off(server: Server) -> None:
    act(server, "m", "load")
    assert act(server, "m", "pin").json == {"id": "m", "state": "ready", "pinned": True}
    assert server.loaded("m")["pinned"]
    assert act(server, "m", "unpin").json["pinned"] is False
    assert not server.loaded("m")["pinned"]


@pytest.mark.parametrize("action", ["load", "unload", "pin", "unpin"])
def test_a_model_that_does_not_exist(action: str, server: Server) -> None:
    answer = act(server, "nope", action)
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_cannot_be_loaded_says_why_and_may_be_tried_again(server: Server) -> None:
    answer = act(server, "n", "load")
    assert (answer.status, answer.json["error"]["code"]) == (400, "model_load_failed")
    assert "planned" in answer.json["error"]["message"]
    deadline = Deadline()
    while {"failed"} != {m["state"] for m in server.health()["models"] if m["name"] == "n"}:
        deadline.check("n to have failed")
    assert server.chat("n").status == 400
    # Asked for by hand it is tried again, and the script has but one misdeed.
    assert act(server, "n", "load").status == 200


def test_a_load_by_get_is_no_load(server: Server) -> None:
    answer = server.request("GET", "/admin/models/m/load")
    assert (answer.status, answer.json["error"]["code"]) == (405, "method_not_allowed")
    assert server.request("POST", "/admin/models/m/eat").status == 404


def test_a_load_gives_up_with_its_client_and_goes_on(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            answer = act(server, "m", "load", {"x-stainless-read-timeout": "0.5"})
            assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
            stop.arrived()
            stop.open()
            assert act(server, "m", "load").json["state"] == "ready"
            assert server.loaded("m")["generation"] == 1


def test_an_unload_lets_running_requests_end(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            running = server.stream("m", max_tokens=5)
            stop.arrived()
            assert act(server, "m", "unload").json["state"] == "draining"
            later = server.stream("m", max_tokens=2)  # waits for the next worker
            server.wait_for("m", queued=1)
            stop.open()
            assert running.answer().text == text_of(5)
            assert later.answer().headers["x-bulkhead-worker"] == "m#2"


# ── events ───────────────────────────────────────────────────────────────────────────────────────


def test_the_events_tell_a_model_s_whole_life(tmp_path: Path) -> None:
    model = Script(generations=(), load_steps=2).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        events, other = Events(server), Events(server)
        act(server, "m", "load")
        act(server, "m", "unload")
        told = events.until(event="state", state="cold")
        assert all("time" in event for event in told)
        states = [event["state"] for event in told if event["event"] == "state"]
        assert states == ["loading", "ready", "stopping", "cold"]
        progress = [event for event in told if event["event"] == "loading"]
        assert [(event["done_bytes"], event["total_bytes"]) for event in progress] == [
            (1, 2),
            (2, 2),
        ]
        assert {event["generation"] for event in told if "generation" in event} == {1}
        assert other.until(event="state", state="cold") == told
        events.close()
        # One that left keeps nobody from hearing more, and nobody keeps the server from stopping.
        act(server, "m", "load")
        other.until(event="state", state="ready")
        assert server.stop() == 0
        assert "stopping" in [event.get("state") for event in other]
        other.close()


def test_a_death_is_an_event(tmp_path: Path) -> None:
    model = Script(deeds={"decode": "abort"}).write(tmp_path / "m")
    config = config_for(model, server='[recovery]\nmode = "off"')
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        events = Events(server)
        assert server.chat("m", max_tokens=8).status == 503
        told = events.until(event="state", state="cold")
        states = [event["state"] for event in told if event["event"] == "state"]
        assert states[:2] == ["loading", "ready"]
        crash = events.until(event="crash")[-1]
        assert (crash["model"], crash["generation"], crash["cause"]) == ("m", 1, "aborted")
        events.close()


def test_too_many_watchers_are_refused(tmp_path: Path) -> None:
    model = Script().write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        with ThreadPoolExecutor(8) as many:
            watching = list(many.map(lambda _: Events(server), range(32)))
        answer = server.request("GET", "/admin/events")
        assert (answer.status, answer.json["error"]["code"]) == (503, "queue_full")
        for each in watching:
            each.close()


# ── who may ──────────────────────────────────────────────────────────────────────────────────────


def test_a_key_is_wanted(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("secret-key\n")
    config = config_for(model, server=f'api_keys_file = "{keys}"')
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        for method, path in (("POST", "/admin/models/m/load"), ("GET", "/admin/events")):
            answer = server.request(method, path)
            assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        with_key = {"Authorization": "Bearer secret-key"}
        assert server.request("GET", "/", None, with_key).json["cached_models"] == []
        assert act(server, "m", "load", with_key).status == 200
        Events(server, with_key).close()


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_pages_of_other_sites_may_not(headers: dict[str, str], server: Server) -> None:
    for method, path in (("POST", "/admin/models/m/load"), ("GET", "/admin/events")):
        answer = server.request(method, path, None, headers)
        assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")
