"""Real workers die in their ways; each leaves a report that says why, with and without a server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner, Result

from supervisor.cli import main
from supervisor.crashes.store import new_id
from tests.helpers.crashes import METAL
from tests.helpers.fakes.engine import Script, text_of
from tests.helpers.serving import Deadline, Server, gate, serving
from tests.process.test_commands import rows

PROMPT = "a prompt that nobody may see"
WORDS = f"sending Bearer abc.def to 'https://u:p@host'\nit was '{PROMPT} {PROMPT}'\n{METAL}"
DEEDS = {
    "metal": {"decode": "abort"},
    "abort": {"decode": "abort"},
    "exits": {"prefill": "exit0"},
    "raises": {"decode": "raise"},
    "loads": {"load": "abort"},
}
ENDS = {
    "metal": ("SIGABRT", "gpu_out_of_memory", "the GPU ran out of memory"),
    "abort": ("SIGABRT", "aborted", "it aborted without a word"),
    "exits": ("exit status 0", "exited", "it exited though nobody had asked it to"),
    "raises": ("exit status 70", "engine_died", "its generation thread died: RuntimeError"),
    "loads": ("SIGABRT", "aborted", "it aborted without a word"),
    "SIGSEGV": ("SIGSEGV", "segfault", "a fault in native code"),
    "SIGKILL": ("SIGKILL", "killed", "something killed it"),
}


def config_for(folder: Path, *models: str, mode: str = "off") -> str:
    tables = "".join(f'[models.{name}]\nsource = "{folder / name}"\n' for name in models)
    return f'[server]\nport = 0\n{tables}[recovery]\nmode = "{mode}"\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Every model has crashed once, in its way; so has the gateway. Nobody recovers."""
    folder = tmp_path_factory.mktemp("crashes")
    for name, deeds in DEEDS.items():
        Script(deeds=deeds, last_words=WORDS if name == "metal" else "").write(folder / name)
    with contextlib.ExitStack() as stack:
        # Each has a gate of its own: one that is dying may still hold its end of it.
        signals = [name for name in ENDS if name.startswith("SIG")]
        gates = {name: stack.enter_context(gate(folder / f"gate-{name}")) for name in signals}
        for name, stop in gates.items():
            Script(gates={"decode": str(stop.path)}).write(folder / name)
        config = config_for(folder, *ENDS)
        with serving(folder / "s", scripted=True, config=config) as made:
            for name, (how, _, summary) in ENDS.items():
                hit = made.stream(name, PROMPT, max_tokens=8)
                if name in gates:
                    gates[name].arrived()
                    os.kill(made.loaded(name)["pid"], signal.Signals[name])
                told = hit.answer().body.decode()
                assert f"{name}#1 died ({how}: {summary}" in told
            made.gateway.send_signal(signal.SIGABRT)
            deadline = Deadline()
            while len(listing(made)) < len(ENDS) + 1:
                deadline.check("all reports")
            yield made


def crashes(*arguments: str) -> Result:
    """What `bulkhead crashes` does with these arguments."""
    return CliRunner().invoke(main.app, ["crashes", *arguments])


def listing(server: Server) -> list[dict[str, Any]]:
    answer = server.request("GET", "/admin/crashes")
    assert answer.status == 200
    return list(answer.json["crashes"])


def report(server: Server, name: str | None) -> dict[str, Any]:
    (brief,) = [each for each in listing(server) if each["model"] == name]
    answer = server.request("GET", f"/admin/crashes/{brief['id']}")
    assert answer.status == 200
    assert brief.items() <= answer.json.items()
    return dict(answer.json)


@pytest.mark.parametrize("name", ENDS)
def test_a_crash_leaves_a_report(name: str, server: Server) -> None:
    how, cause, summary = ENDS[name]
    told = report(server, name)
    assert (told["how"], told["cause"], told["generation"]) == (how, cause, 1)
    assert told["summary"].startswith(summary)
    assert told["phase"] == ("loading" if name == "loads" else "ready")
    assert told["in_flight"] == len(told["requests"]) == 1
    assert told["uptime_seconds"] > 0
    assert name in [model["name"] for model in told["models"]]
    assert told["machine"]
    assert Path(told["stderr_file"]).exists()
    if how in ("SIGABRT", "SIGSEGV"):
        assert "Fatal Python error" in told["stacks"]
    # What the client was told leads to it.
    entry = next(model for model in server.health()["models"] if model["name"] == name)
    assert entry["last_crash"] == {key: told[key] for key in ("id", "cause", "time")}


def test_nothing_of_a_request_and_no_key_is_in_any(server: Server) -> None:
    files = list((server.state / "crashes").glob("*.json"))
    assert len(files) == len(ENDS) + 1
    for file in files:
        text = file.read_text()
        assert "nobody may see" not in text
        assert "RuntimeError: planned" not in text
        assert "abc.def" not in text
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    assert "nobody may see" in server.worker_log("metal")


def test_the_last_exception_is_the_cause_of_a_dead_engine(server: Server) -> None:
    told = report(server, "raises")
    assert told["exception"] == "RuntimeError: (7 characters withheld)"
    assert "in _phase" in told["stderr"]
    assert "generation thread died" in told["line"]


def test_the_gateway_s_death_is_reported(server: Server) -> None:
    told = report(server, None)
    assert (told["process"], told["signal"], told["cause"]) == ("gateway", "SIGABRT", "aborted")
    assert "gateway" in told["stacks"]


