"""What tests run as child processes, by way of `supervisor.processes.child` or by themselves.

The first argument says what to do.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from supervisor.processes.launcher import INSTANCE_VARIABLE, Launcher
from supervisor.state.paths import InstanceLock, StateDir

ROOT = Path(__file__).resolve().parents[2]


def describe() -> None:
    """Tell what this process was born with."""
    descriptors = []
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the one that listed the folder
        descriptors.append(int(name))
    told = {
        "argv": sys.argv,
        "descriptors": sorted(descriptors),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "sigint_ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "leads_its_group": os.getpgrp() == os.getpid(),
        "instance": os.environ.get(INSTANCE_VARIABLE),
        "folder": os.getcwd(),
        "stdin": os.read(0, 1).decode(),
    }
    print(json.dumps(told))


def echo(channel: int) -> None:
    """Send back whatever comes, first of all one byte of our own."""
    with socket.socket(fileno=channel) as connection:
        connection.sendall(b"!")
        while data := connection.recv(100):
            connection.sendall(data)


def last_words(number: int) -> None:
    """Say something without flushing any buffer of ours, then die by a signal."""
    os.write(1, b"last words to stdout")
    os.write(2, b"last words to stderr")
    if number == signal.SIGABRT:
        os.abort()
    os.kill(os.getpid(), number)


def be_parent(held: int, folder: str, armed: str) -> None:
    """Act as a supervisor with one child, which holds the descriptor `held` like we do."""

    async def run() -> None:
        lifeline, _kept = os.pipe()
        ours = Launcher("test", lifeline, os.environ).start(
            "sleeper",
            "tests.helpers.children",
            ["sleep", armed],
            stdout=Path(folder, "stdout"),
            stderr=Path(folder, "stderr"),
            channel=True,
            inherit=[held],
            on_exit=lambda returncode: os._exit(99),
        )
        assert ours.channel is not None
        assert ours.channel.recv(1) == b"!"  # the child is armed and up
        print(ours.pid, flush=True)
        signal.pause()

    asyncio.run(run())


def sleep(armed: str, channel: int) -> None:
    """Live until killed; with "lifeline" nothing but the pipe tells of the parent's death."""
    if armed == "lifeline" and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: none
    socket.socket(fileno=channel).sendall(b"!")
    while True:
        signal.pause()


def hold_lock(root: str) -> None:
    """Take the instance lock and keep it until stdin ends."""
    lock = InstanceLock(StateDir(Path(root), Path(root)))
    lock.acquire()
    print("held", flush=True)
    sys.stdin.read()


def main() -> None:
    match sys.argv[1:]:
        case ["describe", *_]:
            describe()
        case ["exit", status]:
            sys.exit(int(status))
        case ["raise"]:
            raise RuntimeError("planned")
        case ["die", number]:
            last_words(int(number))
        case ["echo", "--channel", channel]:
            echo(int(channel))
        case ["parent", held, folder, armed]:
            be_parent(int(held), folder, armed)
        case ["sleep", armed, "--channel", channel]:
            sleep(armed, int(channel))
        case ["lock", root]:
            hold_lock(root)
        case unknown:
            sys.exit(f"unknown: {unknown}")


if __name__ == "__main__":
    main()
