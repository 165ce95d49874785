"""Orders that a fake worker obeys at any moment: a byte through a FIFO that is named by its pid."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from tests.helpers.fakes.engine import end

VARIABLE = "FAKE_ORDERS"
"""Environment: the folder of the FIFOs."""
EXIT, TEAR, HOG = b"e", b"t", b"h"


def fifo_of(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.orders"


def obey(tear: Callable[[], object]) -> None:
    """Wait for an order on a thread of its own, if there is a folder for them. `tear` has the next
    frame come out as half of one."""
    if folder := os.environ.get(VARIABLE):
        path = fifo_of(Path(folder), os.getpid())
        os.mkfifo(path)
        threading.Thread(target=_obey, args=(path, tear), name="orders", daemon=True).start()


def _obey(path: Path, tear: Callable[[], object]) -> None:
    with open(path, "rb") as orders:
        order = orders.read(1)
    path.unlink()
    match order:
        case b"e":
            os._exit(0)
        case b"t":
            tear()
        case b"h":
            end("hog")
