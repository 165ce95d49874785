"""supervisor.state.paths: the state directory, its sockets and its lock."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.state.paths import (
    SUN_PATH,
    InstanceLock,
    StateDir,
    StateError,
    open_state,
    slug,
)
from supervisor.wire.listener import temporary
from tests.helpers.children import ROOT

CHOOSE = "remove it or choose another --state-dir"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def long_root(tmp_path: Path) -> Iterator[Path]:
    """A folder too deep for a socket; what is made for it elsewhere is removed."""
    root = tmp_path / ("deep" * 20) / ("er" * 20)
    yield root
    shutil.rmtree(temporary(root.resolve()), ignore_errors=True)


def test_a_run_directory_elsewhere_is_discarded_once_it_is_empty(
    long_root: Path, tmp_path: Path
) -> None:
    state = open_state(long_root)
    assert state.run == temporary(state.root)
    (state.run / "x").touch()
    state.discard_run()
    assert state.run.is_dir()
    (state.run / "x").unlink()
    state.discard_run()
    state.discard_run()
    assert not state.run.exists()
    near = open_state(tmp_path / "s")
    near.discard_run()
    assert near.run.is_dir() is (near.run.parent == near.root)  # pytest's folder may be deep, too


def test_everything_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    state = open_state(tmp_path / "a" / "b")
    assert state.root == (tmp_path / "a" / "b").resolve()
    assert [mode(path) for path in (state.root, state.logs, state.run)] == [0o700] * 3
    assert open_state(tmp_path / "a" / "b") == state


def test_a_link_to_the_directory_is_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    assert open_state(tmp_path / "link") == open_state(tmp_path / "real")


def test_an_open_run_directory_is_closed_to_others(long_root: Path, tmp_path: Path) -> None:
    for root in (tmp_path / "s", long_root):
        run = open_state(root).run
        run.chmod(0o777)
        assert mode(open_state(root).run) == 0o700


@pytest.mark.parametrize("model", ["m", "x" * 500, "org/name:8b", "../../etc", "模型"])
def test_a_socket_can_be_bound_however_deep_the_directory_and_long_the_name(
    long_root: Path, model: str
) -> None:
    state = open_state(long_root)
    for path in (state.control, state.worker_socket(model, 10**9)):
        assert len(os.fsencode(path)) <= SUN_PATH
        assert path.parent == state.run
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        path.unlink()


def test_a_short_directory_keeps_its_sockets(tmp_path: Path) -> None:
    root = Path(os.path.realpath("/tmp")) / f"bulkhead-test-{os.getpid()}"
    try:
        assert open_state(root).run == root / "run"
    finally:
        shutil.rmtree(root)


def test_deep_directories_do_not_share_their_sockets(long_root: Path) -> None:
    first, second = open_state(long_root / "1"), open_state(long_root / "2")
    assert first.run != second.run
    assert open_state(long_root / "1").run == first.run
    first.discard_run()
    second.discard_run()


def test_incarnations_do_not_share_a_socket(tmp_path: Path) -> None:
    state = StateDir(tmp_path, tmp_path)
    names = [("a", 1), ("a", 2), ("b", 1), ("a/b", 1), ("a-b", 1), ("A", 1), ("a1", 1), ("a", 11)]
    assert len({state.worker_socket(*name) for name in names}) == len(names)


def test_a_run_directory_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """As it would be if somebody else had put it into /tmp first."""
    root = tmp_path / "s"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    run = open_state(root).run
    run.rmdir()
    run.symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(StateError, match="--state-dir"):
            open_state(root)
    finally:
        run.unlink()
    assert mode(tmp_path / "elsewhere") == 0o755


@pytest.mark.parametrize("name", ["", "logs", "run"])
def test_a_file_in_the_way_is_told(tmp_path: Path, name: str) -> None:
    root = tmp_path / "s"
    if name:
        root.mkdir()
    file = root / name if name else root
    file.write_text("in the way")
    with pytest.raises((OSError, StateError)) as told:
        open_state(root)
    # The system's own error for `startup.cannot_use`, or a sentence of ours; never both.
    if isinstance(told.value, OSError):
        assert told.value.filename == str(file)
    else:
        assert str(told.value) == f"{file} belongs to somebody else; " + CHOOSE


# ── the lock ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return open_state(tmp_path / "s")


def test_a_lock_that_the_system_refuses_is_its_own_error_with_the_file(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", none)
        with pytest.raises(OSError, match="No locks available") as told:
            InstanceLock(state).acquire()
    assert told.value.filename == str(state.root / "lock")
    (state.root / "lock").unlink(missing_ok=True)
    (state.root / "lock").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        InstanceLock(state).acquire()
    assert told.value.filename == str(state.root / "lock")


def test_a_second_instance_is_refused_and_told_whose_it_is(state: StateDir) -> None:
    lock = InstanceLock(state)
    lock.acquire()
    with pytest.raises(StateError, match=rf"pid {os.getpid()}\b.*--state-dir"):
        InstanceLock(state).acquire()
    lock.release()
    lock.release()
    again = InstanceLock(state)
    again.acquire()
    again.release()


def test_another_directory_is_no_rival(tmp_path: Path, state: StateDir) -> None:
    locks = [InstanceLock(state), InstanceLock(open_state(tmp_path / "other"))]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        lock.release()


def test_the_lock_names_its_present_holder(state: StateDir) -> None:
    (state.root / "lock").write_text("123456789012345\n")
    lock = InstanceLock(state)
    lock.acquire()
    with pytest.raises(StateError, match=rf"\(pid {os.getpid()}\)"):
        InstanceLock(state).acquire()
    lock.release()


def test_the_lock_goes_with_its_process(state: StateDir) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.children", "lock", str(state.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(StateError, match=rf"pid {holder.pid}\b"):
                InstanceLock(state).acquire()
        finally:
            holder.kill()
    lock = InstanceLock(state)
    lock.acquire()
    lock.release()


def test_no_child_keeps_the_lock(state: StateDir) -> None:
    lock = InstanceLock(state)
    lock.acquire()
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        lock.release()
        again = InstanceLock(state)
        again.acquire()
        again.release()


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("mlx-community/Qwen3-4B", "mlx-community-Qwen3-4B-"),
        ("llama3:8b", "llama3-8b-"),
        ("../../etc/passwd", "etc-passwd-"),
        ("模型", "model-"),
        ("..", "model-"),
        ("a b\n", "a-b-"),
        ("x" * 1000, "x" * 60 + "-"),
    ],
)
def test_a_models_file_name_is_harmless_and_short(name: str, begins: str) -> None:
    assert re.fullmatch(re.escape(begins) + "[0-9a-f]{6}", slug(name))


def test_a_name_that_is_a_file_name_stays_as_it_is() -> None:
    assert slug("qwen2.5-coder_1") == "qwen2.5-coder_1"


def test_two_models_never_share_files() -> None:
    long = "y" * 70
    for one, other in (("a/b-c", "a-b/c"), ("a b", "a-b"), (long + "1", long + "2")):
        assert slug(one) != slug(other)


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.unlink()
    path.touch()


@pytest.mark.parametrize("do", [remove, replace])
def test_a_lock_whose_file_is_removed_is_held_again(
    state: StateDir, do: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    lock = InstanceLock(state)
    lock.acquire()
    lock.keep()
    assert caplog.messages == []
    do(state.root / "lock")
    lock.keep()
    lock.keep()
    assert len(caplog.messages) == 1
    with pytest.raises(StateError, match=f"pid {os.getpid()}"):
        InstanceLock(state).acquire()
    lock.release()
    lock.keep()  # nothing to keep
    InstanceLock(state).acquire()


def test_a_lock_that_another_has_taken_meanwhile_is_told_of_once(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    lock, other = InstanceLock(state), InstanceLock(state)
    lock.acquire()
    (state.root / "lock").unlink()
    other.acquire()
    lock.keep()
    lock.keep()
    assert caplog.text.count("another Bulkhead") == 1
    other.release()
    lock.keep()
    with pytest.raises(StateError):
        other.acquire()
    lock.release()


def test_a_lock_that_cannot_be_made_again_is_told_of_once(
    state: StateDir, caplog: pytest.LogCaptureFixture
) -> None:
    lock = InstanceLock(state)
    lock.acquire()
    (state.root / "lock").unlink()
    (state.root / "lock").mkdir()
    for _ in range(3):
        lock.keep()
    assert len(caplog.messages) == 1
    lock.release()


# ── what somebody has removed ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gone", ["logs", "run", "."])
def test_folders_are_made_again(state: StateDir, gone: str) -> None:
    shutil.rmtree(state.root / gone)
    state.restore()
    state.restore()
    assert [mode(path) for path in (state.root, state.logs, state.run)] == [0o700] * 3


def test_what_a_person_has_chosen_for_the_folders_stays(state: StateDir, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    state.logs.rename(elsewhere)
    state.logs.symlink_to(elsewhere)
    for folder, wanted in ((state.root, 0o1777), (elsewhere, 0o755)):
        folder.chmod(wanted)
    state.run.chmod(0o755)
    state.restore()
    assert [mode(path) for path in (state.root, elsewhere, state.run)] == [0o1777, 0o755, 0o700]
    assert state.logs.is_symlink()


def test_a_folder_that_we_cannot_use_is_made_usable(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For root every folder is.
    monkeypatch.setattr(os, "access", lambda path, wanted: mode(path) & 0o700 == 0o700)
    state.logs.chmod(0o050)
    state.root.chmod(0o500)
    state.restore()
    assert [mode(path) for path in (state.root, state.logs)] == [0o700, 0o750]


def test_a_folder_that_cannot_be_made_keeps_no_other_from_it(state: StateDir) -> None:
    shutil.rmtree(state.logs)
    shutil.rmtree(state.run)
    state.logs.touch()
    with pytest.raises(FileExistsError):
        state.restore()
    assert mode(state.run) == 0o700


def test_a_name_that_is_not_utf8_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"caf\xe9")
    link = tmp_path / "link"
    link.symlink_to(named)
    with pytest.raises(StateError, match=r"caf\\udce9': its name is not UTF-8\. Choose") as told:
        open_state(named)
    assert str(told.value).isascii()
    assert not named.exists()
    named.mkdir()
    for lead in (link, link / "below"):
        with pytest.raises(StateError, match="its name is not UTF-8"):
            open_state(lead)
    assert not list(named.iterdir())
    assert open_state(tmp_path / "café").root.name == "café"


def test_a_lock_that_is_given_up_in_the_middle_of_a_look_is_not_taken_again(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = InstanceLock(state)
    lock.acquire()

    def released_meanwhile(*_: object) -> bool:
        lock.release()
        return False

    monkeypatch.setattr(lock, "_is_in_place", released_meanwhile)
    lock.keep()
    other = InstanceLock(state)
    other.acquire()
    other.release()
