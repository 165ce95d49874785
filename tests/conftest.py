"""For all tests."""

from __future__ import annotations

import gc
import signal
import sys

import mlx.core as mx

from tests.helpers.relay_peers import relay_timeouts, run_scenario
from worker.engine.mlx_lm_compat import import_mlx_lm

__all__ = ["relay_timeouts", "run_scenario"]

# What is imported and collected stays for good: a million objects, which the collector would walk
# through again and again.
_THRESHOLD = gc.get_threshold()
gc.set_threshold(20_000, 50, 50)


def pytest_collection_finish() -> None:
    """Collect what the tests leave, as often as ever, and nothing that was there before them."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLD)


# mlx-lm lowers this process's limit of open files when it is imported, and with it that of every
# server that a later test starts. Imported here first, as a worker imports it, it does not.
import_mlx_lm()

# As in every worker: on the CPU, MLX runs a C++ compiler, which takes a second, for each kernel
# that /tmp/mlx doesn't hold yet, and that is more than a hundred on a new machine.
if sys.platform == "linux":
    mx.disable_compile()

# What a shell starts in the background ignores the one, what nohup starts the other, and so would
# every server of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
