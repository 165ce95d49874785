"""`status` of a server that works, stands still or is gone: once, watched, on a terminal, piped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from supervisor.cli import main
from tests.helpers.fakes.engine import Script
from tests.helpers.serving import DEADLINE, ROOT, Deadline, Server, gate, serving

STATUS = [sys.executable, "-m", "supervisor.cli.main", "status"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")


def environ(**more: str) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    return {**plain, "TERM": "xterm-256color", **more}


def status(server: Server) -> list[str]:
    command = [*STATUS, "--url", server.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class Watching:
    """A command whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process, self._output, self._read = process, output, b""

    def read(self) -> str:
        """All that has come by now and a little more; "" at the end."""
        try:
            more = os.read(self._output, 65536)
        except OSError:  # a terminal that nobody writes to any more
            more = b""
        self._read += more
        return more.decode(errors="replace")

    def saw(self, mark: str) -> str:
        """All that has come, once `mark` has; what follows is looked at anew."""
        deadline = Deadline()
        while mark.encode() not in self._read:
            assert self.read(), f"it ended without {mark!r}: {self._read.decode()}"
            deadline.check(mark)
        read, self._read = self._read, b""
        return read.decode()

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        while self.read():
            pass
        return self.process.wait(DEADLINE)


@contextlib.contextmanager
def piped(*arguments: str) -> Iterator[Watching]:
    command = [*STATUS, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ()
    ) as process:
        assert process.stdout is not None
        try:
            yield Watching(process, process.stdout.fileno())
        finally:
            process.kill()


@contextlib.contextmanager
def on_terminal(*arguments: str, more: dict[str, str] | None = None) -> Iterator[Watching]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*STATUS, *arguments]
    try:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ(**(more or {})),
        ) as process:
            os.close(theirs)
            try:
                yield Watching(process, ours)
            finally:
                process.kill()
    finally:
        os.close(ours)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`m` is loaded, and has an id that needs a line of its own; `bad` can't be loaded."""
    folder = tmp_path_factory.mktemp("views")
    name = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ-with-a-long-name"
    model = Script(generations=()).write(folder / "m")
    bad = Script(deeds={"load": "unloadable"}).write(folder / "bad")
    config = (
        f'[server]\nport = 0\n[models."{name}"]\nsource = "{model}"\naliases = ["m"]\n'
        f'[models.bad]\nsource = "{bad}"\n'
    )
    with serving(folder / "s", scripted=True, config=config) as made:
        assert made.request("POST", "/admin/models/m/load").status == 200
        assert made.request("POST", "/admin/models/bad/load").status == 400
        yield made


def test_a_prefill_and_a_standstill_are_seen(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"prefill": str(stop.path)}).write(tmp_path / "m")
        config = f'[server]\nport = 0\n[models.m]\nsource = "{model}"\n'
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            answer = server.stream("m", "x" * 12_000, max_tokens=2)
            stop.arrived()
            server.wait_for("m", prefill={"done_tokens": 0, "total_tokens": 12_000})
            assert "m#1: prefilling 0 of 12k tokens" in status(server)
            pid = server.loaded("m")["pid"]
            os.kill(pid, signal.SIGSTOP)
            deadline = Deadline()
            while server.loaded("m")["stalled_seconds"] is None:
                deadline.check("the standstill to be told")
            told = status(server)
            assert any(line.startswith("m#1\tstalled\t") for line in told)
            assert any(line.startswith("m#1: stalled for ") for line in told)
            os.kill(pid, signal.SIGCONT)
            stop.open()
            assert answer.answer().status == 200
            server.wait_for("m", prefill=None, stalled_seconds=None)


def test_piped_it_is_told_again_and_again_also_of_a_server_that_is_gone(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    config = f'[server]\nport = 0\n[models.m]\nsource = "{model}"\n'
    with piped("--watch", "0.1", "--state-dir", str(tmp_path / "s")) as watching:
        watching.saw("no Bulkhead runs with the state directory")
        for _ in range(2):  # each time at another port
            with serving(tmp_path / "s", scripted=True, config=config):
                watching.saw("no model is loaded\n")
                block = watching.saw("\n\n") + watching.saw("\n\n")
                assert "\x1b" not in block
                assert [line for line in block.splitlines() if line != line.rstrip()] == []
            watching.saw("; trying again\n")
        assert watching.interrupt() == 0


def test_who_stops_reading_ends_it(server: Server) -> None:
    with piped("--watch", "0.1", "--url", server.url) as watching:
        watching.saw("ok, Bulkhead")
        assert watching.process.stdout is not None
        watching.process.stdout.close()
        assert watching.process.wait(DEADLINE) == 0


def whole_lines(read: str) -> list[str]:
    return read.rpartition("\n")[0].splitlines()


def test_json_is_an_object_a_look(server: Server) -> None:
    with piped("--watch", "0.1", "--json", "--url", server.url) as watching:
        told = whole_lines(watching.saw("\n") + watching.saw("\n"))
        assert len(told) >= 2
        assert {json.loads(line)["status"] for line in told} == {"ok"}
        assert watching.interrupt() == 0


def test_json_is_an_object_a_look_at_a_server_that_is_gone_too(tmp_path: Path) -> None:
    with piped("--watch", "0.1", "--json", "--state-dir", str(tmp_path)) as watching:
        told = whole_lines(watching.saw("\n"))
        assert all("no Bulkhead runs" in json.loads(line)["error"] for line in told)
        assert watching.interrupt() == 0


def test_on_a_terminal_it_is_told_in_place_and_fits(server: Server) -> None:
    with on_terminal("--watch", "0.1", "--url", server.url) as watching:
        watching.saw("every 0.1 s")
        again = watching.saw("every 0.1 s") + watching.saw("planned")
        assert "\x1b[1A" in again  # up, over what it told before
        assert watching.interrupt() == 0
    for line in CONTROL.sub("", again).splitlines():
        assert len(line.rstrip()) <= 80


def test_on_a_terminal_states_have_colours_unless_told_otherwise(server: Server) -> None:
    told = {}
    settings: tuple[dict[str, str], ...] = ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"})
    for setting in settings:
        with on_terminal("--url", server.url, more=setting) as watching:
            told["".join(setting)] = re.sub(r"\d+ % of", "some of", watching.saw("planned"))
            assert watching.process.wait(DEADLINE) == 0
    assert COLOUR.search(told[""])
    for plain in (told["NO_COLOR"], told["TERM"]):
        assert "\x1b" not in plain
        assert CONTROL.sub("", told[""]) == plain
    name = "mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit-DWQ-with-a-long-name#1"
    assert name in plain.splitlines()


@pytest.mark.parametrize(
    "arguments", [["5"], ["--watch", "0"], ["--watch", "nan"], ["--watch", "inf"], ["--watch", "x"]]
)
def test_usage(arguments: list[str]) -> None:
    done = CliRunner().invoke(main.app, ["status", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_url_that_is_none_is_no_reason_to_wait() -> None:
    done = CliRunner().invoke(main.app, ["status", "--watch", "--url", "https://x"])
    assert done.exit_code == 1
    assert "is not the URL of a Bulkhead" in done.stderr
