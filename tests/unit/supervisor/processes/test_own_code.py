"""supervisor.processes.own_code: children run the code that the supervisor runs."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest

from supervisor.processes import own_code
from supervisor.processes.own_code import OwnCode
from supervisor.wire.listener import folders
from tests.helpers.serving import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    for name in ("gateway/main.py", "supervisor/bootstrap.py", "worker/a/b.py"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(f"NAME = {name!r}\n")
    return root


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.py")}


def write(root: Path, text: str = "NEW = 1\n") -> None:
    """A module is written anew, and says that it is as old as ever."""
    path = root / "worker" / "a" / "b.py"
    times = path.stat()
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_unchanged_files_are_started_where_they_are(root: Path, tmp_path: Path) -> None:
    code = OwnCode(own_code.read(root), tmp_path / "run")
    assert code.home() == root
    (root / "worker" / "new.py").touch()
    (root / "worker" / "a" / "b.py").touch()
    write(root, (root / "worker" / "a" / "b.py").read_text())
    assert code.home() == root  # nothing that our modules know of
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        write,
        lambda root: write(root, "NAME = 'worker/a/c.py'\n"),  # of the same size
        lambda root: (root / "gateway" / "main.py").unlink(),
        shutil.rmtree,
        lambda root: root.rename(root.with_name("moved")),
    ],
)
def test_changed_files_are_started_as_they_were(
    change: object, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, before = OwnCode(own_code.read(root), tmp_path / "run"), content(root)
    assert callable(change)
    change(root)
    with caplog.at_level(logging.WARNING):
        home = code.home()
        assert home.parent == tmp_path / "run"
        assert content(home) == before
        assert code.home() == home
    assert caplog.text.count("have changed since it was started") == 1
    own_code.discard_copies(tmp_path / "run")
    assert not home.exists()


def test_a_folder_that_nobody_may_look_at_keeps_its_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: bool) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "stat", refuse)
    own_code.discard_copies(tmp_path / "run")


def test_a_copy_that_was_swept_or_changed_is_made_again(root: Path, tmp_path: Path) -> None:
    code, before = OwnCode(own_code.read(root), tmp_path / "run"), content(root)
    write(root)
    home = code.home()
    (home / "worker" / "a" / "b.py").unlink()
    assert content(code.home()) == before
    write(home)
    assert content(code.home()) == before
    shutil.rmtree(tmp_path / "run")
    assert content(code.home()) == before


def test_an_installation_that_is_as_before_again_is_used_again(root: Path, tmp_path: Path) -> None:
    code, before = OwnCode(own_code.read(root), tmp_path / "run"), content(root)
    write(root)
    assert code.home() != root
    write(root, before["worker/a/b.py"])
    assert code.home() == root


def test_a_child_that_started_amid_a_change_is_told_from_the_others(
    root: Path, tmp_path: Path
) -> None:
    code = OwnCode(own_code.read(root), tmp_path / "run")
    home = code.home()
    assert code.is_same(home)
    write(root)
    assert not code.is_same(home)
    assert code.is_same(code.home())


def test_where_the_run_directory_cannot_be_used_the_copy_is_where_the_sockets_are(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").touch()
    code, before = OwnCode(own_code.read(root), tmp_path / "run"), content(root)
    write(root)
    home = code.home()
    assert content(home) == before
    assert home.parent == folders(tmp_path / "run")[1]
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
    own_code.discard_copies(tmp_path / "run")
    assert not home.parent.exists()


def test_without_a_place_for_the_copy_it_says_what_to_do(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_code, "folders", lambda run: (run, tmp_path / "elsewhere"))
    for name in ("run", "elsewhere"):
        (tmp_path / name).touch()
    code = OwnCode(own_code.read(root), tmp_path / "run")
    write(root)
    with pytest.raises(OSError, match="restart Bulkhead: its files have changed"):
        code.home()


def installed(root: Path) -> None:
    """What pip leaves beside the packages."""
    info = root / "mlx_bulkhead-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx-bulkhead\nVersion: 1.0\n")
    rows = [f"{name},{digest},9\n" for name, digest in own_code.read(root).hashes.items()]
    (info / "RECORD").write_text("".join([*rows, "mlx_bulkhead.py,sha256=x,1\n"]))


def test_what_was_installed_is_sound(root: Path) -> None:
    (root / "supervisor" / "__init__.py").write_text('"""Ours."""')
    installed(root)
    assert own_code.read(root).damaged == ()
    # Never run, so another distribution may have its own there, or take it away with itself.
    (root / "supervisor" / "__init__.py").write_text("# this is a package")
    (root / "supervisor" / "events.py").write_text("import supervisor.medusa.gone")
    assert own_code.read(root).damaged == ()
    (root / "supervisor" / "__init__.py").unlink()
    assert own_code.read(root).damaged == ()


def test_what_is_missing_or_another_is_named(root: Path) -> None:
    installed(root)
    write(root)
    (root / "gateway" / "main.py").unlink()
    assert own_code.read(root).damaged == ("gateway/main.py", "worker/a/b.py")


def test_a_checkout_has_no_record_but_imports(root: Path) -> None:
    write(root, "import worker.a.b\nfrom supervisor import bootstrap\nfrom gateway.main import x\n")
    assert own_code.read(root).damaged == ()
    write(root, "def f():\n    from supervisor.gone.far import x\nimport worker.lost as y, os\n")
    assert own_code.read(root).damaged == ("supervisor/gone/far.py", "worker/lost.py")


def test_this_code_is_whole() -> None:
    files = own_code.read(ROOT)
    assert files.damaged == ()
    assert "supervisor/processes/own_code.py" in files.hashes
