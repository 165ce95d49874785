"""supervisor.wire.listener: a socket that is removed is made again, here or elsewhere."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire import control_frames, listener
from supervisor.wire.listener import Listener, check_private, make_private, places, reach
from supervisor.wire.stream import FrameStream
from tests.helpers.serving import DEADLINE

Scenario = Callable[["Listener[Any]"], Awaitable[None]]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A socket's, in a folder of ours."""
    monkeypatch.setattr(listener, "LOOK_SECONDS", 0.01)
    folder = Path("/tmp") / f"bulkhead-test-{os.getpid()}"  # a test's own may be too deep
    path = str(folder / "run" / "x.sock")
    (folder / "run").mkdir(mode=0o700, parents=True)
    yield path
    for each in (folder, elsewhere(path).parent):
        shutil.rmtree(each, ignore_errors=True)


def elsewhere(path: str) -> Path:
    return Path(list(places(path))[1])


async def echo(connection: FrameStream[control_frames.ToSupervisor]) -> None:
    while isinstance(frame := await connection.receive(), control_frames.Acquire):
        connection.send(control_frames.Granted(frame.model, "w#1", frame.request_id))


async def ask(client: FrameStream[Any]) -> None:
    client.send(control_frames.Acquire("r", "m", 1.0))
    assert await client.receive() == control_frames.Granted("m", "w#1", "r")


def run(path: str, scenario: Scenario) -> None:
    async def whole() -> None:
        async with asyncio.timeout(DEADLINE):
            served: Listener[Any] = Listener(path, control_frames.ToSupervisor, echo)
            await served.open()
            keeping = asyncio.create_task(served.keep())
            try:
                await scenario(served)
            finally:
                keeping.cancel()
                served.close()

    asyncio.run(whole())


async def reached(path: str) -> FrameStream[Any]:
    while True:
        try:
            return await reach(path, control_frames.ToGateway)
        except OSError:
            await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110, nothing announces it
        await asyncio.sleep(0)


def unlink(path: str) -> None:
    os.unlink(path)


def remove_folder(path: str) -> None:
    shutil.rmtree(Path(path).parent)


def remove_parent(path: str) -> None:
    shutil.rmtree(Path(path).parent.parent)


def move_folder(path: str) -> None:
    Path(path).parent.rename(Path(path).parent.with_name("moved"))


def file_for_socket(path: str) -> None:
    os.unlink(path)
    Path(path).touch()


def folder_for_socket(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


def link_for_socket(path: str) -> None:
    os.unlink(path)
    os.symlink("/nonexistent", path)


def another_socket(path: str) -> None:
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def mode_for_nobody(path: str) -> None:
    os.chmod(path, 0)


HERE = [
    unlink,
    mode_for_nobody,
    remove_folder,
    remove_parent,
    move_folder,
    file_for_socket,
    folder_for_socket,
    link_for_socket,
    another_socket,
]


@pytest.mark.parametrize("remove", HERE)
def test_a_socket_is_made_again_and_old_connections_go_on(
    path: str, remove: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(served: Listener[Any]) -> None:
        before: FrameStream[Any] = await reach(path, control_frames.ToGateway)
        await ask(before)
        for _ in range(2):
            remove(path)
            await until(lambda: served.is_in_place)
            after = await reached(path)
            await ask(after)
            await ask(before)
            after.close()
        before.close()
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700

    if remove is move_folder:
        move = remove

        def remove(path: str) -> None:
            shutil.rmtree(Path(path).parent.with_name("moved"), ignore_errors=True)
            move(path)

    run(path, scenario)
    assert not os.path.exists(path)
    assert caplog.text.count("was gone and is made again") == 2


def file_for_folder(path: str) -> None:
    remove_folder(path)
    Path(path).parent.touch()


def link_for_folder(path: str) -> None:
    remove_folder(path)
    Path(path).parent.symlink_to("/nonexistent")


def link_to_its_folder(path: str) -> None:
    move_folder(path)
    Path(path).parent.symlink_to(Path(path).parent.with_name("moved"))


@pytest.mark.parametrize("spoil", [file_for_folder, link_for_folder, link_to_its_folder])
def test_it_is_elsewhere_while_its_folder_cannot_be_made(
    path: str, spoil: Callable[[str], None]
) -> None:
    async def scenario(served: Listener[Any]) -> None:
        before = await reached(path)
        spoil(path)
        there = await reached(path)
        await ask(there)
        await ask(before)
        assert elsewhere(path).exists()
        assert stat.S_IMODE(elsewhere(path).parent.stat().st_mode) == 0o700
        os.unlink(Path(path).parent)
        await until(Path(path).exists)
        back = await reached(path)
        await ask(back)
        await ask(there)
        for stream in (before, there, back):
            stream.close()

    run(path, scenario)
    assert not elsewhere(path).parent.exists()


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EMFILE],
    ids=errno.errorcode.__getitem__,
)
def test_what_cannot_be_made_again_is_told_once_and_tried_on(
    path: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(served: Listener[Any]) -> None:
        before = await reached(path)
        tries = 0

        def fail(folder: Path) -> None:
            nonlocal tries
            tries += 1
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as broken:
            broken.setattr(listener, "make_private", fail)
            os.unlink(path)
            await until(lambda: tries >= 6)
        await ask(before)
        after = await reached(path)
        await ask(after)
        for stream in (before, after):
            stream.close()

    run(path, scenario)
    assert caplog.text.count("can't be made again") == 1


def test_a_socket_that_somebody_else_serves_is_left_alone(path: str) -> None:
    async def scenario(served: Listener[Any]) -> None:
        other: Listener[Any] = Listener(path, control_frames.ToSupervisor, echo)
        await other.open()
        assert elsewhere(path).exists()
        assert served.is_in_place
        other.close()
        assert served.is_in_place

    run(path, scenario)


def test_nobody_connects_in_a_folder_of_somebody_else(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)

    async def scenario() -> None:
        with pytest.raises(PermissionError):
            await reach(path, control_frames.ToGateway)

    asyncio.run(scenario())
    with pytest.raises(PermissionError):
        make_private(Path(path).parent)


def test_a_link_is_no_folder_of_ours(path: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(Path(path).parent)
    with pytest.raises(NotADirectoryError):
        check_private(tmp_path / "link")
