"""The `bulkhead` command as a person types it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers.serving import DEADLINE, ROOT


def bulkhead(*arguments: str, state: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor.cli.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(state or ROOT), "NO_COLOR": "1"},
    )


def test_version_is_pyprojects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert bulkhead("--version").stdout == f"bulkhead {project['version']}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--nonsense"],
        ["serve", "--port", "many"],
        ["serve", "--port", "99999"],
        ["serve", "--model", "no-source"],
        ["serve", "--config", "/nowhere.toml"],
        ["serve", "--host", "0.0.0.0"],
        ["serve", "--preload", "unknown"],
        ["serve", "--ram-budget", "4"],
        ["nonsense"],
    ],
)
def test_usage_errors_exit_2_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    done = bulkhead(*arguments, state=tmp_path)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("key", ["pin", "preload"])
def test_pins_or_preloads_above_the_budget_exit_2_with_the_figures(
    key: str, tmp_path: Path
) -> None:
    file = tmp_path / "b.toml"
    file.write_text(f'[models.a]\nsource = "demo"\n{key} = true\nmemory = "5GB"\n')
    done = bulkhead("serve", "--config", str(file), "--ram-budget", "4GB", state=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("bulkhead: memory.budget: 4.0 GB are too little for the ")
    assert "a 5.0 GB (configured)" in line


def test_config_error_names_the_key(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text("[server]\nprot = 1\n")
    done = bulkhead("serve", "--config", str(file), state=tmp_path)
    assert done.returncode == 2
    assert done.stderr == 'bulkhead: server.prot: unknown key (did you mean "port"?)\n'


@pytest.mark.parametrize("name", ["pull", "logs", "install", "bench"])
def test_later_commands_are_refused_by_name(name: str) -> None:
    done = bulkhead(name)
    assert done.returncode == 1
    assert f"`bulkhead {name}` is not supported yet" in done.stderr
    assert name not in bulkhead("--help").stdout.split()


def test_state_dir_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = bulkhead("serve", "--state-dir", str(tmp_path / "file/state"), state=tmp_path)
    assert done.returncode == 1
    assert "cannot use the state directory" in done.stderr
    assert "Traceback" not in done.stderr
