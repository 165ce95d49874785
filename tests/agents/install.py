"""The packages of a scenario, installed once into a folder that git ignores."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.helpers.serving import ROOT

CACHE = ROOT / ".agents"
_VERSIONS = Path(__file__).with_name("versions.toml")
_SECONDS = 900.0
"""For one scenario's packages."""


class CannotInstall(Exception):
    """A package could not be installed; the message ends with what the installer said."""


def packages() -> dict[str, tuple[str, list[str]]]:
    """Of each scenario: "npm" or "pypi", and what to install."""
    listed = tomllib.loads(_VERSIONS.read_text())
    return {name: (kind, specs) for kind in listed for name, specs in listed[kind].items()}


def install(name: str) -> Path:
    """The folder of a scenario's packages, which are installed if they are not there in these
    versions. Raises CannotInstall."""
    kind, specs = packages()[name]
    version = hashlib.sha256(" ".join([kind, *specs]).encode()).hexdigest()[:8]
    folder = CACHE / f"{name}-{version}"
    if (folder / ".installed").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kind == "npm":
        if shutil.which("npm") is None:
            raise CannotInstall("there is no npm")
        _run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *specs)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
        _run(*pip, "install", "--quiet", *specs)
    (folder / ".installed").touch()
    return folder


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{command[0]} took longer than {_SECONDS:g} s") from None
    if done.returncode:
        raise CannotInstall(f"{' '.join(command)}: {done.stdout[-2000:]}")
