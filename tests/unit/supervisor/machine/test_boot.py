"""supervisor.machine.boot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from supervisor.machine.boot import boot_id


def test_it_is_the_same_until_a_restart(tmp_path: Path) -> None:
    assert boot_id() == boot_id()
    if sys.platform == "linux":
        assert boot_id()
    (tmp_path / "id").write_text("abc\n")
    assert boot_id(platform="linux", path=tmp_path / "id") == "abc"


def test_macos_is_asked_with_a_deadline() -> None:
    asked = []

    def run(command: Sequence[str], seconds: float) -> str:
        asked.append((command[-1], seconds))
        return "UUID\n"

    assert boot_id(platform="darwin", run=run) == "UUID"
    assert asked == [("kern.bootsessionuuid", 5.0)]


@pytest.mark.parametrize("error", [OSError("none"), subprocess.TimeoutExpired("sysctl", 5)])
def test_what_cannot_be_read_is_not_known(error: Exception, tmp_path: Path) -> None:
    def run(command: Sequence[str], seconds: float) -> str:
        raise error

    assert boot_id(platform="darwin", run=run) == ""
    assert boot_id(platform="linux", path=tmp_path / "none") == ""
