"""The commands that talk to a running server, as a person types them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.fakes.engine import Script
from tests.helpers.serving import DEADLINE, ROOT, Server, gate, serving


def bulkhead(
    *arguments: str, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    plain = {"PATH": os.defpath, "HOME": "/nowhere", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "supervisor.cli.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={**plain, **(environ or {})},
    )


def ask(server: Server, *arguments: str) -> str:
    """What a command prints that finds the server by its state directory."""
    done = bulkhead(*arguments, "--state-dir", str(server.state))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(table: str) -> list[list[str]]:
    """The cells of a table that is printed into a pipe, and every other line as one cell."""
    return [line.split("\t") for line in table.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`m` takes 3 GB of a budget of 4, by its setting; `n` can't be loaded; `w` fits nowhere."""
    folder = tmp_path_factory.mktemp("commands")
    model = Script(generations=()).write(folder / "m")
    broken = Script(deeds={"load": "unloadable"}, generations=(1, 2, 3)).write(folder / "n")
    config = (
        '[server]\nport = 0\n[memory]\nbudget = "4GB"\n'
        f'[models.m]\nsource = "{model}"\naliases = ["mine", "[b]:cat:"]\nmemory = "3GB"\n'
        f'[models.n]\nsource = "{broken}"\nmemory = "1GB"\n'
        f'[models.w]\nsource = "{model}"\nmemory = "5GB"\n'
    )
    with serving(folder / "s", scripted=True, config=config) as made:
        yield made


def test_a_model_is_loaded_shown_pinned_and_unloaded(server: Server) -> None:
    assert "m#" not in ask(server, "status")
    assert ask(server, "load", "mine") == "m is ready\n"
    told = ask(server, "ps")
    assert "models are charged 3.2 GB of 4.0 GB" in told  # with what the gateway may come to hold
    (mine,) = [row for row in rows(told) if row[0] == "m#1"]
    assert mine[1:2] + mine[3:4] == ["ready", "3.0 GB"]
    assert ask(server, "pin", "m") == "m is pinned\n"
    assert "m#1: pinned\n" in ask(server, "status")
    assert ask(server, "unpin", "m") == "m is no longer pinned\n"
    assert ask(server, "unload", "m") == "m is stopping\n"
    server.wait_for("m", state=None)


def test_what_can_be_served_is_listed_with_what_it_needs(server: Server) -> None:
    head, *models = rows(ask(server, "models"))
    assert head[:4] == ["model", "aliases", "state", "charge"]
    (mine,) = [row for row in models if row[0] == "m"]
    # As it is written: no markup, no emoji, and not cut to the 80 columns of no terminal.
    assert mine[1:5] == ["mine, [b]:cat:", "cold", "3.0 GB", "configured"]
    assert mine[-1].endswith("/m")
    assert {row[0] for row in models if len(row) > 1} == {"m", "n", "w"}
    assert [row[0] for row in models if row[0].startswith("w: needs 5.0 GB")] != []


def test_json_is_what_the_server_says(server: Server) -> None:
    told = json.loads(ask(server, "status", "--json"))
    said = server.health()
    assert {**told, "memory": 0} == {**said, "memory": 0}
    assert told["memory"]["budget_bytes"] == said["memory"]["budget_bytes"] == 4 * 10**9
    assert json.loads(ask(server, "models", "--json")) == said["models"]


