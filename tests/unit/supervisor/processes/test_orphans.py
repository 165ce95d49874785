"""supervisor.processes.orphans: what an earlier run left is removed, and nobody else is touched."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from supervisor.processes import orphans
from supervisor.processes.launcher import Child, Launcher
from supervisor.state.paths import StateDir, StateError, open_state
from tests.helpers.children import ROOT

SECONDS = 20
INSTANCE = "the-earlier-run"


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return open_state(tmp_path / "state")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Child]]:
    """Starts children that echo, as the earlier run would have."""
    lifeline, held = os.pipe()
    launcher = Launcher(INSTANCE, lifeline, {**os.environ, "PYTHONPATH": str(ROOT)})
    with ExitStack() as stack:

        async def launch() -> Child:
            return launcher.start(
                "worker m#1",
                "tests.helpers.children",
                ["echo"],
                stdout=tmp_path / "stdout",
                stderr=tmp_path / "stderr",
                channel=True,
                on_exit=lambda returncode: None,
            )

        def one() -> Child:
            child = asyncio.run(launch())
            stack.callback(child.popen.wait)
            stack.callback(child.popen.kill)
            assert child.channel is not None
            stack.callback(child.channel.close)
            child.channel.settimeout(SECONDS)
            assert child.channel.recv(1) == b"!"
            return child

        yield one
    os.close(held)
    os.close(lifeline)


def answers(child: Child) -> bool:
    """Whether the child lives and does its work."""
    assert child.channel is not None
    try:
        child.channel.sendall(b"?")
    except BrokenPipeError:
        return False
    return child.channel.recv(1) == b"?"


def test_a_recorded_child_is_killed(state: StateDir, start: Callable[[], Child]) -> None:
    children = [start(), start()]
    orphans.record(state, INSTANCE, children)
    orphans.clean(state)
    # It has waited for them: what they held is free now.
    assert not any(psutil.pid_exists(child.pid) for child in children)
    assert not state.children.exists()


@pytest.mark.parametrize("differs", ["instance", "start time"])
def test_a_process_that_merely_has_the_pid_is_spared(
    state: StateDir, start: Callable[[], Child], differs: str
) -> None:
    child = start()
    if differs == "instance":
        orphans.record(state, "somebody-else", [child])
    else:
        orphans.record(state, INSTANCE, [replace(child, started=child.started - 10)])
    orphans.clean(state)
    assert answers(child)


def test_one_that_ended_meanwhile_is_no_trouble(
    state: StateDir, start: Callable[[], Child]
) -> None:
    ended, alive = start(), start()
    orphans.record(state, INSTANCE, [ended, alive])
    ended.popen.kill()
    ended.popen.wait(SECONDS)
    orphans.clean(state)
    assert not psutil.pid_exists(alive.pid)


def test_what_is_not_recorded_is_spared(state: StateDir, start: Callable[[], Child]) -> None:
    child = start()
    orphans.record(state, INSTANCE, [child])
    orphans.record(state, INSTANCE, [])
    orphans.clean(state)
    assert answers(child)


def test_sockets_are_removed_and_other_files_are_not(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(state.run)  # a test's folder may be too deep for a socket's address
    for path in (state.control, state.worker_socket("m", 1)):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    (state.logs / "x.log").write_text("kept")
    orphans.clean(state)
    assert list(state.run.iterdir()) == []
    assert (state.logs / "x.log").read_text() == "kept"


NEGATIVE = b'{"role": "x", "pid": -1, "started": 1}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"instance": 1, "children": []}',
        b'{"instance": "i", "children": [%s]}' % NEGATIVE,
        b'{"instance": "i", "children": [], "supervisor": %s}' % NEGATIVE,
    ],
)
def test_an_unreadable_record_is_told_and_does_no_harm(
    state: StateDir, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    state.children.write_bytes(content)
    state.control.touch()
    with caplog.at_level(logging.WARNING):
        orphans.clean(state)
    assert "unreadable" in caplog.text
    assert not state.children.exists()
    assert not state.control.exists()


def test_a_first_start_has_nothing_to_clean(state: StateDir) -> None:
    orphans.clean(state)
    orphans.clean(state)


def test_the_record_is_its_owners_alone(state: StateDir) -> None:
    orphans.record(state, INSTANCE, [])
    assert state.children.stat().st_mode & 0o777 == 0o600


def test_the_children_of_a_supervisor_that_runs_are_not_touched(
    state: StateDir, start: Callable[[], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has removed its lock file."""
    child = start()
    orphans.record(state, INSTANCE, [child])
    state.control.touch()
    us, other = os.getpid(), os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)
    with pytest.raises(StateError, match=f"pid {us}"):
        orphans.clean(state)
    assert state.control.exists()
    assert child.popen.poll() is None


def test_the_children_of_one_whose_pid_another_process_has_are_orphans(
    state: StateDir, start: Callable[[], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start()
    with monkeypatch.context() as earlier:
        earlier.setattr(orphans, "start_time", lambda pid: psutil.Process(pid).create_time() - 60)
        orphans.record(state, INSTANCE, [child])
    other = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: other)
    orphans.clean(state)
    child.popen.wait(SECONDS)
