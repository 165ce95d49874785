"""Packages from npm and PyPI, installed once into a folder that git ignores.

`python -m tests.agents.install NAME…` installs some of `versions.toml`, and needs Python alone: it
runs while the packages of Bulkhead itself are installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".agents"
_VERSIONS = Path(__file__).with_name("versions.toml")
_SECONDS = 900.0
"""For one list."""
_DONE = ".installed"
_NPM = ("npm", "install", "--no-audit", "--no-fund", "--fetch-retries", "1",
    "--fetch-retry-mintimeout", "1000")  # fmt: skip
_PIP = (
    "-m",
    "pip",
    "install",
    "--disable-pip-version-check",
    "--quiet",
    "--no-compile",
    "--retries",
    "1",
)
"""Without a network they give up within seconds, for the suite tries each time."""


class CannotInstall(Exception):
    """A package could not be installed; the message ends with what the installer said."""


def packages() -> dict[str, tuple[str, list[str]]]:
    """Of each list: "npm" or "pypi", and what to install."""
    listed = tomllib.loads(_VERSIONS.read_text())
    return {name: (kind, specs) for kind in listed for name, specs in listed[kind].items()}


def folder_of(name: str) -> Path:
    """Where a list's packages are, in the versions that are wanted now."""
    kind, specs = packages()[name]
    return CACHE / f"{name}-{hashlib.sha256(' '.join([kind, *specs]).encode()).hexdigest()[:8]}"


def is_installed(name: str) -> bool:
    return (folder_of(name) / _DONE).exists()


def install_all(names: Iterable[str]) -> bool:
    """Install what is not there yet, and tell of it. Whether all of it is there now."""
    for name in names:
        if is_installed(name):
            continue
        begun = time.monotonic()
        try:
            install(name)
            print(f"{name}: installed in {time.monotonic() - begun:.0f} s", flush=True)
        except CannotInstall as error:
            print(f"{name}: {error}", flush=True)
    return all(is_installed(name) for name in names)


def install(name: str) -> None:
    """Install a list's packages. Raises CannotInstall."""
    kind, specs = packages()[name]
    folder = folder_of(name)
    for old in CACHE.glob(f"{name}-????????"):
        shutil.rmtree(old)
    folder.mkdir(parents=True)
    if kind == "npm":
        _run(*_NPM, "--prefix", str(folder), *specs)
    else:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(folder / "bin/python"), *_PIP, *specs)
    (folder / _DONE).touch()


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
    except FileNotFoundError:
        raise CannotInstall(f"there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise CannotInstall(f"{command[0]} took longer than {_SECONDS:g} s") from None
    if done.returncode:
        raise CannotInstall(f"{' '.join(command)}: {done.stdout[-2000:]}")


if __name__ == "__main__":
    sys.exit(not install_all(sys.argv[1:]))
