"""Real servers for tests: started, watched, talked to, and seen to leave nothing behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 30.0
"""Seconds after which anything a test waits for has failed. Never part of an assertion."""
PACE = 0.01
"""Seconds between two looks: asked without a pause, a server is kept from what it is asked for."""


@dataclass
class Answer:
    """One HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of the SSE events."""
        parts = self.body.decode().split("\n\n")
        return [part.removeprefix("data: ") for part in parts if part.startswith("data: ")]

    @property
    def text(self) -> str:
        """The text of a chat, streamed or not."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return str(self.json["choices"][0]["message"]["content"])
        chunks = [json.loads(event) for event in self.events if event != "[DONE]"]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Streaming:
    """A streamed chat that is read in the background, so that a test can see how far it has got."""

    def __init__(self, port: int, body: dict[str, Any]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        self._body = json.dumps(body).encode()
        self._read = b""
        self._grown = threading.Condition()
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._run)
        self._pool.shutdown(wait=False)

    def _run(self) -> Answer:
        try:
            headers = {"Content-Type": "application/json"}
            self._connection.request("POST", "/v1/chat/completions", self._body, headers)
            response = self._connection.getresponse()
            while data := response.read1(65536):
                with self._grown:
                    self._read += data
                    self._grown.notify_all()
        finally:
            self._connection.close()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, self._read)

    def saw(self, mark: str) -> None:
        """Return once `mark` has arrived."""
        with self._grown:
            assert self._grown.wait_for(lambda: mark.encode() in self._read, DEADLINE)

    def answer(self) -> Answer:
        """The whole answer, once it has ended."""
        return self._done.result(DEADLINE)

    def leave(self) -> None:
        """Close the connection in the middle, as a client does that is not interested any more."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)


@dataclass
class Server:
    """A running `bulkhead serve`."""

    process: subprocess.Popen[str]
    state: Path
    port: int
    out: queue.SimpleQueue[str]
    pids: set[int] = field(default_factory=set)
    """Every process that was ever seen to belong to it."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        seconds: float = DEADLINE,
    ) -> Answer:
        """One request on a connection of its own. `body` is sent as JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content)

    def chat(self, model: str, content: str = "hi", **more: Any) -> Answer:
        """One chat, whole or streamed."""
        body = {"model": model, "messages": [{"role": "user", "content": content}], **more}
        return self.request("POST", "/v1/chat/completions", body)

    def stream(self, model: str, content: str = "hi", **more: Any) -> Streaming:
        """Start a chat, streamed unless `more` says otherwise, and return at once."""
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        return Streaming(self.port, {**body, "stream": True, **more})

    def health(self) -> Any:
        return self.request("GET", "/health").json

    def loaded(self, model: str) -> dict[str, Any]:
        """The model's entry in `cached_models`; {} when it is not loaded or loading."""
        for entry in self.health()["cached_models"]:
            if entry["name"] == model:
                return dict(entry)
        return {}

    def wait_for(self, model: str, **wanted: Any) -> dict[str, Any]:
        """Ask until the model's entry has the wanted values.

        For states that nothing announces to an outsider.
        """
        deadline = Deadline()
        while True:
            entry = self.loaded(model)
            if all(entry.get(key) == value for key, value in wanted.items()):
                return entry
            deadline.check(f"{model} to become {wanted}, it is {entry}")

    @property
    def gateway(self) -> psutil.Process:
        for child in psutil.Process(self.process.pid).children():
            if "gateway.main" in child.cmdline():
                return child
        raise AssertionError("no gateway process")

    def log(self, name: str = "supervisor.log") -> str:
        return (self.state / "logs" / name).read_text()

    def wait_for_log(self, part: str, name: str = "supervisor.log") -> None:
        """Wait until the log says so. A request's line is written after its answer has left."""
        deadline = Deadline()
        while part not in self.log(name):
            deadline.check(f"{part!r} in {name}")

    def worker_log(self, model: str, kind: str = "stderr") -> str:
        """All incarnations' files of that kind, oldest first."""
        files = sorted((self.state / "logs").glob(f"worker.{model}.*.{kind}"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    def see_children(self) -> None:
        """Note who belongs to us, to be sure later that they are gone."""
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(self.process.pid)
            self.pids |= {child.pid for child in parent.children(recursive=True)}

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.see_children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)


class Deadline:
    """Fails loudly instead of hanging."""

    def __init__(self, seconds: float = DEADLINE) -> None:
        self._end = time.monotonic() + seconds

    def check(self, what: str) -> None:
        """Between two looks at what is waited for; leaves the processor to it for a moment."""
        if time.monotonic() > self._end:
            raise AssertionError(f"waited too long for {what}")
        time.sleep(PACE)


@contextlib.contextmanager
def serving(
    state: Path,
    *arguments: str,
    config: str | None = None,
    scripted: bool = False,
    environ: dict[str, str] | None = None,
    files: int | None = None,
    process_group: int | None = None,
) -> Iterator[Server]:
    """A server on a free port; at the end it must exit 0 and leave no process and no socket.

    With `scripted`, workers may follow scripts, and all settings come from `config` (TOML). There
    is no spare worker unless it says so.
    `files` is the soft limit of open files that its shell has. With 0 as `process_group` it does
    not hear a terminal's ^C.
    """
    state.mkdir(parents=True, exist_ok=True)
    (state / "bulkhead.toml").write_text(without_spare(config or ""))
    if scripted:
        command = ["-m", "tests.helpers.fakes.serve", str(state / "bulkhead.toml"), str(state)]
    else:
        command = ["-m", "supervisor.cli.main", "serve", "--state-dir", str(state), *arguments]
        if config is None or "port" not in config:
            command += ["--port", "0"]
    with start(command, state, environ, files, process_group) as server:
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0
        assert_gone(server)


def without_spare(config: str) -> str:
    """The settings with `memory.spare` off, unless they say something of it: each import of mlx-lm
    takes two seconds of CPU time."""
    if "spare = " in config:
        return config
    off = "[memory]\nspare = false\n"
    return config.replace("[memory]\n", off, 1) if "[memory]\n" in config else f"{config}\n{off}"


@contextlib.contextmanager
def start(
    command: Sequence[str],
    state: Path,
    environ: dict[str, str] | None = None,
    files: int | None = None,
    process_group: int | None = None,
) -> Iterator[Server]:
    """Run Python with `command` until the ready line; kill what is left at the end."""
    shell = ["sh", "-c", f'ulimit -S -n {files}; exec "$@"', "sh"] if files else []
    process = subprocess.Popen(
        [*shell, sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        process_group=process_group,
        env={**os.environ, "BULKHEAD_HOME": str(state), **(environ or {})},
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_pump, args=(process, lines), daemon=True)
    reader.start()
    try:
        said: list[str] = []
        while (line := lines.get(timeout=DEADLINE)) != "":
            said.append(line)
            if ready := re.match(r"Bulkhead ready on http://127\.0\.0\.1:(\d+)\n", line):
                break
        else:
            raise AssertionError(f"it ended before it was ready: {''.join(said)}")
        server = Server(process, state, int(ready[1]), lines)
        server.see_children()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE)
        reader.join(DEADLINE)
        assert process.stdout is not None
        process.stdout.close()


def _pump(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def assert_gone(server: Server) -> None:
    """No process that was seen, no socket."""
    deadline = Deadline()
    for pid in server.pids:
        while alive(pid):
            deadline.check(f"process {pid} to end")
    assert list(server.state.rglob("*.sock")) == []


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie whose parent is gone or busy does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Gate:
    """The test's side of a scripted engine's gate."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self.path = path
        self._pool = ThreadPoolExecutor(1)
        self._fd: int | None = None

    def arrived(self) -> None:
        """Return once a worker stands before the gate."""
        self._fd = self._pool.submit(os.open, self.path, os.O_WRONLY).result(DEADLINE)

    def open(self) -> None:
        """Let the worker that has arrived go on."""
        assert self._fd is not None
        os.close(self._fd)
        self._fd = None

    def close(self) -> None:
        """Whatever still stands on either side goes on."""
        if self._fd is not None:
            self.open()
        # Reading and writing at once never blocks, and frees a writer that waits for a reader.
        os.close(os.open(self.path, os.O_RDWR | os.O_NONBLOCK))
        self._pool.shutdown(wait=True)


@contextlib.contextmanager
def gate(path: Path) -> Iterator[Gate]:
    made = Gate(path)
    try:
        yield made
    finally:
        made.close()
