"""supervisor.state.files: a file has its old content or its new, whatever happens."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from supervisor.state.files import read_json, write_atomically


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


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EISDIR, errno.EDQUOT],
    ids=errno.errorcode.__getitem__,
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    write_atomically(path, b"first")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(path, b"second", sync=True)
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    """Nor is a FIFO, which would stop who writes until somebody reads."""
    for leave in (Path.touch, os.mkfifo, lambda path: path.symlink_to(tmp_path / "victim")):
        leave(tmp_path / "file.tmp")
        write_atomically(tmp_path / "file", b"content")
        assert (tmp_path / "file").read_bytes() == b"content"
        assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_reading_a_fifo_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    with pytest.raises(msgspec.DecodeError):
        read_json(tmp_path / "file", int)
