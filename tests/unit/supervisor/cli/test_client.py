"""supervisor.cli.client: how a command finds a server, and what it makes of its answers."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from supervisor.cli import client as client_module
from supervisor.cli import commands, main
from supervisor.cli.client import Client, Refusal, Unreachable
from supervisor.state.address import Address, announce
from tests.helpers.fakes.engine import Script
from tests.helpers.serving import DEADLINE, serving

KEY = {"BULKHEAD_API_KEY": "from-outside"}


@contextmanager
def peer(answer: bytes) -> Iterator[Client]:
    """Somebody who answers one request with these bytes and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Client("127.0.0.1", listener.getsockname()[1])
        thread.join(DEADLINE)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://127.0.0.1:11435", "127.0.0.1", 11435),
        ("http://box", "box", 80),
        ("box:1", "box", 1),
        ("http://[::1]:5", "::1", 5),
    ],
)
def test_a_url(url: str, host: str, port: int) -> None:
    assert Client.of_url(url, KEY) == Client(host, port, "from-outside")


def test_what_a_running_server_leaves_is_how_it_is_found(tmp_path: Path) -> None:
    announce(tmp_path, Address("http://[::1]:77"))
    assert Client.of_state(tmp_path, {}) == Client("::1", 77)
    assert Client.of_state(tmp_path, KEY) == Client("::1", 77, "from-outside")


def test_the_key_is_read_from_the_servers_file_unless_one_is_brought(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("# ours\nb-key\na-key\n")
    announce(tmp_path, Address("http://127.0.0.1:77", str(keys)))
    assert Client.of_state(tmp_path, {}).key == "a-key"
    assert Client.of_state(tmp_path, KEY).key == "from-outside"
    keys.unlink()
    with pytest.raises(Unreachable, match="set BULKHEAD_API_KEY"):
        Client.of_state(tmp_path, {})


@pytest.mark.parametrize("status", ["200 OK", "500 Bad"])
def test_an_answer_without_an_end_is_not_read_to_it(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_MOST_BYTES", 100)
    answer = f"HTTP/1.1 {status}\r\n\r\n{{}}{' ' * 100}".encode()
    with peer(answer) as client, pytest.raises(Unreachable, match="not Bulkhead's"):
        client.health()


@pytest.mark.parametrize("command", ["load", "unload", "pin", "unpin"])
@pytest.mark.parametrize("body", [b"{}", b'{"id": "m"}', b'{"id": 3, "state": "ready"}', b"[]"])
def test_another_servers_yes_is_one_sentence(command: str, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with peer(head + body) as client:
        told = CliRunner().invoke(main.app, [command, "m", "--url", f"127.0.0.1:{client.port}"])
    assert (told.exit_code, told.stdout) == (1, "")
    (line,) = told.stderr.splitlines()
    assert line.startswith("bulkhead: ")
    assert "an answer that is not Bulkhead's" in line


@pytest.mark.parametrize(
    "event", ['{"event": "loading"}', '{"event": "loading", "done_bytes": "x"}', "[]", "{}", "{"]
)
def test_another_servers_events_show_nothing_strange(
    event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = f": watching\n\ndata: {event}\n\n"
    with peer(f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}".encode()) as client:
        commands._show_loads(client)  # raises nothing, for it has a thread of its own
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"url": 3}'])
def test_a_state_directory_without_a_server(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "address.json").write_bytes(content)
    with pytest.raises(Unreachable, match="no Bulkhead runs with the state directory"):
        Client.of_state(tmp_path, {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi!",
        b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n{",
    ],
)
def test_somebody_else_answers(answer: bytes) -> None:
    with peer(answer) as client, pytest.raises(Unreachable):
        client.health()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"error": "no"}', b'{"error": {}}'])
def test_a_refusal_that_is_not_ours(body: bytes) -> None:
    head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
    with peer(head + body) as client, pytest.raises(Refusal, match="not Bulkhead's"):
        client.manage("m", "load")


def test_a_server_that_shuts_down_still_tells_its_state() -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 27\r\n\r\n"
    with peer(head + b'{"status": "shutting_down"}') as client:
        assert client.health() == {"status": "shutting_down"}


def test_a_server_that_cannot_tell_its_state_says_so_in_a_sentence() -> None:
    body = b'{"error": {"message": "The server is restarting.", "code": "shutting_down"}}'
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body)
    with peer(head + body) as client, pytest.raises(Refusal, match="is restarting"):
        client.health()


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (["status"], b"{}"),
        (["status"], b'{"status": 1}'),
        (["models"], b'{"status": "ok", "models": [{}]}'),
        (["crashes"], b'{"crashes": [{"id": 1}]}'),
        (["crashes", "20261121T080731Z-abcdef"], b'{"id": "20261121T080731Z-abcdef"}'),
    ],
)
def test_what_is_no_answer_of_ours_is_told_in_a_sentence(command: list[str], body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with peer(head + body) as client:
        url = f"http://127.0.0.1:{client.port}"
        told = CliRunner().invoke(main.app, [*command, "--url", url])
    assert told.exit_code == 1
    assert told.stderr.startswith("bulkhead: the server gave an answer that is not Bulkhead's: ")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("spoil", ["folder", "words", "fifo", "file"])
def test_an_address_that_cannot_be_read_is_named(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "address.json"
    match spoil:
        case "folder":
            path.mkdir()
        case "words":
            path.write_bytes(b"{\xff")
        case "fifo":
            os.mkfifo(path)
        case "file":  # in place of the state directory
            path.touch()
    root = path if spoil == "file" else tmp_path
    said = "address.json.*--url" if spoil == "folder" else "no Bulkhead runs"
    with pytest.raises(Unreachable, match=said):
        Client.of_state(root, {})


def test_events_come_as_they_happen(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    config = f'[server]\nport = 0\n[models."org/m"]\nsource = "{model}"\n'
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        client = Client.of_state(server.state, os.environ)
        events = client.events()
        assert next(events) is None  # from here on nothing is missed
        assert client.manage("org/m", "load")["state"] == "ready"
        told = []
        for event in events:
            assert event is not None
            told.append(event.get("state", event["event"]))
            if told[-1] == "ready":
                break
        assert told == ["loading", "loading", "loading", "loading", "ready"]
        events.close()


def test_where_nobody_listens_the_way_to_a_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match=r"does not answer.*`bulkhead serve` starts a server"):
        Client("127.0.0.1", port).health()
