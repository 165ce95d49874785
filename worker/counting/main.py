"""Entry of the counter, under `supervisor.processes.child`:
`python -m worker.counting.main --socket PATH --channel FD --progress FD`.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path

import uvloop

from supervisor.wire.progress import ProgressRecord
from worker.counting.server import CountingServer
from worker.counting.tokenizers import PromptTokens, Tokenizers
from worker.engine.mlx_lm_tokenizers import TokenizerLoader, import_tokenizers


def main() -> None:
    """Count until told to stop, then end at once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--progress", type=int, required=True)
    arguments = parser.parse_args()
    record = ProgressRecord.inherited(arguments.progress)
    # stderr is this process's own file; the supervisor keeps it bounded and reads its end.
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    loader = TokenizerLoader(import_tokenizers())
    uvloop.run(_serve(arguments.channel, arguments.socket, loader, record))
    logging.shutdown()
    os._exit(0)


async def _serve(channel: int, path: str, loader: TokenizerLoader, record: ProgressRecord) -> None:
    def load(folder: Path) -> PromptTokens:
        return PromptTokens(loader.load(folder))

    await CountingServer(socket.socket(fileno=channel), path, Tokenizers(load), record).run()


if __name__ == "__main__":
    main()
