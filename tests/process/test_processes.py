"""The gateway's death, the supervisor's death, orderly ends, and what is left of an earlier run."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import (
    DEADLINE,
    ROOT,
    Deadline,
    alive,
    assert_gone,
    gate,
    serving,
    start,
    without_spare,
)


def config_for(*folders: Path, extra: str = "") -> str:
    tables = "".join(f'[models.{folder.name}]\nsource = "{folder}"\n' for folder in folders)
    return f"[server]\nport = 0\n{extra}\n{tables}"


def scripted(state: Path, config: str) -> list[str]:
    state.mkdir()
    (state / "bulkhead.toml").write_text(without_spare(config))
    return ["-m", "tests.helpers.fakes.serve", str(state / "bulkhead.toml"), str(state)]


def wait_gone(pids: set[int]) -> None:
    deadline = Deadline()
    for pid in pids:
        while alive(pid):
            deadline.check(f"process {pid} to end")


def reaping(child: subprocess.Popen[Any]) -> None:
    """Reap it as soon as it ends, as init does with what a supervisor leaves behind."""
    threading.Thread(target=child.wait, daemon=True).start()


# ── the gateway ──────────────────────────────────────────────────────────────────────────────────


def test_gateway_death_refuses_nobody_and_unloads_nothing(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        assert server.chat("m", max_tokens=2).text == text_of(2)
        worker, gateway = server.loaded("m")["pid"], server.gateway
        gateway.send_signal(signal.SIGKILL)
        # These connect while nobody accepts: they wait in the backlog.
        streams = [server.stream("m", max_tokens=4) for _ in range(32)]
        assert {stream.answer().text for stream in streams} == {text_of(4)}
        assert server.loaded("m")["pid"] == worker
        assert server.loaded("m")["generation"] == 1
        assert server.gateway.pid != gateway.pid
        server.pids.add(gateway.pid)


def test_gateway_death_frees_its_leases(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            hit = server.stream("m", max_tokens=8)
            stop.arrived()
            hit.saw("w2 ")
            assert server.loaded("m")["in_flight"] == 1
            server.gateway.send_signal(signal.SIGKILL)
            server.wait_for("m", in_flight=0, generation=1)
            stop.open()
            assert server.chat("m", max_tokens=3).text == text_of(3)


def test_gateway_is_restarted_again_and_again(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        server.chat("m", max_tokens=1)
        worker = server.loaded("m")["pid"]
        # Importing aiohttp reads the machine's certificates otherwise, at each of these starts.
        assert server.gateway.environ()["SSL_CERT_FILE"] == os.devnull
        for _ in range(3):
            server.gateway.send_signal(signal.SIGKILL)
            assert server.loaded("m")["pid"] == worker
        assert server.log().count("the gateway died (SIGKILL)") == 3


# ── the supervisor ───────────────────────────────────────────────────────────────────────────────


def test_supervisor_death_leaves_no_process(tmp_path: Path) -> None:
    """ollama#5642: a SIGKILL left orphans with 14 GB."""
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        other = Script(generations=()).write(tmp_path / "other")
        spare = "[memory]\nspare = true"
        command = scripted(tmp_path / "s", config_for(model, other, extra=spare))
        with start(command, tmp_path / "s") as server:
            server.chat("other", max_tokens=1)
            server.stream("m", max_tokens=8)
            stop.arrived()
            deadline = Deadline()
            while server.health()["memory"]["spare"] != "ready":
                deadline.check("a spare worker to be ready")
            server.see_children()
            assert len(server.pids) == 4
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(DEADLINE)
            wait_gone(server.pids)
        stop.open()
        # A new start in the same place finds no obstacle and cleans up.
        assert (tmp_path / "s/run/control.sock").exists()
        with start(command[:], tmp_path / "s") as again:
            assert again.chat("other", max_tokens=2).text == text_of(2)
            assert again.stop() == 0
            assert_gone(again)


