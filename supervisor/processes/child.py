"""First code of each child, under `supervisor.bootstrap`: LIFELINE PARENT FAULTS MODULE ….

It makes sure that the child cannot outlive its supervisor, writes no core dump, and has
faulthandler report fatal signals to the descriptor FAULTS; then it becomes MODULE with the
arguments that follow. It is the only code of the supervisor's that runs in another process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import runpy
import signal
import sys
import threading

STACKS_SIGNAL = signal.SIGUSR1
"""Makes a child write the stacks of all its threads to stderr, whatever these do, and go on."""
_PR_SET_PDEATHSIG = 1
_STDERR = 2


def main() -> None:
    lifeline, parent, faults, module = *map(int, sys.argv[1:4]), sys.argv[4]
    # A core dump of a process full of weights delays its end, and so every client's answer.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died before the signal was armed
    threading.Thread(target=_watch, args=(lifeline,), name="lifeline", daemon=True).start()
    # Terminal signals are the supervisor's business; it tells its children what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(faults, faults <= _STDERR)
    # The failing thread alone: to walk the frames of threads that run on can crash the walk itself,
    # and then a SIGABRT ends as a SIGSEGV.
    faulthandler.enable(faults, all_threads=False)
    faulthandler.register(STACKS_SIGNAL, _STDERR)
    sys.argv = [module, *sys.argv[5:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody ever writes: this returns at the supervisor's end
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
