"""The state directory is other people's too: whatever is removed there, requests are answered, a
death is recovered from, and the server ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.wire.listener import folders
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import (
    DEADLINE,
    ROOT,
    Deadline,
    Server,
    alive,
    serving,
    start,
    without_spare,
)

STATE = "s"


def config_for(model: Path) -> str:
    return f'[server]\nport = 0\n[models.m]\nsource = "{model}"\n'


# ── what is removed ──────────────────────────────────────────────────────────────────────────────


def away(path: Path) -> None:
    """Remove whatever is there, at once: the server may make it again meanwhile."""
    gone = path.with_name(f"{path.name}-gone")
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    if gone.is_dir() and not gone.is_symlink():
        shutil.rmtree(gone)
    else:
        gone.unlink(missing_ok=True)


def put(path: Path, make: Callable[[Path], None]) -> None:
    """Have what `make` makes in its place, however often the server makes its own again."""
    made = path.with_name(f"{path.name}-made")
    make(made)
    deadline = Deadline()
    while True:
        away(path)
        try:
            made.rename(path)
        except OSError:  # a file does not replace a folder, nor the other way round
            deadline.check(f"{path} to be free")
        else:
            return


def nowhere(path: Path) -> None:
    path.symlink_to("/nonexistent/bulkhead")


def folder_of_fifos(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            os.mkfifo(path / name)

    return make


def one_by_one(state: Path) -> None:
    for path in list((state / "run").iterdir()):
        path.unlink()


def run_folder(state: Path) -> None:
    away(state / "run")


def run_moved(state: Path) -> None:
    (state / "run").rename(state / "moved")


def run_is_a_file(state: Path) -> None:
    put(state / "run", Path.touch)


def run_leads_nowhere(state: Path) -> None:
    put(state / "run", nowhere)


def run_is_free_again(state: Path) -> None:
    (state / "run").unlink()


def logs_folder(state: Path) -> None:
    away(state / "logs")


def logs_is_a_file(state: Path) -> None:
    put(state / "logs", Path.touch)


def logs_lead_nowhere(state: Path) -> None:
    put(state / "logs", nowhere)


def records_are_folders(state: Path) -> None:
    for name in ("children.json", "sizes.json", "quarantine.json", "address.json"):
        put(state / f"{name}.tmp", Path.mkdir)
        put(state / name, Path.mkdir)


def crashes_is_a_file(state: Path) -> None:
    put(state / "crashes", Path.touch)


def fifos(state: Path) -> None:
    put(state / "logs", folder_of_fifos("supervisor.log", "gateway.log"))
    put(state / "crashes", folder_of_fifos("20260101T000000Z-abcdef.json"))


def moved(state: Path) -> None:
    state.rename(state.with_name("elsewhere"))


def everything(state: Path) -> None:
    away(state)


REMOVALS = [
    one_by_one,
    run_folder,
    run_moved,
    logs_folder,
    logs_is_a_file,
    logs_lead_nowhere,
    records_are_folders,
    crashes_is_a_file,
    fifos,
    run_is_a_file,
    run_is_free_again,
    run_leads_nowhere,
    moved,
    everything,
]


def test_whatever_is_removed_requests_are_answered_and_deaths_recovered(tmp_path: Path) -> None:
    """One server, one removal after the other; most of them stay."""
    model = Script(generations=()).write(tmp_path / "m")
    state = tmp_path / STATE
    with serving(state, scripted=True, config=config_for(model)) as server:
        server.chat("m", max_tokens=1)
        for remove in REMOVALS:
            name = remove.__name__
            worker = psutil.Process(server.loaded("m")["pid"])
            remove(state)
            # Before anybody can have noticed, and by a worker whose socket may be gone.
            assert server.chat("m", max_tokens=2).text == text_of(2), name
            worker.send_signal(signal.SIGABRT)
            assert server.chat("m", max_tokens=3).text == text_of(3), name
            assert server.loaded("m")["pid"] != worker.pid, name
            server.see_children()
        # The last removal took everything.
        deadline = Deadline()
        wanted = ("lock", "address.json", "children.json", "run/control.sock", "logs")
        while not all((state / each).exists() for each in wanted):
            deadline.check("the state directory to be whole again")
        server.gateway.send_signal(signal.SIGKILL)
        assert server.chat("m", max_tokens=4).text == text_of(4)
        assert (state / "logs/gateway.log").exists()
        second = run_command("serve", state)
        assert second.returncode == 1
        assert "another Bulkhead" in second.stderr
        server.see_children()
        assert server.stop() == 0
        said = "".join(iter(server.out.get, ""))
        assert "run/control.sock was gone and is made again" in said
        assert "cannot write the log files of processes, which start without" in said
        for bad in ("Traceback", "Logging error", "a bug"):
            assert bad not in said
    assert not folders(state.resolve() / "run")[1].exists()


def run_command(command: str, state: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor.cli.main", command, "--state-dir", str(state)]
        + (["--port", "0"] if command == "serve" else []),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE,
        check=False,
    )


def test_a_second_one_does_not_start_though_the_lock_is_gone(tmp_path: Path) -> None:
    """The first one can't lock the directory again either: a folder is in the lock's place."""
    model = Script(generations=()).write(tmp_path / "m")
    state = tmp_path / STATE
    with serving(state, scripted=True, config=config_for(model)) as server:
        server.chat("m", max_tokens=1)
        worker = server.loaded("m")["pid"]
        (state / "lock").unlink()
        (state / "lock").mkdir()
        deadline = Deadline()
        while "which somebody has removed" not in server.log():
            deadline.check("the lock to be missed")
        (state / "lock").rmdir()
        command = ["-m", "tests.helpers.fakes.serve", str(state / "bulkhead.toml"), str(state)]
        with pytest.raises(AssertionError, match="another Bulkhead"), start(command, state):
            raise AssertionError("it has started")
        assert server.loaded("m")["pid"] == worker


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def unheard(state: Path, config: str) -> Iterator[Server]:
    """A server whose stdout nobody reads any more and whose stderr takes nothing."""
    state.mkdir()
    (state / "bulkhead.toml").write_text(without_spare(config))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.helpers.fakes.serve"),
            *(str(state / "bulkhead.toml"), str(state)),
        ],
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        ready = re.search(r":(\d+)\n", process.stdout.readline())
        process.stdout.close()
        assert ready
        yield Server(process, state, int(ready[1]), None)  # type: ignore[arg-type]
    finally:
        process.kill()
        process.wait(DEADLINE)
        for end in (reading, writing):
            os.close(end)


def test_a_server_that_nobody_hears_serves_and_ends(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    state = tmp_path / STATE
    with unheard(state, config_for(model)) as server:
        server.chat("m", max_tokens=1)
        os.kill(server.loaded("m")["pid"], signal.SIGABRT)
        server.gateway.send_signal(signal.SIGKILL)
        assert server.chat("m", max_tokens=2).text == text_of(2)
        # Neither child can hear that it is to end, and nothing can be written any more.
        worker, gateway = server.loaded("m")["pid"], server.gateway.pid
        put(state, Path.touch)
        for pid in (worker, gateway):
            os.kill(pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(DEADLINE) == 0
        deadline = Deadline()
        for pid in (worker, gateway):
            while alive(pid):
                deadline.check(f"{pid} to end")


def test_a_third_signal_ends_a_server_that_waits(tmp_path: Path) -> None:
    model = Script(gates={"decode": str(tmp_path / "never")}).write(tmp_path / "m")
    state = tmp_path / STATE
    with unheard(state, config_for(model)) as server:
        hits = server.stream("m", max_tokens=8)
        server.wait_for("m", in_flight=1)
        server.see_children()
        os.kill(server.process.pid, signal.SIGSTOP)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            server.process.send_signal(number)
        os.kill(server.process.pid, signal.SIGCONT)
        assert server.process.wait(DEADLINE) == 1
        deadline = Deadline()
        for pid in server.pids:
            while alive(pid):
                deadline.check(f"{pid} to end")
        with contextlib.suppress(Exception):
            hits.answer()