def test_a_failed_model_is_shown_with_its_reason(server: Server) -> None:
    done = bulkhead("load", "n", "--url", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "planned" in done.stderr
    while "failed" not in ask(server, "models"):
        assert "stopping" in ask(server, "models")
    assert "n: planned\n" in ask(server, "status")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("load", "nope"), "nope"),
        (("unload", "nope"), "nope"),
        (("load", "w"), "5.0 GB"),
    ],
)
def test_a_refusal_is_one_line_in_the_servers_words(
    arguments: tuple[str, ...], said: str, server: Server
) -> None:
    done = bulkhead(*arguments, "--url", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_server_there_is_one_clear_line(tmp_path: Path) -> None:
    for arguments in (["status"], ["models"], ["load", "m"], ["unpin", "m"]):
        done = bulkhead(*arguments, "--state-dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"bulkhead: no Bulkhead runs with the state directory {tmp_path}; "
            "`bulkhead serve` starts one\n"
        )


def test_an_empty_state_directory_is_none(tmp_path: Path) -> None:
    done = bulkhead("status", "--state-dir", "", environ={"BULKHEAD_HOME": str(tmp_path)})
    assert f"no Bulkhead runs with the state directory {tmp_path};" in done.stderr


def test_an_address_at_which_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = bulkhead("status", "--url", f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    told = f"bulkhead: 127.0.0.1:{port} does not answer: connection refused"
    assert done.stderr == f"{told}; `bulkhead serve` starts a server\n"


@pytest.mark.parametrize("url", ["https://x", "http://", "http://x:many", "ftp://x", "http://[::1"])
def test_what_is_no_url_of_a_server(url: str) -> None:
    done = bulkhead("status", "--url", url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"bulkhead: {url} is not the URL of a Bulkhead")


def test_usage_errors_exit_2() -> None:
    for arguments in (["load"], ["load", "a", "b"], ["status", "--nonsense"]):
        assert bulkhead(*arguments).returncode == 2


def test_keys(tmp_path: Path) -> None:
    """The state directory's owner can read the key file; others bring a key."""
    model = Script(generations=()).write(tmp_path / "m")
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("secret-key\n")
    config = f'[server]\nport = 0\napi_keys_file = "{keys}"\n[models.m]\nsource = "{model}"\n'
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert ask(server, "load", "m") == "m is ready\n"
        done = bulkhead("status", "--url", server.url)
        assert done.returncode == 1
        assert "Incorrect API key" in done.stderr
        assert "$BULKHEAD_API_KEY" in done.stderr
        done = bulkhead("status", "--url", server.url, environ={"BULKHEAD_API_KEY": "secret-key"})
        assert done.returncode == 0
        assert "m#1" in done.stdout


def test_the_default_is_launched_and_the_address_ends_with_the_server(tmp_path: Path) -> None:
    model = Script(generations=()).write(tmp_path / "m")
    config = (
        '[server]\nport = 0\ndefault_model = "o"\n'
        f'[models.m]\nsource = "{model}"\n[models.o]\nsource = "{model}"\n'
    )
    with serving(tmp_path / "s", scripted=True, config=config) as server:
        assert "no model is loaded" in ask(server, "status")
        assert "export ANTHROPIC_MODEL=o\n" in ask(server, "launch", "claude", "--print")
        assert oct((server.state / "address.json").stat().st_mode & 0o777) == "0o600"
        assert server.stop() == 0
        assert not (server.state / "address.json").exists()
        assert bulkhead("status", "--state-dir", str(server.state)).returncode == 1


def test_an_interrupted_load_goes_on_without_its_command(tmp_path: Path) -> None:
    with gate(tmp_path / "gate") as stop:
        model = Script(gates={"load": str(stop.path)}).write(tmp_path / "m")
        config = f'[server]\nport = 0\n[models.m]\nsource = "{model}"\n'
        with serving(tmp_path / "s", scripted=True, config=config) as server:
            with subprocess.Popen(
                [sys.executable, "-m", "supervisor.cli.main", "load", "m", "--url", server.url],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            ) as command:
                stop.arrived()
                server.wait_for("m", queued=1)
                command.kill()
            server.wait_for("m", queued=0)
            stop.open()
            server.wait_for("m", state="ready", generation=1)


# ── launch ───────────────────────────────────────────────────────────────────────────────────────

FAKE = """#!/bin/sh
echo "$0 $*" | sed 's,.*/,,'
env | grep -c '^ANTHROPIC_BASE_URL=http://127.0.0.1:'
[ "$1" = wait ] && sleep 60 > /dev/null 2>&1 &
trap 'kill $! 2> /dev/null; echo ended; exit 7' TERM
echo ready
[ "$1" = wait ] && wait
exit 3
"""


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """A `PATH` where `claude` tells what it was given."""
    path = tmp_path / "claude"
    path.write_text(FAKE)
    path.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.defpath}"}


def test_a_program_is_launched_with_what_it_needs(server: Server, programs: dict[str, str]) -> None:
    given = ("launch", "claude", "--model", "mine", "--state-dir", str(server.state))
    done = bulkhead(*given, "--", "-p", "two words", environ=programs)
    assert done.returncode == 3  # the program's own
    assert done.stdout.splitlines() == ["claude -p two words", "1", "ready"]
    assert "bulkhead: export ANTHROPIC_MODEL=m\n" in done.stderr
    only = bulkhead(*given, "--print", environ=programs)
    assert only.returncode == 0
    assert "ready" not in only.stdout
    assert "export ANTHROPIC_MODEL=m" in only.stdout.splitlines()


def test_a_program_that_is_not_there_or_a_model_that_is_not(
    server: Server, programs: dict[str, str]
) -> None:
    at = ("--state-dir", str(server.state))
    done = bulkhead("launch", "codex", "--model", "m", *at, environ=programs)
    assert (done.returncode, done.stdout) == (1, "")
    assert "`codex` is not installed; `npm install" in done.stderr
    done = bulkhead("launch", "claude", "--model", "nobody", *at, environ=programs)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no model nobody" in done.stderr
    assert bulkhead("launch", "emacs", *at).returncode == 2


def test_a_signal_is_handed_on_to_the_program(server: Server, programs: dict[str, str]) -> None:
    command = [sys.executable, "-m", "supervisor.cli.main", "launch", "claude", "--model", "m"]
    with subprocess.Popen(
        [*command, "--state-dir", str(server.state), "--", "wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"HOME": "/nowhere", **programs},
    ) as launched:
        assert launched.stdout is not None
        for line in launched.stdout:
            if line == "ready\n":
                break
        launched.terminate()
        assert launched.stdout.read() == "ended\n"
        assert launched.wait(DEADLINE) == 7
