"""supervisor.state.files: a file has its old content or its new, whatever happens."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.state.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"a longer first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_file_that_cannot_be_replaced_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first")
    with pytest.raises(TypeError):
        write_atomically(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("sync", [False, True])
def test_what_is_synced_is_on_the_disk_before_its_name_is(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the content, then the name, then the folder that has the name in it."""
    order: list[str] = []

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(first: int | Path, *rest: Path) -> None:
            kind = "" if isinstance(first, Path) else oct(stat.S_IFMT(os.fstat(first).st_mode))
            order.append(f"{name} {kind}".strip())
            call(first, *rest)

        return wrapped

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("replace", Path.replace))
    write_atomically(tmp_path / "file", b"content", sync=sync)
    file, folder = f"sync {oct(stat.S_IFREG)}", f"sync {oct(stat.S_IFDIR)}"
    assert order == ([file, "replace", folder] if sync else ["replace"])
