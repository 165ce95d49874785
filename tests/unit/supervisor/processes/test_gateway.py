"""supervisor.processes.gateway: a gateway that never comes up."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import msgspec

from supervisor.config.schema import ServerSettings
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
