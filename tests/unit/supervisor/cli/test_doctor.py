"""supervisor.cli.doctor: what is wrong here, and what to do about it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil
import pytest
from typer.testing import CliRunner

from supervisor import conditions, startup
from supervisor.cli.doctor import (
    CHECKS,
    Finding,
    Subject,
    diagnose,
    lines,
    look,
    models,
    passed_over,
)
from supervisor.cli.main import app
from supervisor.config.schema import ModelSettings
from supervisor.models.catalog import Catalog
from supervisor.models.discovery import PassedOver
from supervisor.scheduler.pressure import GroupMemory, MachineMemory
from supervisor.state.address import Address, announce
from supervisor.state.paths import InstanceLock, StateError, open_state
from tests.helpers.hub_cache import QUANTIZED, add_repo, plain_files, safetensors, write_folder
from tests.helpers.serving import DEADLINE, ROOT

HUB = "hub"
GB = 10**9
LIMITED = MachineMemory(24 * GB, groups=(GroupMemory("/cg/memory.max", 8 * GB),))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a state directory, a configuration and an empty cache are looked for."""
    (tmp_path / HUB).mkdir()
    monkeypatch.delenv("MLX_PRELOAD_MODELS", raising=False)
    monkeypatch.setenv("BULKHEAD_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("BULKHEAD_CONFIG", str(tmp_path / "b.toml"))
    configure("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / HUB))
    return tmp_path


def configure(config: str, port: int = 0) -> None:
    """Have this configuration, and another port than that of a server of this machine."""
    begin, found, rest = config.partition("[server]\n")
    server = f"[server]\nport = {port}\n"
    told = f"{begin}{server}{rest}" if found else f"{server}{config}"
    Path(os.environ["BULKHEAD_CONFIG"]).write_text(told)


def findings(config: str = "", port: int = 0) -> dict[str, Finding]:
    configure(config, port)
    return {each.name: each for each in diagnose(look(None, None, os.environ), CHECKS)}


def ask(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", *arguments])
    return done.exit_code, done.output


def model(source: Path | str, name: str = "m") -> str:
    return f'[models.{name}]\nsource = "{source}"\n'


def test_where_nothing_is_wrong(place: Path) -> None:
    found = findings()
    assert {each.level for each in found.values()} == {"ok"}
    of_the_start = {"state directory", "Python", "installation", "open files", "port", "memory"}
    assert set(found) == {"configuration", *of_the_start, "model demo"}
    assert ask()[0] == 0
    assert not (place / "state").exists()  # it only looks


@pytest.mark.parametrize(
    ("machine", "budget", "level", "said"),
    [
        (MachineMemory(24 * GB), "auto", "ok", "24.0 GB RAM"),
        (MachineMemory(24 * GB), "25GB", "warning", "24.0 GB RAM; memory.budget is 25.0 GB"),
        (MachineMemory(24 * GB), "100%", "ok", "24.0 GB RAM"),
        (LIMITED, "auto", "ok", "24.0 GB RAM, of which /cg/memory.max allows 8.0 GB"),
        (LIMITED, "8GB", "ok", "24.0 GB RAM, of which /cg/memory.max allows 8.0 GB"),
        (LIMITED, "9GB", "warning", "allows 8.0 GB; memory.budget is 9.0 GB"),
        (MachineMemory(), "9GB", "note", "cannot be read"),
    ],
)
@pytest.mark.usefixtures("place")
def test_the_memory_that_there_is_and_who_limits_it(
    machine: MachineMemory, budget: str, level: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = SimpleNamespace(machine=lambda: machine)
    monkeypatch.setattr("supervisor.machine.readers.for_platform", lambda: reader)
    found = findings(f'[memory]\nbudget = "{budget}"\n')["memory"]
    assert (found.level, found.message[-len(said) :]) == (level, said)
    assert ("raise that limit" in found.advice) is (level == "warning" and machine is LIMITED)


def test_models_that_can_not_be_served_are_errors_with_advice(place: Path) -> None:
    gguf = write_folder(place / "gguf", {"m.gguf": b"GGUF"})
    lacks = plain_files(model=None) | {"model-00001-of-00002.safetensors": safetensors()}
    shard = write_folder(place / "shard", lacks)
    odd = write_folder(place / "odd", plain_files(config=b'{"model_type": "gpt99"}'))
    good = write_folder(place / "good", plain_files())
    remapped = write_folder(place / "remapped", plain_files(config=b'{"model_type": "mistral"}'))
    header = {"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}
    cut = write_folder(place / "cut", plain_files(model=safetensors(header)))
    named = {
        "cut": cut,
        "gguf": gguf,
        "shard": shard,
        "odd": odd,
        "good": good,
        "remapped": remapped,
    }
    config = "".join(model(folder, name) for name, folder in named.items())
    found = findings(config + model("org/none", "none"))
    levels = {name: found[f"model {name}"].level for name in (*named, "none")}
    assert levels == {
        "cut": "error",
        "gguf": "error",
        "shard": "error",
        "odd": "error",
        "good": "ok",
        "remapped": "ok",
        "none": "error",
    }
    assert "model.safetensors is cut short" in found["model cut"].message
    assert "this is GGUF" in found["model gguf"].message
    assert found["model gguf"].advice.startswith("get an MLX build")
    assert "model-00002-of-00002.safetensors is missing" in found["model shard"].message
    assert found["model shard"].advice == f"complete the folder {shard}"
    assert "'gpt99'" in found["model odd"].message
    assert "upgrade mlx-lm" in found["model odd"].advice
    assert found["model none"].advice == "run `hf download org/none`"
    status, said = ask()
    assert status == 1
    assert "→ upgrade mlx-lm" in said


def test_what_the_cache_has_besides_is_told(place: Path) -> None:
    older = add_repo(place / HUB, "mlx-community/m", commit="aaa", mtime=1000)
    metadata = {"config.json": json.dumps(QUANTIZED).encode()}
    add_repo(place / HUB, "mlx-community/m", metadata, commit="bbb", mtime=2000)
    add_repo(place / HUB, "mlx-community/half", metadata)
    add_repo(place / HUB, "org/diffusion", {"model_index.json": b"{}"})
    found = findings()
    assert found["model mlx-community/m"].message == str(older)
    assert found["passed over mlx-community/m@bbb"].level == "warning"
    assert found["passed over mlx-community/half"].advice == "run `hf download mlx-community/half`"
    assert found["Hugging Face cache"].level == "note"
    assert "org/diffusion" in found["Hugging Face cache"].message
    assert ask()[0] == 0  # what can be served is served


def test_a_configured_model_whose_newest_snapshot_is_passed_over_is_told(place: Path) -> None:
    add_repo(place / HUB, "org/m", commit="aaa", mtime=1000)
    add_repo(place / HUB, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    found = findings(model("org/m"))["model m"]
    assert found.level == "warning"
    assert "aaa of org/m is served" in found.message
    assert found.advice == "run `hf download org/m`"


@pytest.mark.parametrize(("source", "level"), [("org/m@bbb", "ok"), ("org/other@bbb", "warning")])
def test_of_another_snapshot_it_is_told_once(place: Path, source: str, level: str) -> None:
    add_repo(place / HUB, "org/m", commit="aaa", mtime=1000)
    add_repo(place / HUB, "org/m", {"config.json": b"{}"}, commit="bbb", mtime=2000)
    passed = (PassedOver(source, "it lacks x; get it"),)
    served = Catalog({"org/m": ModelSettings(source="org/m")}, place / HUB, passed)
    found = diagnose(Subject(place, None, served), [models, passed_over])
    assert [each.level for each in found] == [level, "warning"]


def test_a_configuration_that_can_not_be_used(place: Path) -> None:
    found = findings("[server]\nprot = 1\n")
    assert found["configuration"].level == "error"
    assert "prot" in found["configuration"].message
    assert "state directory" in found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "cannot use the state directory {root}: file exists"),
        ("logs", "cannot use the state directory {root}: {root}/logs: file exists"),
        ("crashes", "{root}/crashes cannot be written: not a directory"),
        ("run", "{root}/run belongs to somebody else"),
    ],
)
def test_a_state_directory_that_is_none(place: Path, name: str, said: str) -> None:
    root = place / "state"
    file = root / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    found = findings()["state directory"]
    assert (found.level, found.message) == ("error", said.format(root=root))
    assert "--state-dir" in found.advice


def file_above(root: Path) -> Path:
    root.touch()
    return root / "below"


def folder_named(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).mkdir(parents=True)
        return root

    return make


def link_to_nothing(root: Path) -> Path:
    root.symlink_to(root.with_name("gone"))
    return root


def link_to_latin(root: Path) -> Path:
    named = root.with_name(os.fsdecode(b"caf\xe9"))
    named.mkdir()
    root.symlink_to(named)
    return root


@pytest.mark.parametrize(
    "make",
    [
        Path,
        lambda root: root / ("x" * 300),
        lambda root: root.joinpath(*["x" * 100] * 60),
        lambda root: root.with_name(os.fsdecode(b"caf\xe9")),
        file_above,
        link_to_nothing,
        link_to_latin,
        folder_named("lock"),
        folder_named("logs"),
        folder_named("run"),
    ],
)
def test_of_a_state_directory_it_says_what_a_start_would(
    place: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(place / "state")
    monkeypatch.setenv("BULKHEAD_HOME", str(root))
    before = sorted(place.rglob("*"))
    found = findings()["state directory"]
    assert sorted(place.rglob("*")) == before
    lock = None
    try:
        state = open_state(root)
        lock = InstanceLock(state)
        lock.acquire()
    except StateError as error:
        told: str | None = str(error)
    except OSError as error:
        told = startup.cannot_use(error, root)
    else:
        told = None
    finally:
        if lock is not None:
            lock.release()
    if told is None:
        assert found.level == "ok"
    else:
        sentence = f"{found.message}. {found.advice[:1].upper()}{found.advice[1:]}."
        assert (found.level, sentence) == ("error", told)


def test_a_record_that_no_start_could_replace(place: Path) -> None:
    folder_named("address.json")(place / "state")
    assert "address.json: is a directory" in findings()["state directory"].message


def test_a_server_that_runs_here_is_fine_and_so_is_its_port(place: Path) -> None:
    lock = InstanceLock(open_state(place / "state"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        announce(place / "state", Address(f"http://127.0.0.1:{number}"))
        before = findings(port=number)
        assert before["state directory"].message.endswith("can be written")
        assert before["port"].level == "error"
        who = f"by {psutil.Process().name()} (pid {os.getpid()})"
        assert before["port"].message.endswith(f"address already in use {who}")
        assert before["port"].advice.startswith("stop what listens there")
        lock.acquire()
        found = findings(port=number)
        assert f"a server (pid {os.getpid()}) runs" in found["state directory"].message
        assert {found[each].level for each in ("state directory", "port")} == {"ok"}
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert findings(port=other.getsockname()[1])["port"].level == "error"
    lock.release()


def test_what_the_start_refuses_is_an_error_in_its_words(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sentence: str) -> Callable[[], NoReturn]:
        def check() -> NoReturn:
            raise StateError(sentence)

        return check

    for name in ("check_python", "own_files", "raise_file_limit"):
        told = f"{name} is not. In /P, do this; then that."
        monkeypatch.setattr(conditions, name, refuse(told))
    found = findings()
    for shown, name in (
        ("Python", "check_python"),
        ("installation", "own_files"),
        ("open files", "raise_file_limit"),
    ):
        expected = Finding(shown, "error", f"{name} is not", "in /P, do this; then that")
        assert found[shown] == expected
    monkeypatch.setattr(conditions, "raise_file_limit", lambda: 300)
    scarce = findings()["open files"]
    assert (scarce.level, scarce.advice[:10]) == ("warning", "allow more")


def test_without_a_place_for_a_state_directory_it_says_so(place: Path) -> None:
    status, said = ask("--state-dir", "~nobody-at-all/x")
    assert status == 2
    assert "there is no such home directory" in said


@pytest.mark.parametrize(("mode", "level"), [(0o600, "ok"), (0o644, "error")])
def test_the_key_file_is_nobody_elses(place: Path, mode: int, level: str) -> None:
    keys = place / "keys"
    keys.write_text("secret-key\n")
    keys.chmod(mode)
    found = findings(f'[server]\napi_keys_file = "{keys}"\n')["API keys"]
    assert found.level == level
    assert "secret-key" not in found.message + found.advice
    assert level == "ok" or found.advice == f"run `chmod 600 {keys}`"


def test_json_has_all_of_a_finding(place: Path) -> None:
    status, said = ask("--json")
    assert status == 0
    assert {*json.loads(said)[0]} == {"name", "level", "message", "advice"}


def test_a_name_that_is_not_utf8_is_shown(place: Path) -> None:
    folder = write_folder(place / "m", plain_files())
    os.rename(folder / "model.safetensors", os.fsencode(folder) + b"/model-\xff.safetensors")
    config = model(folder)
    assert "\\xff" in findings(config)["model m"].message
    for arguments in ([], ["--json"]):
        status, said = ask(*arguments)
        assert status == 1
        assert "xff.safetensors" in said


def test_a_check_that_fails_hides_no_other(place: Path) -> None:
    def broken(subject: Subject) -> NoReturn:
        raise RuntimeError("planted")

    def fine(subject: Subject) -> list[Finding]:
        return [Finding("fine", "ok", "so it is")]

    first, second = diagnose(Subject(place, None, None), [broken, fine])
    assert (first.level, second.name) == ("error", "fine")
    assert "planted" in first.message


def test_people_read_80_columns() -> None:
    told = lines(Finding("model m", "error", "long words of no meaning " * 9, "do something " * 9))
    assert max(map(len, told)) <= 80
    assert told[0].startswith("error    model m: long")
    assert all(line.startswith(" " * 9) for line in told[1:])


def test_a_terminal_obeys_nothing_of_a_name() -> None:
    told = lines(Finding("model m", "error", "a\x1b[31mb\nok", "get\x07 it"))
    assert told == ["error    model m: a\\x1b[31mb ok", "         → get\\x07 it"]


def test_words_that_the_locale_lacks_are_no_reason_to_fail(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.cli.main", "doctor"],
        cwd=ROOT,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "BULKHEAD_CONFIG": "/nonexistent"},
    )
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"\\u2192 correct it" in done.stdout
