"""supervisor.processes.gateway: a gateway that never comes up."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import msgspec
import pytest

from supervisor.config.schema import ServerSettings
from supervisor.processes import gateway as gateway_module
from supervisor.processes.gateway import _START_SECONDS, GatewayProcess
from supervisor.processes.launcher import Child, Launcher
from supervisor.state.paths import StateDir
from tests.helpers.children import ROOT
from tests.helpers.serving import DEADLINE


def test_gateway_that_does_not_come_up_is_killed_in_the_end(tmp_path: Path) -> None:
    state = StateDir(tmp_path, tmp_path)
    state.logs.mkdir()
    deaths: list[str] = []

    async def scenario(listener: socket.socket, launcher: Launcher) -> None:
        died = asyncio.Event()

        def on_death(child: Child, how: str, uptime: float, why: str) -> None:
            deaths.append(why)
            died.set()

        gateway = GatewayProcess(
            launcher,
            state,
            listener,
            msgspec.json.encode(ServerSettings()),
            "gateway.main",
            lambda: None,
            on_death,
            stall_seconds=1.0,
        )
        gateway.start()
        assert gateway.child is not None
        gateway.child.signal(signal.SIGSTOP)
        begun = time.monotonic()
        # Minutes in which the supervisor did not run do not count.
        late = begun + 5 * _START_SECONDS
        gateway.check(late)
        for second in range(int(_START_SECONDS)):
            gateway.check(late + second)
        assert gateway._kill_reason == ""
        gateway.check(late + _START_SECONDS)
        assert gateway._kill_reason == ""
        gateway.check(late + _START_SECONDS + 0.5)
        async with asyncio.timeout(DEADLINE):
            await died.wait()
            await gateway.stop()

    lifeline, held = os.pipe()
    launcher = Launcher("test", lifeline, {**os.environ, "PYTHONPATH": str(ROOT)})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(scenario(listener, launcher))
    os.close(held)
    os.close(lifeline)
    assert deaths == [f"it stalled: it did not serve within {_START_SECONDS:g} s"]


# ── a death, and the end ─────────────────────────────────────────────────────────────────────────


class PlayedLauncher:
    """Starts processes that end when told to."""

    def __init__(self) -> None:
        self.on_exit: list[Callable[[int], None]] = []
        self.signals: list[signal.Signals] = []
        self.fails = False
        self.started = asyncio.Event()

    def start(self, *_: object, on_exit: Callable[[int], None], **__: object) -> Any:
        if self.fails:
            raise OSError(errno.EMFILE, "too many open files")
        self.on_exit.append(on_exit)
        self.started.set()
        files = (Path("/nonexistent/a"), Path("/nonexistent/b"))
        return SimpleNamespace(pid=7, files=files, progress=None, signal=self.signals.append)


def played(
    launcher: PlayedLauncher, on_change: Callable[[], None], on_death: Callable[..., None]
) -> GatewayProcess:
    return GatewayProcess(
        cast(Any, launcher),
        StateDir(Path("/nonexistent"), Path("/nonexistent/run")),
        cast(Any, SimpleNamespace(fileno=lambda: 3)),
        b"{}",
        "gateway.main",
        on_change,
        on_death,
        stall_seconds=1.0,
    )


def bug(*_: object) -> NoReturn:
    raise RuntimeError("planted")


def test_another_one_is_started_whatever_else_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        launcher = PlayedLauncher()
        gateway = played(launcher, bug, bug)
        gateway.start()
        gateway.accepts_requests()
        launcher.started.clear()
        launcher.on_exit[0](-9)
        await asyncio.wait_for(launcher.started.wait(), DEADLINE)
        assert len(launcher.on_exit) == 2

    asyncio.run(scenario())
    assert caplog.text.count("bug has failed") == 4  # at both starts, at the exit, and the report


def test_one_that_has_served_is_started_again_however_often_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pause doubles with each death, and no float holds 2 to the power of 2000."""
    monkeypatch.setattr(gateway_module, "_BACKOFF_MAX", 0.0)

    async def scenario() -> None:
        launcher = PlayedLauncher()
        gateway = played(launcher, lambda: None, lambda *_: None)
        gateway.start()
        gateway.accepts_requests()
        launcher.fails = True
        launcher.on_exit[0](-9)
        while gateway._deaths < 2000:  # noqa: ASYNC110
            await asyncio.sleep(0)
        launcher.started.clear()
        launcher.fails = False
        await asyncio.wait_for(launcher.started.wait(), DEADLINE)
        assert not gateway.gave_up.is_set()

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", ["before", "meanwhile", "never"])
def test_one_that_does_not_end_is_left(
    cut: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a dead disk."""
    monkeypatch.setattr(gateway_module, "_REAP_SECONDS", 0.0)
    monkeypatch.setattr(gateway_module, "_STOP_SECONDS", 0.0 if cut == "never" else DEADLINE)
    monkeypatch.setattr(gateway_module, "_CUT_SECONDS", 0.0)

    async def scenario() -> None:
        launcher = PlayedLauncher()
        gateway = played(launcher, lambda: None, lambda *_: None)
        gateway.start()
        if cut == "before":
            gateway.cut()
            assert launcher.signals == []
        stopping = asyncio.create_task(gateway.stop())
        await asyncio.sleep(0)
        if cut == "meanwhile":
            gateway.cut()
            launcher.on_exit[0](-9)
        await asyncio.wait_for(stopping, DEADLINE)
        assert launcher.signals == [signal.SIGTERM, signal.SIGKILL]

    asyncio.run(scenario())
    assert ("does not end" in caplog.text) is (cut != "meanwhile")
