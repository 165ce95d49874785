"""What is wrong with a request is told in the contract's form, and disturbs nobody else."""

from __future__ import annotations

import gzip
import json
import re
import socket
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import DEADLINE, ROOT, Answer, Server, serving

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHAT = "/v1/chat/completions"
BOMB = 64 * 2**20
"""Zeros: gzip makes 64 KB of them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("refusals")
    model = Script(generations=()).write(folder / "m")
    config = (
        f'[server]\nport = 0\nmax_body = "100KB"\nallowed_origins = ["https://good.example"]\n'
        f'[models.m]\nsource = "{model}"\n[models.missing]\nsource = "{folder / "nowhere"}"\n'
    )
    with serving(folder / "s", scripted=True, config=config) as running:
        yield running
        # Whatever was asked above, the worker that served the first request serves the last.
        assert running.chat("m", max_tokens=2).text == text_of(2)
        assert running.loaded("m")["generation"] == 1
        assert " ERROR " not in running.log("gateway.log")


def assert_error(answer: Answer, status: int, code: str, param: str | None = None) -> None:
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"]
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-request-id"]


def chat_body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **more}


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
        ({"max_tokens": "many"}, "invalid_type", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"stop": ["a"] * 65}, "invalid_value", "stop"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"frobnicate": 1}, "unsupported_parameter", "frobnicate"),
    ],
)
def test_bad_parameters(more: dict[str, Any], code: str, param: str, server: Server) -> None:
    assert_error(server.request("POST", CHAT, chat_body(**more)), 400, code, param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1,", b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 50000]
)
def test_bad_json(body: bytes, server: Server) -> None:
    assert_error(server.request("POST", CHAT, body), 400, "invalid_json")


def test_json_that_is_no_object(server: Server) -> None:
    assert_error(server.request("POST", CHAT, b"[]"), 400, "invalid_type")


def test_unknown_model(server: Server) -> None:
    answer = server.request("POST", CHAT, chat_body(model="nope"))
    assert_error(answer, 404, "model_not_found", "model")
    assert answer.json["error"]["message"].startswith(
        "The model `nope` does not exist or you do not have access to it."
    )
    assert_error(server.request("GET", "/v1/models/nope"), 404, "model_not_found", "model")


def test_model_whose_files_are_missing(server: Server) -> None:
    answer = server.request("POST", CHAT, chat_body(model="missing"))
    assert_error(answer, 400, "model_load_failed", "model")
    assert "nowhere" in answer.json["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_an_unknown_model_is_told_before_what_else_is_wrong(server: Server) -> None:
    for model in ("nope", None):
        answer = server.request("POST", CHAT, chat_body(model=model, top_logprobs=2))
        assert_error(answer, 404, "model_not_found", "model")
    answer = server.request("POST", CHAT, chat_body(top_logprobs=2))
    assert_error(answer, 400, "invalid_value", "top_logprobs")
    answer = server.request("POST", "/v1/embeddings", {"model": "nope", "input": [[1], 1]})
    assert_error(answer, 404, "model_not_found", "model")


def test_an_unknown_path_is_told(server: Server) -> None:
    for path in ("/v1/nothing", "/v1//nothing/", "/", "/v1"):
        answer = server.request("GET", f"{path}/a%20b?key=secret")
        assert_error(answer, 404, "not_found")
        assert f"no route {path}/a%20b." in answer.json["error"]["message"]
        assert "for OpenAI's clients with /v1" in answer.json["error"]["message"]
    answer = server.request("GET", "/" + "x" * 2000)
    assert_error(answer, 404, "not_found")
    assert len(answer.json["error"]["message"]) < 500


def test_a_method_that_a_route_lacks_is_told_those_that_it_has(server: Server) -> None:
    for method, path, allowed in (
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("TRACE", "/health", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
        ("HEAD", "/admin/events", "GET"),
        ("GET", "/admin/models/m/load", "POST"),
    ):
        answer = server.request(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allowed), (method, path)
        if method != "HEAD":
            assert_error(answer, 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/m", "/openapi.json"])
def test_head_answers_as_get_without_a_body(path: str, server: Server) -> None:
    got, head = server.request("GET", path), server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH"])
def test_a_known_endpoint_that_is_not_served_is_no_unknown_path(
    method: str, server: Server
) -> None:
    for path in (
        "/v1/responses/r-1/cancel",
        "/v1/audio/transcriptions",
        "/v1/images/generations",
        "/images/edits",
        "//v1/files/f-1/content",
        "/v1/chat/completions/c-1/messages",
        "/metrics",
        "/admin/logs/m",
    ):
        answer = server.request(method, path, {} if method == "POST" else None)
        assert_error(answer, 400, "unsupported_endpoint")
        assert answer.headers["x-should-retry"] == "false"
        assert path.partition("?")[0] in answer.json["error"]["message"]


def test_a_slash_or_a_version_too_many_is_answered_as_meant(server: Server) -> None:
    for path in (
        "//chat/completions",
        "/v1//chat/completions",
        "/v1/v1/chat/completions",
        "//v1/v1//chat//completions/",
        "/chat/completions/",
        "/v1/chat/completions/?api-version=1",
    ):
        answer = server.request("POST", path, chat_body())
        assert (answer.status, answer.text) == (200, text_of(2)), path
    for path in ("/v1/models/", "//models", "/v1/v1/models/m", "/v1/models/m/", "//health", "//"):
        assert server.request("GET", path).status == 200, path


@pytest.mark.parametrize("stream", [False, True])
def test_what_changes_nothing_is_named_in_a_header(stream: bool, server: Server) -> None:
    foreign = {"num_ctx": 4096, "keep_alive": "5m", "options": {"num_gpu": 1, "temperature": 0}}
    answer = server.request("POST", CHAT, chat_body(stream=stream, **foreign))
    assert answer.text == text_of(2)
    assert answer.headers["x-bulkhead-ignored"] == "keep_alive, num_ctx, options.num_gpu"
    assert "x-bulkhead-ignored" not in server.request("POST", CHAT, chat_body(user="me")).headers


def test_content_type(server: Server) -> None:
    body = json.dumps(chat_body()).encode()
    kinds = ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1")
    for kind in kinds:
        answer = server.request("POST", CHAT, body, {"Content-Type": kind})
        assert_error(answer, 415, "unsupported_media_type")
    good = server.request("POST", CHAT, body, {"Content-Type": 'application/json; charset="UTF-8"'})
    assert good.status == 200


@pytest.mark.parametrize("announced", [True, False])
def test_body_too_large(announced: bool, server: Server) -> None:
    """The limit holds whether the length is announced or the body comes in chunks."""
    body = json.dumps(chat_body(messages=[{"role": "user", "content": "x" * 200_000}])).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if announced:
        sent = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    else:
        sent = f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
        sent += body + b"\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(sent)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_what_clients_do_wrong_is_no_fault_of_the_model(server: Server) -> None:
    """sglang#25811: requests answered with 4xx opened the breaker."""
    assert server.chat("m", max_tokens=2).status == 200
    for body in [chat_body(temperature=3), chat_body(frobnicate=1), [], {"model": "m"}] * 3:
        assert server.request("POST", CHAT, body).status == 400
    (health,) = [model for model in server.health()["models"] if model["name"] == "m"]
    assert (health["state"], health["deaths"]) == ("ready", 0)
    assert server.chat("m", max_tokens=2).status == 200