def test_new_start_kills_what_is_recorded_and_spares_the_rest(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import signal; signal.pause()"]
    mine, other = (
        subprocess.Popen(sleep, env={**os.environ, "BULKHEAD_INSTANCE": instance})
        for instance in ("aaaa", "bbbb")
    )
    state = tmp_path / "s"
    try:
        (state / "run").mkdir(parents=True)
        children = [
            {
                "role": "worker m#1",
                "pid": child.pid,
                "started": psutil.Process(child.pid).create_time(),
            }
            for child in (mine, other)
        ]
        (state / "children.json").write_text(json.dumps({"instance": "aaaa", "children": children}))
        model = Script(generations=()).write(tmp_path / "m")
        reaping(mine)
        with serving(state, scripted=True, config=config_for(model)) as server:
            assert mine.wait(DEADLINE) == -signal.SIGKILL
            assert other.poll() is None
            assert "left by an earlier run" in server.log()
    finally:
        for child in (mine, other):
            child.kill()
            child.wait(DEADLINE)


def test_new_start_gets_back_the_port_that_a_leftover_holds(tmp_path: Path) -> None:
    listen = (
        "import signal, socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen();"
        "print(s.getsockname()[1], flush=True); signal.pause()"
    )
    environ = {**os.environ, "BULKHEAD_INSTANCE": "aaaa"}
    with subprocess.Popen([sys.executable, "-c", listen], env=environ, stdout=-1) as left:
        try:
            assert left.stdout is not None
            port = int(left.stdout.readline())
            state = tmp_path / "s"
            (state / "run").mkdir(parents=True)
            started = psutil.Process(left.pid).create_time()
            child = {"role": "gateway", "pid": left.pid, "started": started}
            (state / "children.json").write_text(
                json.dumps({"instance": "aaaa", "children": [child]})
            )
            model = Script(generations=()).write(tmp_path / "m")
            config = config_for(model).replace("port = 0", f"port = {port}")
            reaping(left)
            with serving(state, scripted=True, config=config) as server:
                assert server.port == port
        finally:
            left.kill()


def test_two_instances_side_by_side(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    config = config_for(model)
    with (
        serving(tmp_path / "a", scripted=True, config=config) as a,
        serving(tmp_path / "b", scripted=True, config=config) as b,
    ):
        assert a.chat("m", max_tokens=1).status == b.chat("m", max_tokens=1).status == 200
        kept = b.loaded("m")["pid"]
        assert a.stop() == 0
        assert b.loaded("m")["pid"] == kept


def test_second_instance_in_the_same_place_is_refused(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        command = [
            "-m",
            "tests.helpers.fakes.serve",
            str(tmp_path / "s/bulkhead.toml"),
            str(tmp_path / "s"),
        ]
        second = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert second.returncode == 1
        assert f"pid {server.process.pid}" in second.stderr
        assert server.chat("m", max_tokens=1).status == 200


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        second = subprocess.run(
            [sys.executable, "-m", "supervisor.cli.main", "serve", "--port", str(server.port)]
            + ["--state-dir", str(tmp_path / "t"), "--model", f"m={model}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{server.port}" in second.stderr
        assert "Traceback" not in second.stderr


# ── orderly ends ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_lets_streams_finish(number: signal.Signals, tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            running = server.stream("m", max_tokens=8)
            stop.arrived()
            running.saw("w2 ")
            server.see_children()
            server.process.send_signal(number)
            server.wait_for("m", state="draining")
            late = server.chat("m")
            assert (late.status, late.json["error"]["code"]) == (503, "shutting_down")
            assert 1 <= int(late.headers["retry-after"]) <= 59
            health = server.request("GET", "/health")
            assert (health.status, health.json["status"]) == (503, "shutting_down")
            stop.open()
            assert running.answer().text == text_of(8)
            assert running.answer().events[-1] == "[DONE]"
            assert server.process.wait(DEADLINE) == 0


def test_drain_deadline_cuts_with_a_typed_end(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        config = config_for(model, extra="[memory]\ndrain_seconds = 0.2")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            running = server.stream("m", max_tokens=8)
            stop.arrived()
            running.saw("w2 ")
            server.see_children()
            server.process.send_signal(signal.SIGTERM)
            answer = running.answer()
            assert json.loads(answer.events[-1])["error"]["code"] == "shutting_down"
            stop.open()
            assert server.process.wait(DEADLINE) == 0


def test_second_signal_cuts_at_once(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            running = server.stream("m", max_tokens=8)
            stop.arrived()
            running.saw("w2 ")
            server.see_children()
            server.process.send_signal(signal.SIGINT)
            server.wait_for("m", state="draining")
            server.process.send_signal(signal.SIGINT)
            assert json.loads(running.answer().events[-1])["error"]["code"] == "shutting_down"
            stop.open()
            assert server.process.wait(DEADLINE) == 0


def test_stop_while_a_model_loads(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
            waiting = server.stream("m")
            stop.arrived()
            assert server.stop() == 0
            answer = waiting.answer()
            assert (answer.status, answer.json["error"]["code"]) == (503, "shutting_down")


def test_preload(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    config = config_for(model) + "preload = true\n"
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert server.wait_for("m", state="ready")["use_count"] == 0


def test_failed_preload_does_not_stop_the_server(tmp_path: Path) -> None:
    model = Script(deeds={"load": "abort"}).write(tmp_path / "m")
    config = config_for(model, extra='[recovery]\nmode = "off"') + "preload = true\n"
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        deadline = Deadline()
        while "is not preloaded" not in server.log():
            deadline.check("the preload to fail")
        assert re.search(r"WARNING m is not preloaded: .*SIGABRT", server.log())
        assert server.chat("m", max_tokens=1).status == 200


def test_file_limit_is_raised_before_any_spawn(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model), files=256) as server:
        server.chat("m", max_tokens=1)
        for pid in (server.process.pid, server.gateway.pid, server.loaded("m")["pid"]):
            soft, _ = psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)
            assert soft >= 2048
        streams = [server.stream("m", max_tokens=2) for _ in range(120)]
        assert {stream.answer().text for stream in streams} == {text_of(2)}


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def test_modes_of_what_is_on_disk(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    with serving(tmp_path / "s", scripted=True, config=config_for(model)) as server:
        server.chat("m", max_tokens=1)
        run = tmp_path / "s/run"
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
        sockets = list(run.glob("*.sock"))
        assert len(sockets) == 2
        assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}


def test_logs_tell_what_was_going_on(tmp_path: Path) -> None:
    """The moments before a crash can be read; the prompt can't."""
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        config = config_for(model, extra='[recovery]\nmode = "off"')
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            hit = server.stream("m", content="my secret", max_tokens=8)
            stop.arrived()
            hit.saw("w2 ")
            os.kill(server.loaded("m")["pid"], signal.SIGABRT)
            assert hit.answer().status == 200
            request_id = hit.answer().headers["x-request-id"]
            server.stop()
            supervisor, gateway = server.log(), server.log("gateway.log")
            (line,) = [each for each in gateway.splitlines() if f" {request_id} client=" in each]
            assert " status=200 code=worker_crashed model=m worker=m#1 stream=yes " in line
            assert request_id in supervisor
            assert "worker m#1 died (SIGABRT) with 1 requests in it" in supervisor
            assert f"{request_id} was in worker m#1 when it died, with 9 prompt tokens" in gateway
            everything = [
                path.read_text(errors="replace") for path in (server.state / "logs").iterdir()
            ]
            assert not any("my secret" in text for text in everything)
