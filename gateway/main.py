"""Entry of the gateway process, a child of the supervisor. It inherits the listening socket."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys

import msgspec
import uvloop

from gateway import heap, logs
from gateway.app import build
from gateway.http.server import listening
from supervisor.config.schema import ServerSettings
from supervisor.wire.control_frames import Serving, ToGateway
from supervisor.wire.listener import reach
from supervisor.wire.progress import ProgressRecord
from supervisor.wire.stream import BACKLOG, FrameStream

_SHUTDOWN_SECONDS = 5.0
_SUPERVISOR_SECONDS = 30.0
"""How long the supervisor's socket may be missing at the start."""
_RETRY_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--settings", required=True)
    parser.add_argument("--progress", type=int, required=True)
    parser.add_argument("--terminal", type=int)
    arguments = parser.parse_args()
    heap.keep_large_pieces_apart()
    record = ProgressRecord.inherited(arguments.progress)
    logs.set_up(arguments.log, arguments.terminal)
    yield_to_engines()
    settings = msgspec.json.decode(arguments.settings, type=ServerSettings)
    listener = socket.socket(fileno=arguments.listen)
    uvloop.run(_serve(listener, arguments.control, settings, record))


async def _serve(
    listener: socket.socket, control: str, settings: ServerSettings, record: ProgressRecord
) -> None:
    """Accept requests until SIGTERM, then let running answers end."""
    beating = asyncio.create_task(record.beat())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    trimmer = heap.Trimmer(asyncio.get_running_loop().call_later)
    app = build(settings, control, freed=trimmer.freed)
    async with listening(app, listener, backlog=BACKLOG, shutdown_seconds=_SHUTDOWN_SECONDS):
        supervisor: FrameStream[ToGateway] = await _reach_supervisor(control)
        supervisor.send(Serving())
        logging.getLogger("bulkhead.gateway").info("serving")
        await stop.wait()
    supervisor.close()
    beating.cancel()


async def _reach_supervisor(control: str) -> FrameStream[ToGateway]:
    """Raises OSError when its socket, which somebody may have removed, does not come back."""
    deadline = asyncio.get_running_loop().time() + _SUPERVISOR_SECONDS
    while True:
        try:
            return await reach(control, ToGateway)
        except OSError:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_RETRY_SECONDS)


def yield_to_engines() -> None:
    """On Linux, where engines compute on the CPU: do not preempt them.

    Each token wakes this process while the engine begins its next step, which all streams wait for.
    As a batch process it takes an idle core or waits a moment: a tenth more tokens a second on two
    cores.
    """
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


if __name__ == "__main__":
    main()
