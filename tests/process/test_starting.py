"""Starts that fail, with what they say, and what may lie in the way of one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from supervisor import serve
from supervisor.bootstrap import PACKAGES
from supervisor.config.schema import Config
from supervisor.machine import readers
from supervisor.processes.own_code import DISTRIBUTION
from supervisor.wire.listener import temporary
from tests.helpers.serving import DEADLINE, ROOT, Deadline, alive, assert_gone, start

CONFIG = '[server]\nport = 0\n[memory]\nspare = false\n[models.demo]\nsource = "demo"\n'


def begin(state: Path, *arguments: str, root: Path = ROOT) -> list[str]:
    """What comes after `python` to serve the demo from the packages in `root`."""
    bootstrap = str(root / "supervisor" / "bootstrap.py")
    command = ["-P", bootstrap, "supervisor.cli.main", "serve", "--state-dir", str(state)]
    return [*command, *arguments]


def refused(state: Path, *arguments: str) -> str:
    """The one line of a start that fails."""
    done = subprocess.run(
        [sys.executable, *begin(state, "--model", "demo=demo", "--port", "0", *arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "BULKHEAD_HOME": ""},
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_start_without_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(readers, "for_platform", none)
    with pytest.raises(SystemExit) as ended:
        serve.run(Config(), tmp_path)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bulkhead: cannot start: there is not enough memory. End other")


def test_an_end_without_threads_keeps_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def served() -> int:
        await asyncio.to_thread(int)
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        return 7

    assert serve._run_loop(served()) == 7


def test_what_ends_the_work_is_told() -> None:
    async def failing() -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        serve._run_loop(failing())


def make_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (make_file, "file exists. Move that file or folder away"),
        (lambda s: (s / "lock").mkdir(parents=True), "lock: is a directory. Move that"),
        (lambda s: (s / "address.json").mkdir(parents=True), "address.json: is a directory"),
    ],
)
def test_a_state_directory_that_cannot_be_used(
    prepare: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    prepare(state)
    line = refused(state)
    assert line.startswith(f"bulkhead: cannot use the state directory {state}: ")
    assert said in line
    assert line.endswith("or choose another --state-dir.")
    assert not list(state.glob("run/*")) if state.is_dir() else True
    assert not (state / "run.json").exists()


def test_a_state_directory_of_another_name(tmp_path: Path) -> None:
    line = refused(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))
    assert line.endswith("its name is not UTF-8. Choose another --state-dir.")
    line = refused(tmp_path / ("x" * 300))
    assert line.endswith("file name too long. Choose a shorter --state-dir.")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "run").symlink_to(tmp_path)
    assert "belongs to somebody else" in refused(tmp_path / "s")


def test_a_start_that_fails_leaves_no_folder_for_its_sockets(tmp_path: Path) -> None:
    state = tmp_path / ("x" * 100)  # too long for sockets
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused(state, "--port", str(other.getsockname()[1]))
    assert state.is_dir()
    assert not temporary(state.resolve()).exists()


def test_who_has_the_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = refused(tmp_path / "s", "--port", str(other.getsockname()[1]))
    name = psutil.Process().name()
    assert f"address already in use by {name} (pid {os.getpid()}). Stop what listens" in line


def test_changed_files_and_packages_of_our_names(tmp_path: Path) -> None:
    """One server: others' packages come first on the path, then an upgrade under it spoils the
    files that it was started from, and at last it is killed."""
    root, state, his = tmp_path / "root", tmp_path / "s", tmp_path / "his"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("trainer"))
        (his / name).mkdir(parents=True)
        (his / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    (his / "sitecustomize.py").write_text("import sys\n")
    state.mkdir()
    (state / "bulkhead.toml").write_text(CONFIG)
    environ = {"PYTHONPATH": str(his), "BULKHEAD_HOME": ""}
    with start(begin(state, root=root), state, environ) as server:
        said = server.chat("demo", temperature=0, max_tokens=3).text
        assert f"configuration: {state / 'bulkhead.toml'}" in server.log()
        for name in ("worker/main.py", "gateway/main.py", "supervisor/processes/child.py"):
            (root / name).write_text("raise RuntimeError('half an upgrade')")
        os.kill(server.loaded("demo")["pid"], signal.SIGKILL)
        assert server.chat("demo", temperature=0, max_tokens=3).text == said
        server.gateway.send_signal(signal.SIGKILL)
        assert server.loaded("demo")["generation"] == 2
        assert server.log().count("have changed since it was started") == 1
        assert list((state / "run").glob("code-*"))
        server.see_children()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(DEADLINE)
        deadline = Deadline()
        while any(alive(pid) for pid in server.pids):
            deadline.check("its children to end")
    killed = server.process.pid
    with start(begin(state), state, {"BULKHEAD_HOME": ""}) as again:
        assert f"the last run ended without a shutdown: pid {killed}, started" in again.log()
        reports = again.request("GET", "/admin/crashes").json["crashes"]
        assert [each["process"] for each in reports] == ["supervisor", "gateway", "worker"]
        whole = again.request("GET", f"/admin/crashes/{reports[0]['id']}").json
        assert (whole["pid"], whole["cause"]) == (killed, "no_shutdown")
        assert not list((state / "run").glob("code-*"))
        assert again.stop() == 0
        assert_gone(again)
    assert not (state / "run.json").exists()


def test_an_installation_that_is_not_what_was_installed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("trainer", "model"))
    info = root / "mlx_bulkhead-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: 0.1.0\n")
    (info / "RECORD").write_text("worker/main.py,sha256=another,9\n")
    done = subprocess.run(
        [sys.executable, *begin(tmp_path / "s", "--model", "demo=demo", "--port", "0", root=root)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "BULKHEAD_HOME": ""},
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"bulkhead: this installation of Bulkhead is damaged: {root}/worker/main.py is missing, or "
    )
    assert "uv tool install --reinstall mlx-bulkhead" in line


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_shows_each_request_unless_quiet(quiet: bool, tmp_path: Path) -> None:
    config = tmp_path / "bulkhead.toml"
    config.write_text(CONFIG)
    arguments = begin(tmp_path / "s", "--config", str(config), *(["--quiet"] if quiet else []))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as server:
        os.close(theirs)
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        asked = urllib.request.Request(f"{url}/v1/models", headers={"x-request-id": "asked"})
        with urllib.request.urlopen(asked, timeout=DEADLINE) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        shown = read_terminal(ours)
        assert server.wait(DEADLINE) == 0
    assert f"logs: {tmp_path / 's' / 'logs'}" in shown
    assert ("asked client=127.0.0.1 " in shown) is not quiet
    assert "asked client=127.0.0.1 " in (tmp_path / "s/logs/gateway.log").read_text()


def read_terminal(terminal: int) -> str:
    """All that is written there until nobody has it open any more; it is closed."""
    written = b""
    with (
        open(terminal, "rb", buffering=0) as file,
        contextlib.suppress(OSError),  # so Linux tells the end
    ):
        while more := file.read(65536):
            written += more
    return written.decode()
