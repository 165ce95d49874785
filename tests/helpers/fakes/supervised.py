"""A real supervisor whose children exist only in the test that plays them.

Everything else is the product's: the scheduler, the order in which events and effects are handled,
the control socket, the crash reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor import app, build, stopping
from supervisor.background import Latest
from supervisor.config.flags import Overrides
from supervisor.config.settings import from_tree
from supervisor.machine.readers import MachineMemory
from supervisor.models.catalog import Catalog
from supervisor.models.size_cache import SizeCache
from supervisor.models.sizing import Sizing
from supervisor.processes.activity import Activity
from supervisor.processes.fleet import WorkerListener
from supervisor.processes.launcher import Child
from supervisor.processes.spare import Spare
from supervisor.state.paths import StateDir, open_state
from supervisor.wire import control_frames, frames
from supervisor.wire.stream import FrameStream, connect

Client = FrameStream[control_frames.ToGateway]


class PlayedFleet:
    """`Fleet` without processes: the test says what happens to the workers."""

    def __init__(
        self, launcher: Any, state: StateDir, catalog: Any, listener: WorkerListener, **_: Any
    ) -> None:
        self.listener = listener
        self.spare = Spare(lambda _: pytest.fail("there is no spare"), lambda: None)
        self.children: list[Child] = []
        self._over, self._why_not = False, ""
        self._logs = state.logs
        self._spawned: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    # ── what the supervisor calls ────────────────────────────────────────────────────────────────

    def spawn(self, model: str, generation: int) -> None:
        if self._why_not:
            how = f"it could not be started: {self._why_not}"
            loop = asyncio.get_running_loop()
            loop.call_soon(self.listener.worker_exited, model, generation, how)
            return
        stderr = self.stderr(model, generation)
        stderr.touch()
        child = SimpleNamespace(pid=1000 + generation, files=(stderr, stderr), role="", started=0)
        self.listener.worker_started(model, generation, cast(Child, child))
        self._spawned.put_nowait((model, generation))

    def stop(self, model: str, generation: int, *, kill: bool, stacks: bool) -> None:
        """The test lets it exit, unless it is over."""
        if self._over:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.listener.worker_exited, model, generation, "exit status 0")

    def check(self, *_: Any, **__: Any) -> None: ...

    def kill_if_still(self, *_: Any) -> None: ...

    def activity(self, *_: Any) -> Activity:
        return Activity()

    def tell(self, model: str, generation: int, frame: frames.ToWorker) -> None: ...

    async def kill_all(self) -> None: ...

    # ── what the test calls ──────────────────────────────────────────────────────────────────────

    async def next_spawn(self) -> tuple[str, int]:
        """The model and generation of the next worker that was started."""
        return await self._spawned.get()

    def stderr(self, model: str, generation: int) -> Path:
        return self._logs / f"{model}.{generation}.stderr"

    def cannot_start(self, why: str) -> None:
        """Have every further spawn fail."""
        self._why_not = why

    def finish(self) -> None:
        """The test is over: from now on a worker exits when it is told to."""
        self._over = True

    def ready(self, model: str, generation: int) -> None:
        self.listener.worker_ready(model, generation, frames.Ready(10**8, 4096))

    def prints(self, model: str, generation: int, text: str) -> None:
        """On its stderr."""
        with open(self.stderr(model, generation), "a") as file:
            file.write(text)


class PlayedGateway:
    """`GatewayProcess` without a process: it serves at once and never dies."""

    child = None

    def __init__(self) -> None:
        self.serving, self.gave_up = asyncio.Event(), asyncio.Event()

    def start(self) -> None:
        self.serving.set()

    def accepts_requests(self) -> None: ...

    def check(self, now: float) -> None: ...

    async def stop(self) -> None: ...

    def cut(self) -> None: ...


class NoReader:
    """A machine of which nothing can be read."""

    def machine(self) -> MachineMemory:
        return MachineMemory()

    def footprint(self, pid: int) -> int | None:
        return None

    def glance(self, pid: int) -> int | None:
        return None

    def wired(self, pid: int) -> int | None:
        return None


class Supervised:
    """The running supervisor's fleet, and connections to its control socket."""

    def __init__(
        self,
        fleet: PlayedFleet,
        gateway: PlayedGateway,
        control: Path,
        stack: AsyncExitStack,
        running: asyncio.Task[int],
    ) -> None:
        self.fleet = fleet
        self.gateway = gateway
        self.running = running
        """`Supervisor.run`; a test that ends it must do so before it returns."""
        self._control = control
        self._stack = stack

    async def connection(self) -> Client:
        client: Client = await connect(str(self._control), control_frames.ToGateway)
        self._stack.callback(client.close)
        return client

    async def request(self, request_id: str, model: str) -> Client:
        """A request that asks for a place; the connection is its lease."""
        client = await self.connection()
        client.send(control_frames.Acquire(request_id, model, 60.0))
        return client

    async def leave(self, client: Client) -> None:
        """Close a connection; return once the supervisor has handled that."""
        cast(Any, client)._transport.write_eof()
        while await client.receive() is not None:
            continue

    async def answered(self) -> None:
        """Return once the supervisor has handled what was sent to it before."""
        client = await self.connection()
        client.send(control_frames.Inquire())
        assert isinstance(await client.receive(), control_frames.Report)


@asynccontextmanager
async def supervised(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *models: str
) -> AsyncIterator[Supervised]:
    """A supervisor of these models, in `folder`; stopped in the end, its crash reports written."""
    fleets: list[PlayedFleet] = []

    def fleet(*arguments: Any, **options: Any) -> PlayedFleet:
        fleets.append(PlayedFleet(*arguments, **options))
        return fleets[-1]

    gateway = PlayedGateway()
    monkeypatch.setattr(app, "Fleet", fleet)
    monkeypatch.setattr(app, "GatewayProcess", lambda *_, **__: gateway)
    tree = {"models": {name: {"source": "demo"} for name in models}, "memory": {"spare": False}}
    config = from_tree(tree, environ={}, overrides=Overrides())
    catalog, state = Catalog(config.models, folder), open_state(folder)
    sizing = Sizing(catalog, SizeCache(state.sizes, writer=Latest("sizes")), None)
    supervisor = app.Supervisor(
        config,
        catalog,
        state,
        cast(Any, None),
        pool=build.pool(config, catalog, sizing),
        sizing=sizing,
        reader=NoReader(),
        version="1.2.3",
    )
    running = asyncio.create_task(supervisor.run("ready"))
    try:
        async with AsyncExitStack() as stack:
            await gateway.serving.wait()
            yield Supervised(fleets[0], gateway, state.control, stack, running)
    finally:
        fleets[0].finish()
        stopping.disarm()
        if not running.done():
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