def test_host(server: Server) -> None:
    foreign = server.request("GET", "/v1/models", headers={"Host": "evil.example"})
    assert_error(foreign, 403, "forbidden")
    assert "server.allowed_hosts" in foreign.json["error"]["message"]
    server.wait_for_log(" status=403 code=forbidden host=evil.example total_s=", "gateway.log")
    for host in ("localhost", f"127.0.0.1:{server.port}", "LOCALHOST:1", "[::1]:80"):
        assert server.request("GET", "/v1/models", headers={"Host": host}).status == 200


def raw(server: Server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


def test_headers_of_any_bytes(server: Server) -> None:
    for header in (b"Host: \xff\xfe", b"Host: localhost\r\nOrigin: http://\xff"):
        answer = raw(server, b"GET / HTTP/1.1\r\n" + header + b"\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b'"code":"forbidden"' in answer


def test_body_that_is_not_what_its_encoding_says(server: Server) -> None:
    for encoding in ("gzip", "deflate", "br", "zstd"):
        for body in (b"{}", b"x" * 100_000):
            answer = server.request("POST", CHAT, body, {"Content-Encoding": encoding})
            assert_error(answer, 400, "invalid_json")
            assert "`Content-Encoding`" in answer.json["error"]["message"]


PACKED = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("zstd", zstd.compress),
]


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
def test_packed_bodies(encoding: str, pack: Callable[[bytes], bytes], server: Server) -> None:
    headers = {"Content-Encoding": encoding}
    packed = pack(json.dumps(chat_body()).encode())
    assert server.request("POST", CHAT, packed, headers).status == 200
    packed = pack(json.dumps({"model": "m", "input": "x"}).encode())
    assert server.request("POST", "/v1/responses", packed, headers).status == 200


@pytest.mark.parametrize(("encoding", "pack"), PACKED)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_a_body_that_comes_to_too_much_is_not_unpacked(
    path: str, encoding: str, pack: Callable[[bytes], bytes], server: Server
) -> None:
    """The limit counts what a body comes to, and nothing beyond it is made."""
    bomb = pack(bytes(BOMB))
    assert len(bomb) < 100_000
    before = server.gateway.memory_info().rss
    answer = server.request("POST", path, bomb, {"Content-Encoding": encoding})
    assert_error(answer, 413, "request_too_large")
    if (status := Path(f"/proc/{server.gateway.pid}/status")).exists():
        most = int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
        assert most < before + BOMB / 2


@pytest.mark.parametrize(
    "request_",
    [
        b"SECRET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-SECRET\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nx-api-key: SECRET" + b"x" * 20000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nExpect: SECRET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nSECRET prompt\r\n",
    ],
    ids=["method", "byte", "length", "expectation", "chunk"],
)
def test_what_no_handler_sees_is_refused_in_the_same_form(request_: bytes, server: Server) -> None:
    """aiohttp would quote what was sent, to the client and in the log."""
    head, _, body = raw(server, request_).partition(b"\r\n\r\n")
    status, *lines = head.decode().splitlines()
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert_error(Answer(int(status.split()[1]), headers, body), 400, "invalid_value")
    assert b"SECRET" not in body
    assert headers["x-request-id"] in server.log("gateway.log")
    for path in (server.state / "logs").iterdir():
        assert "SECRET" not in path.read_text(errors="replace")


@pytest.mark.parametrize(
    "more", ["Transfer-Encoding: chunked", "Content-Encoding: deflate\r\nContent-Length: 15"]
)
def test_a_body_that_turns_out_broken_is_refused_at_once(more: str, server: Server) -> None:
    """And not when the time for its arrival is over."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"
        "Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as client:
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")  # it is being read
        client.sendall(b"SECRET prompt\r\n")
        said = client.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"SECRET" not in said


def test_too_many_messages(server: Server) -> None:
    body = b'{"model":"m","messages":[' + b"{}," * 20_000 + b"{}]}"
    assert_error(server.request("POST", CHAT, body), 400, "invalid_value", "messages")


def test_origin(server: Server) -> None:
    foreign = server.request("GET", "/health", headers={"Origin": "https://evil.example"})
    assert_error(foreign, 403, "forbidden")
    assert "server.allowed_origins" in foreign.json["error"]["message"]
    good = server.request("GET", "/health", headers={"Origin": "https://good.example"})
    assert good.status == 200
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    _, _, headers = (ROOT / "docs" / "api.md").read_text().partition("\n## Headers\n")
    documented = re.findall(r"^\| `([\w-]+)` ", headers.partition("\n## ")[0], re.MULTILINE)
    assert good.headers["access-control-expose-headers"].split(", ") == documented
    own = server.request("GET", "/health", headers={"Origin": f"http://127.0.0.1:{server.port}"})
    assert own.status == 200
    assert "access-control-allow-origin" not in own.headers
    preflight = server.request(
        "OPTIONS",
        CHAT,
        headers={
            "Origin": "https://good.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert preflight.status == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_keys(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("# ours\nsecret-key\n")
    config = f'[server]\nport = 0\napi_keys_file = "{keys}"\n[models.m]\nsource = "{model}"\n'
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert_error(server.request("GET", "/v1/models"), 401, "invalid_api_key")
        assert_error(
            server.request("POST", CHAT, chat_body(), {"Authorization": "Bearer wrong"}),
            401,
            "invalid_api_key",
        )
        for headers in ({"Authorization": "Bearer secret-key"}, {"x-api-key": "secret-key"}):
            assert server.request("POST", CHAT, chat_body(), headers).status == 200
            assert "cached_models" in server.request("GET", "/health", None, headers).json
        assert server.request("GET", "/health").json == {"status": "ok"}
        logs = [path.read_text(errors="replace") for path in (server.state / "logs").iterdir()]
        assert not any("secret-key" in text for text in logs)


def test_any_authorization_without_keys(server: Server) -> None:
    answer = server.request("GET", "/v1/models", None, {"Authorization": "Bearer anything"})
    assert answer.status == 200


def test_a_worker_without_descriptors_refuses_and_lives(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    env = '{ FAKE_NO_DESCRIPTORS = "1" }'
    config = f'[server]\nport = 0\n[models.m]\nsource = "{model}"\nenv = {env}\n'
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert_error(server.chat("m", max_tokens=2), 503, "queue_full")
        assert server.chat("m", max_tokens=2).text == text_of(2)
        assert server.loaded("m")["generation"] == 1
