"""`bulkhead serve`, with workers that may follow a script: `python -m tests.fakes.serve CONFIG STATE`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor import catalog, cli, config


def main() -> None:
    path, state = Path(sys.argv[1]), Path(sys.argv[2])
    settings = config.load(path, environ=os.environ, overrides=config.Overrides())
    settings, served = catalog.build(settings, os.environ)
    sys.exit(cli.run(settings, served, state, worker_module="tests.fakes.worker"))


if __name__ == "__main__":
    main()