@pytest.mark.parametrize(
    "name",
    [
        "nope",
        "20260101T000000Z-000000",
        "..",
        "%2e%2e%2fsizes",
        "..%2F..%2Fetc%2Fpasswd",
        "%00",
        "\u0661" * 8,
    ],
)
def test_an_unknown_report(name: str, server: Server) -> None:
    answer = server.request("GET", f"/admin/crashes/{quote(name, safe='%')}")
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")


def test_the_command_asks_a_server_or_reads_its_files(server: Server, tmp_path: Path) -> None:
    here = ("--state-dir", str(server.state))
    told = crashes(*here).stdout
    head, *lines = rows(told)
    assert head[:4] == ["time", "what", "id", "cause"]
    assert sorted(line[1] for line in lines) == sorted(["gateway", *(f"{n}#1" for n in ENDS)])
    assert crashes("--url", server.url).stdout == told
    as_json = json.loads(crashes("--json", *here).stdout)
    assert as_json == {"crashes": listing(server)}
    metal = report(server, "metal")
    whole = crashes(metal["id"], *here).stdout
    assert whole.startswith("metal#1 died (SIGABRT: the GPU ran out of memory)\n")
    assert "kIOGPUCommandBufferCallbackErrorOutOfMemory" in whole
    assert json.loads(crashes(metal["id"], "--json", *here).stdout) == metal
    for arguments in ((new_id(0), *here), ("../sizes", *here), (new_id(0), "--url", server.url)):
        done = crashes(*arguments)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "no such crash report" in done.stderr
    done = crashes("--state-dir", str(tmp_path))
    assert (done.exit_code, done.stdout) == (0, "nothing has crashed\n")
    done = crashes("--state-dir", str(tmp_path / "none"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there is no state directory {tmp_path / 'none'}" in done.stderr
    broken = new_id(0)
    (tmp_path / "crashes").mkdir()
    (tmp_path / "crashes" / f"{broken}.json").write_text("{")
    done = crashes(broken, "--state-dir", str(tmp_path))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"bulkhead: The crash report {broken} cannot be read: DecodeError\n"


def test_reports_outlive_the_server_and_are_known_to_the_next(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        Script(gates={"decode": str(stop.path)}).write(tmp_path / "m")
        config = config_for(tmp_path, "m")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            hit = server.stream("m", max_tokens=8)
            stop.arrived()
            # It dies while the server drains: the report is written before the server ends.
            pid = server.loaded("m")["pid"]
            server.see_children()
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("m", state="draining")
            os.kill(pid, signal.SIGKILL)
            hit.answer()
            assert server.process.wait() == 0
            stop.open()
        (told,) = rows(crashes("--state-dir", str(tmp_path / "s")).stdout)[1:]
        assert told[1:4] == ["m#1", told[2], "SIGKILL, killed"]
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            (entry,) = server.health()["models"]
            assert (entry["deaths"], entry["last_crash"]["id"]) == (0, told[2])


def test_what_became_of_those_inside(tmp_path: Path) -> None:
    """They go on elsewhere, or their clients leave."""
    with gate(tmp_path / "gate") as stop:
        Script(gates={"decode": str(stop.path)}, deeds={"decode": "abort"}).write(tmp_path / "m")
        config = config_for(tmp_path, "m", mode="resume")
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            hit = server.stream("m", PROMPT, max_tokens=8)
            stop.arrived()
            hit.saw("w2 ")
            stop.open()
            assert hit.answer().text == text_of(8)
            deadline = Deadline()
            while not (told := listing(server)):
                deadline.check("the report")
            while not (whole := report(server, "m"))["recovery"]:
                deadline.check("what became of it")
            (request,) = whole["requests"]
            assert request["prompt_tokens"] == len(PROMPT)
            assert request["emitted_tokens"] == 3
            assert whole["recovery"] == [
                {"request_id": request["request_id"], "outcome": "goes on in m#2"}
            ]
            shown = crashes(told[0]["id"], "--state-dir", str(server.state)).stdout
            assert "28 prompt tokens, 3 tokens emitted, goes on in m#2" in shown


def test_what_would_happen_again_is_not_tried_again(tmp_path: Path) -> None:
    Script(
        deeds={"load": "abort"},
        last_words="RuntimeError: [metal::load_device] No Metal device available.\n",
        generations=(1, 2),
    ).write(tmp_path / "m")
    config = config_for(tmp_path, "m", mode="resume")
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        for _ in range(2):
            answer = server.chat("m", max_tokens=2)
            assert (answer.status, answer.json["error"]["code"]) == (400, "model_load_failed")
            assert "Metal is not available to it. Reinstall mlx" in answer.json["error"]["message"]
        deadline = Deadline()
        while (entry := server.health()["models"][0])["last_crash"] is None:
            deadline.check("the report to be filed")
        assert (entry["deaths"], entry["last_crash"]["cause"]) == (1, "no_gpu")


def test_without_room_for_reports_the_next_request_is_served(tmp_path: Path) -> None:
    Script(deeds={"decode": "abort"}).write(tmp_path / "m")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "crashes").touch()
    with serving(tmp_path / "s", scripted=True, config=config_for(tmp_path, "m")) as server:
        assert server.chat("m", max_tokens=8).status == 503
        assert server.chat("m", max_tokens=2).status == 200
        deadline = Deadline()
        while "is lost" not in server.log():
            deadline.check("the line in the log")
