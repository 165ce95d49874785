"""supervisor.cli.mlx_bulkhead: the command finds our packages from where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from supervisor.cli import mlx_bulkhead
from tests.helpers.serving import DEADLINE, ROOT


def installed(folder: Path) -> Path:
    """A folder with the module as an installation has it."""
    folder.mkdir(exist_ok=True)
    shutil.copy(mlx_bulkhead.__file__, folder / "mlx_bulkhead.py")
    return folder


def begin(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """What an installation's `bulkhead` does."""
    code = "import sys; sys.path.insert(1, sys.argv.pop(1)); import mlx_bulkhead as m; m.main()"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        env={"PATH": os.defpath, "HOME": str(folder), "PYTHONPATH": path},
    )


def test_an_editable_installation_leads_to_its_checkout(tmp_path: Path) -> None:
    """Also where packages of our names come first on the path, and one lies in the same place."""
    site = installed(tmp_path / "site")
    (site / "_editable_impl_mlx_bulkhead.pth").write_text(f"{ROOT}\n")
    for folder in (tmp_path / "his", site):
        (folder / "supervisor").mkdir(parents=True)
        (folder / "supervisor" / "__init__.py").write_text("raise RuntimeError('not ours')")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = begin(site, "--version", path=str(tmp_path / "his"))
    assert (done.stdout, done.stderr) == (f"bulkhead {version}\n", "")


def test_a_wheels_packages_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "bootstrap.py").touch()
    (tmp_path / "_mlx_bulkhead.pth").write_text(str(ROOT))
    assert mlx_bulkhead.find_root(str(tmp_path)) == str(tmp_path)


def test_packages_that_are_gone_are_one_sentence(tmp_path: Path) -> None:
    done = begin(installed(tmp_path / "site"), "--version")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("bulkhead: this installation of Bulkhead is damaged: there is no")
    assert "uv tool install --reinstall mlx-bulkhead" in line


def test_a_module_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    site = installed(tmp_path / "site")
    (site / "supervisor" / "cli").mkdir(parents=True)
    shutil.copy(ROOT / "supervisor" / "bootstrap.py", site / "supervisor")
    done = begin(site, "--version")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "is damaged: the module supervisor.cli.main is missing" in line


def test_too_old_a_python_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"^bulkhead: Bulkhead needs Python 3\.11 or newer; this"):
        mlx_bulkhead.main()


def test_it_is_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"bulkhead": "mlx_bulkhead:main"}
