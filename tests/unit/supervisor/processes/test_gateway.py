"""The gateway's keeper by itself: a gateway that never comes up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import msgspec

from supervisor.config.settings import ServerSettings
from supervisor.processes.gateway import _START_SECONDS, GatewayProcess
from supervisor.processes.launcher import Child, Launcher
from supervisor.state.paths import StateDir
from tests.helpers.children import ROOT
from tests.helpers.serving import DEADLINE


def test_gateway_that_does_not_come_up_is_killed_in_the_end(tmp_path: Path) -> None:
    state = StateDir(tmp_path, tmp_path)
    state.logs.mkdir()
    deaths: list[str] = []

    async def scene(listener: socket.socket, launcher: Launcher) -> None:
        died = asyncio.Event()

        def died_so(child: Child, how: str, uptime: float, why: str) -> None:
            deaths.append(why)
            died.set()

        keeper = GatewayProcess(
            launcher,
            state,
            listener,
            msgspec.json.encode(ServerSettings()),
            "gateway.main",
            lambda: None,
            died_so,
            stall_seconds=1.0,
        )
        keeper.start()
        assert keeper.child is not None
        keeper.child.signal(signal.SIGSTOP)
        begun = time.monotonic()
        # We were stopped for minutes: that counts for nobody.
        late = begun + 5 * _START_SECONDS
        keeper.look(late)
        for second in range(int(_START_SECONDS)):
            keeper.look(late + second)
        assert keeper._put_down == ""
        keeper.look(late + _START_SECONDS)
        assert keeper._put_down == ""
        keeper.look(late + _START_SECONDS + 0.5)
        async with asyncio.timeout(DEADLINE):
            await died.wait()
            await keeper.stop()

    lifeline, held = os.pipe()
    launcher = Launcher("test", lifeline, {**os.environ, "PYTHONPATH": str(ROOT)})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        asyncio.run(scene(listener, launcher))
    os.close(held)
    os.close(lifeline)
    assert deaths == [f"it stalled: it did not serve within {_START_SECONDS:g} s"]
