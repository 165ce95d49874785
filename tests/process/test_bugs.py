"""A bug in the supervisor: in a decision it ends it in good order, in an effect it costs little."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.machine.readers import for_platform
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.fakes.serve import ARMED, BUGS
from tests.helpers.serving import DEADLINE, Deadline, Server, serving


@contextlib.contextmanager
def with_bugs(
    folder: Path, *bugs: str, script: Script | None = None, stall: float = 45
) -> Iterator[Server]:
    """A server with a model `m`, and functions that raise once, of their calls from now on: how
    many there are in its start depends on how long that takes. After `stall` seconds without
    progress a process is killed, the gateway too: a busy machine alone can hold it up for one."""
    model = (script or Script(generations=())).write(folder / "m")
    config = (
        f'[server]\nport = 0\n[recovery]\nstall_seconds = {stall}\n[models.m]\nsource = "{model}"\n'
    )
    environ = {BUGS: " ".join(bugs), ARMED: str(armed := folder / "armed")}
    with serving(folder / "s", scripted=True, config=config, environ=environ) as server:
        armed.touch()
        yield server


@pytest.mark.parametrize(
    ("bug", "event"),
    [
        ("scheduler.pool:Pool.acquire*2", "Pool.acquire"),  # the control socket
        ("scheduler.pool:Pool.started", "Pool.started"),  # the fleet
        ("scheduler.planner:Planner.settle*6", ""),
        ("scheduler.pool:Pool.next_deadline*4", ""),  # the timer
        ("scheduler.memory_events:MemoryEvents.pressure*3", "MemoryEvents.pressure"),  # monitor
    ],
)
def test_a_bug_in_a_decision_ends_the_supervisor_and_its_children(
    tmp_path: Path, bug: str, event: str
) -> None:
    with with_bugs(tmp_path, bug) as server:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for _ in range(3):
                server.chat("m", max_tokens=2)
                server.see_children()
        assert server.process.wait(DEADLINE) == 1
        name = bug.partition(":")[2].partition("*")[0]
        assert f"planted in {name}" in server.log()
        assert f"{event}: a bug; the supervisor exits" in server.log()
        assert not (server.state / "children").exists()


def test_a_bug_in_a_load_by_hand_is_logged_with_its_event(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "scheduler.pool:Pool.load") as server:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.request("POST", "/admin/models/m/load")
        assert server.process.wait(DEADLINE) == 1
        assert "Pool.load: a bug; the supervisor exits" in server.log()


@pytest.mark.parametrize(
    ("bug", "where"),
    [
        ("processes.fleet:Fleet._follow", "Fleet._listen has ended"),  # a task
        ("processes.fatal_signal:FatalSignalReader.close", "WorkerProcess._exited"),  # a callback
    ],
)
def test_a_bug_outside_of_events_ends_the_supervisor_and_its_children(
    tmp_path: Path, bug: str, where: str
) -> None:
    with with_bugs(tmp_path, bug, script=Script(deeds={"decode": "abort"})) as server:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.chat("m", max_tokens=5)
        assert server.process.wait(DEADLINE) == 1
        critical = [line for line in server.log().splitlines() if "a bug; the supervisor" in line]
        assert len(critical) == 1
        assert where in critical[0]
        if where != "Fleet._listen has ended":
            # The pool has learned of the death first, and those who were in the worker.
            assert "worker m#1 died (SIGABRT) with 1 requests in it" in server.log()


def test_a_bug_at_the_gateways_restart_ends_the_supervisor(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "processes.gateway:GatewayProcess.start") as server:
        children = json.loads((server.state / "children.json").read_text())["children"]
        gateway = next(child["pid"] for child in children if child["role"] == "gateway")
        os.kill(gateway, signal.SIGKILL)
        assert server.process.wait(DEADLINE) == 1
        assert "a bug; the supervisor exits" in server.log()


def test_a_worker_that_cannot_be_listened_to_is_no_orphan(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "processes.fatal_signal:FatalSignalReader.__init__") as server:
        assert server.chat("m", max_tokens=3).text == text_of(3)
        worker = server.wait_for("m", state="ready")
        assert (worker["generation"], worker["deaths"]) == (2, 1)
        assert "worker m#1 cannot be started: [Errno 5] its fault pipe" in server.log()
        deadline = Deadline()
        while len(psutil.Process(server.process.pid).children()) > 2:
            deadline.check("the first worker to be gone")


def test_a_bug_during_the_drain_ends_it(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "scheduler.pool:Pool.exited") as server:
        assert server.chat("m").status == 200
        assert server.stop() == 1
        assert "Pool.exited: a bug; the supervisor exits" in server.log()


@pytest.mark.parametrize(
    "bug",
    [
        "processes.fleet:Fleet.spawn",  # no process
        "processes.fleet:Fleet._listen",  # one that nobody listens to
    ],
)
def test_a_worker_that_cannot_be_started_is_a_death(tmp_path: Path, bug: str) -> None:
    with with_bugs(tmp_path, bug) as server:
        assert server.chat("m", max_tokens=3).text == text_of(3)
        worker = server.wait_for("m", state="ready")
        assert (worker["generation"], worker["deaths"]) == (2, 1)
        assert "not carried out: Spawn(model='m', generation=1)" in server.log()


def test_a_worker_that_cannot_be_asked_to_stop_is_killed(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "processes.fleet:Fleet.stop") as server:
        assert server.chat("m").status == 200
        server.see_children()
        assert server.request("POST", "/admin/models/m/unload").status == 200
        assert server.chat("m", max_tokens=3).text == text_of(3)
        worker = server.wait_for("m", state="ready")
        assert (worker["generation"], worker["deaths"]) == (2, 0)


def test_a_stalled_worker_that_cannot_be_asked_for_its_stacks_is_killed(tmp_path: Path) -> None:
    script = Script(deeds={"decode": "block"})
    bug = "processes.launcher:Child.kill_with_stacks"
    with with_bugs(tmp_path, bug, script=script, stall=3) as server:
        assert server.chat("m", max_tokens=5).text == text_of(5)
        assert server.loaded("m")["generation"] == 2
        assert "not carried out: Stop(model='m', generation=1, kill=True" in server.log()


def test_a_request_that_cannot_be_told_ends_and_gives_back_its_place(tmp_path: Path) -> None:
    with with_bugs(tmp_path, "api.control:Control.tell") as server:
        assert server.chat("m").status >= 500
        server.wait_for("m", in_flight=0, queued=0)
        assert server.chat("m", max_tokens=3).text == text_of(3)
        assert server.loaded("m")["generation"] == 1


def test_what_is_only_recorded_changes_nothing(tmp_path: Path) -> None:
    reader = type(for_platform())
    bugs = [
        "api.events:EventFeed.tell_states*2",
        "dispatcher:Dispatcher._log_death",
        f"{reader.__module__.removeprefix('supervisor.')}:{reader.__name__}.footprint",
        "crashes.collector:CrashCollector.diagnose",
        "crashes.collector:CrashCollector.record_effect",
        "models.sizing:Sizing.save_limit",
    ]
    script = Script(deeds={"decode": "SIGABRT"}, last_words="MemoryError\n")
    with with_bugs(tmp_path, *bugs, script=script) as server:
        assert server.chat("m", max_tokens=5).text == text_of(5)
        assert server.loaded("m")["deaths"] == 1
        for bug in bugs[:-1]:
            assert f"planted in {bug.partition(':')[2].partition('*')[0]}" in server.log()
