"""What a person is told by `make install`."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.serving import DEADLINE, ROOT

OLD = """#!/bin/sh
# A Python that says it is 3.9.1, whatever runs it.
[ "$1" = --version ] && { echo "Python 3.9.1"; exit 0; }
exec python3 -c 'import sys; sys.version_info = (3, 9, 1); sys.version = "3.9.1 (old)"
exec(sys.argv[1])' "$2"
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old-python"
    path.write_text(OLD)
    path.chmod(0o755)
    return path


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        # As from a shell, also when these tests are themselves run by make.
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))},
    )


def test_too_old_a_python_is_one_line(old: Path, tmp_path: Path) -> None:
    done = make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    first, *rest = done.stderr.splitlines()
    assert first == f"Bulkhead needs Python 3.11 or newer; {old} is 3.9.1."
    assert all(line.startswith("make:") for line in rest)
    assert not (tmp_path / "venv").exists()


def test_no_python_that_will_do(old: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    shell = shutil.which("sh")
    assert shell is not None
    (tools / "sh").symlink_to(shell)
    (tools / "python3").write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.9.1'\nexit 1\n"
    )
    (tools / "python3").chmod(0o755)
    real = shutil.which("make")
    assert real is not None
    done = subprocess.run(
        [real, "--no-print-directory", "install", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={"PATH": str(tools)},
    )
    assert done.returncode != 0
    assert done.stderr.startswith("Bulkhead needs Python 3.11 or newer; found Python 3.9.1.")


PIP = """#!/bin/sh
# A Python that is new enough and says what pip would be asked.
case "$*" in
    *"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"-m pip"*) echo "$@" ;;
esac
"""


@pytest.mark.parametrize(("terminal", "wanted"), [(True, "--progress-bar=on"), (False, "--quiet")])
def test_an_installation_shows_progress_on_a_terminal(
    terminal: bool, wanted: str, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(PIP)
    python.chmod(0o755)
    (tmp_path / "pyproject.toml").touch()
    shown, inside = pty.openpty() if terminal else os.pipe()
    try:
        done = subprocess.run(
            ["make", "--no-print-directory", "--file", str(ROOT / "Makefile"), "install"]
            + [f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
            cwd=tmp_path,
            stdout=inside,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=True,
            env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))},
        )
        asked = os.read(shown, 4096).decode()
    finally:
        os.close(shown)
        os.close(inside)
    assert done.stderr.startswith("Installing Bulkhead and what it needs into ")
    assert [each for each in ("--progress-bar=on", "--quiet") if each in asked] == [wanted]
    assert "--editable ." in asked
