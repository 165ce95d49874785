"""supervisor.bootstrap: our packages are found by their place, whatever else bears their names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor import bootstrap
from tests.helpers.serving import DEADLINE, ROOT


def foreign(folder: Path, body: str = "raise RuntimeError('not ours')") -> Path:
    """A folder with packages of our names that are somebody else's, and a module of his."""
    for name in bootstrap.PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(body)
    (folder / "his_module.py").write_text("NAME = 'his'")
    return folder


def become(root: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(root / "supervisor" / "bootstrap.py"), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={"PATH": os.defpath, **environ},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the beginnings of our packages, and a module that says what it sees."""
    root = tmp_path / "root"
    for name in bootstrap.PACKAGES:
        (root / name).mkdir(parents=True)
    shutil.copy(ROOT / "supervisor" / "bootstrap.py", root / "supervisor")
    (root / "worker" / "ours.py").write_text(
        "import sys, supervisor.bootstrap as it\n"
        "print(__name__, it.__file__, sys.argv[1:])\n"
        "try:\n    import his_module\n    print(his_module.NAME)\n"
        "except ImportError:\n    print('none')\n"
    )
    return root


def test_a_module_runs_as_the_main_one_with_its_arguments(copy: Path) -> None:
    done = become(copy, "worker.ours", "--a", "b")
    itself = copy / "supervisor" / "bootstrap.py"
    assert done.stdout == f"__main__ {itself} ['--a', 'b']\nnone\n"


def test_pythonpath_gives_its_own_modules_and_none_of_ours(copy: Path, tmp_path: Path) -> None:
    path = foreign(tmp_path / "his")
    done = become(copy, "worker.ours", PYTHONPATH=str(path))
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["his"])


def test_what_was_imported_before_us_is_forgotten(copy: Path, tmp_path: Path) -> None:
    path = foreign(tmp_path / "his", "")
    (path / "supervisor" / "bootstrap.py").write_text("")
    (path / "sitecustomize.py").write_text("import supervisor.bootstrap, worker\n")
    done = become(copy, "worker.ours", PYTHONPATH=str(path))
    assert str(copy / "supervisor" / "bootstrap.py") in done.stdout


def test_an_overwritten_package_module_is_not_run(copy: Path) -> None:
    """The file of another distribution in the same folder, as PyPI's `supervisor` has one."""
    (copy / "worker" / "__init__.py").write_text("raise RuntimeError('not ours')")
    assert become(copy, "worker.ours").returncode == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import worker.gone", "is damaged: the module worker.gone is missing"),
        ("from supervisor.bootstrap import gone", "is damaged: cannot import name 'gone'"),
        ("def f(:", "worker/ours.py cannot be read (invalid syntax, line 1)"),
        ("import surely_not_installed", "Bulkhead lacks surely_not_installed. Install it anew"),
        ("import msgspec.gone", "Bulkhead lacks msgspec.gone. Install it anew"),
        ("from msgspec import gone", "has a broken library: msgspec: cannot import name 'gone'"),
        ("import broken", "broken.py cannot be read (invalid syntax, line 1)"),
        (
            "raise ImportError('wrong architecture')",
            "has a broken library: wrong architecture. Install it anew",
        ),
    ],
)
def test_a_damaged_installation_is_one_sentence_with_the_cure(
    copy: Path, source: str, said: str
) -> None:
    (copy / "worker" / "ours.py").write_text(source)
    (copy / "libraries").mkdir()
    (copy / "libraries" / "broken.py").write_text("def f(:")
    done = become(copy, "worker.ours", PYTHONPATH=str(copy / "libraries"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("bulkhead: this installation of Bulkhead ")
    assert ("is damaged" in line) is ("worker" in line or "supervisor" in line)
    assert said in line
    assert "uv tool install --reinstall mlx-bulkhead" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ImportError('libssl.so.3: cannot open shared object file', name='_ssl')", "libssl.so.3"),
        ("ModuleNotFoundError(\"No module named '_ssl'\", name='_ssl')", "it is missing"),
    ],
)
def test_a_broken_python_is_not_called_a_damaged_installation(
    copy: Path, error: str, said: str
) -> None:
    (copy / "worker" / "ours.py").write_text(f"raise {error}")
    done = become(copy, "worker.ours")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bulkhead: this Python cannot import its own module _ssl: {said}")
    assert line.endswith(". Install Python anew, or another one, and Bulkhead with it.")


def test_a_child_keeps_the_traceback_as_well(copy: Path) -> None:
    (copy / "worker" / "ours.py").write_text("import worker.gone")
    done = become(copy, "worker.ours", BULKHEAD_INSTANCE="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith(f"bulkhead: {bootstrap.DAMAGED}: ")
    assert "Traceback" in done.stderr


def test_the_cure_fits_the_place(copy: Path) -> None:
    (copy / "pyproject.toml").touch()
    assert f"In {copy}, `git status`" in bootstrap.cure(str(copy))
    assert "make clean install" in bootstrap.cure(str(copy))
