"""The private instance in which faults are injected."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor import bootstrap
from supervisor.cli.client import Client, Refusal, Unreachable

STALL_SECONDS = 2
_READY_SECONDS = 60.0
_LOAD_SECONDS = 120.0
_STOP_SECONDS = 30.0
_CONFIG = f"""
[server]
port = 0
[recovery]
stall_seconds = {STALL_SECONDS}
[models.demo]
source = "demo"
"""


class CannotStart(Exception):
    """The instance did not come up; the message says what it printed."""


class Instance:
    """A server of our own, and when it noticed that its worker serves no more."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._noticed: list[float] = []

    def worker(self, *, fresh: bool = False) -> int:
        """The pid of the worker, which is loaded if it was not; with `fresh` a new one. Raises
        Unreachable, Refusal."""
        deadline = time.monotonic() + _LOAD_SECONDS
        if fresh:
            self.client.manage("demo", "unload")
        while time.monotonic() < deadline:
            self.client.manage("demo", "load")
            for entry in self.client.health()["cached_models"]:
                if entry["state"] == "ready" and entry["pid"] is not None:
                    return int(entry["pid"])
        raise Unreachable(f"the demo model was not ready within {_LOAD_SECONDS:g} s")

    def noticed(self, since: float) -> float | None:
        """Seconds from then until the supervisor told that the worker serves no more."""
        return next((at - since for at in self._noticed if at > since), None)

    def listen(self) -> None:
        """Follow the server's events, on a thread that ends with it."""
        begun = threading.Event()
        threading.Thread(target=self._listen, args=(begun,), daemon=True).start()
        begun.wait(_READY_SECONDS)

    def _listen(self, begun: threading.Event) -> None:
        with contextlib.suppress(Unreachable, Refusal):  # it has ended
            for event in self.client.events():
                begun.set()
                if event is not None and _is_end(event):
                    self._noticed.append(time.monotonic())


def _is_end(event: dict[str, Any]) -> bool:
    return event["event"] == "crash" or event.get("state") in ("stopping", "releasing")


@contextlib.contextmanager
def private_instance() -> Iterator[Instance]:
    """A running instance; at the end it is stopped and all that it wrote removed. Raises
    CannotStart."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-selftest-") as folder:
        config = Path(folder) / "bulkhead.toml"
        config.write_text(_CONFIG)
        command = [sys.executable, "-P", bootstrap.__file__, "supervisor.cli.main", "serve"]
        command += ["--config", str(config)]
        process = subprocess.Popen(
            [*command, "--state-dir", str(Path(folder) / "state")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={k: v for k, v in os.environ.items() if not k.startswith(("BULKHEAD_", "MLX_"))},
        )
        try:
            instance = Instance(Client("127.0.0.1", _port(process)))
            instance.listen()
            yield instance
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_SECONDS)
            assert process.stdout is not None
            process.stdout.close()


def _port(process: subprocess.Popen[bytes]) -> int:
    """Where it listens, as it says itself. Raises CannotStart."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    said, deadline = b"", time.monotonic() + _READY_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        more = process.stdout.read()
        if not more:
            break
        said += more
        if ready := re.search(rb"Bulkhead ready on http://127\.0\.0\.1:(\d+)\n", said):
            return int(ready[1])
    raise CannotStart(said.decode(errors="replace").strip() or "it said nothing")
