"""Entry of a worker process, under `supervisor.processes.child`:
`python -m worker.main [--spare] --channel FD --progress FD`.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial

import uvloop

from supervisor.wire.progress import ProgressRecord
from worker.engine.thread import Engine
from worker.priority import in_background
from worker.server import WorkerServer


def main(make_engine: Callable[[], Engine]) -> None:
    """Serve until told to stop, then end at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spare", action="store_true", help="nobody waits for it yet")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--progress", type=int, required=True)
    arguments = parser.parse_args()
    record = ProgressRecord.inherited(arguments.progress)
    # stderr is this incarnation's own file; the supervisor keeps it bounded and reads its end.
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    warm = partial(_warm, make_engine)
    engine = in_background(warm) if arguments.spare else make_engine()
    uvloop.run(_serve(arguments.channel, engine, record))
    logging.shutdown()
    # Nothing is left to do, and the teardown of a large process's objects would only take time.
    os._exit(0)


async def _serve(channel: int, engine: Engine, record: ProgressRecord) -> None:
    await WorkerServer(socket.socket(fileno=channel), engine, record).run()


def _warm(make_engine: Callable[[], Engine]) -> Engine:
    """An engine that finds its imports done."""
    engine = make_engine()
    engine.warm_up()
    return engine


def _batch_engine() -> Engine:
    from worker.engine.batch import BatchEngine

    return BatchEngine()


if __name__ == "__main__":
    main(_batch_engine)
