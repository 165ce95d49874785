"""supervisor.stopping: the process ends, whatever it does meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers.children import ROOT
from tests.helpers.serving import DEADLINE

PROCESS = """
import asyncio, os, signal, sys, time
from supervisor import stopping

stopping.SECONDS, stopping.QUICK_SECONDS = float(sys.argv[2]), float(sys.argv[3])
heard = []

def on_signal():
    heard.append(1)
    print("heard", flush=True)

async def wait():
    await asyncio.Event().wait()

async def block():
    reading, _ = os.pipe()
    print("ready", flush=True)
    os.read(reading, 1)

async def compute():
    print("ready", flush=True)
    while True:
        pass

async def main():
    stopping.Stopping(0.0, on_signal).listen()
    if sys.argv[1] == "arm":
        stopping.Stopping(0.0, on_signal).arm()
    if sys.argv[1] in ("block", "compute"):
        await globals()[sys.argv[1]]()
    print("ready", flush=True)
    await wait()

asyncio.run(main())
"""
LONG = "1000"


def start(what: str, seconds: str, quick: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, what, seconds, quick],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    with process, process.stdout:
        try:
            return process.wait(DEADLINE)
        finally:
            process.kill()  # or the test would wait for ever


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="shows pending signals")


@needs_proc
@pytest.mark.parametrize("what", ["wait", "block", "compute"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_third_signal_ends_the_process(what: str, number: signal.Signals) -> None:
    process = start(what, LONG, LONG)
    for sent in (signal.SIGTERM, signal.SIGINT, number):
        process.send_signal(sent)
        if what == "wait" and sent is not number:
            assert process.stdout is not None
            assert process.stdout.readline() == "heard\n"
        else:
            wait_until_handled(process, sent)
    assert ended(process) == 1


def wait_until_handled(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signals of one kind that wait are one: the next must not come too early."""
    mask = 1 << (number - 1)
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as status:
            pending = [line.split()[1] for line in status if line.startswith("ShdPnd")]
        if not pending or not int(pending[0], 16) & mask:
            return


@needs_proc
@pytest.mark.parametrize("what", ["block", "compute"])
@pytest.mark.parametrize(("signals", "seconds", "quick"), [(1, "1", LONG), (2, LONG, "1")])
def test_a_loop_that_does_not_turn_ends_by_the_kernels_alarm(
    what: str, signals: int, seconds: str, quick: str
) -> None:
    process = start(what, seconds, quick)
    for number in (signal.SIGTERM, signal.SIGINT)[:signals]:
        process.send_signal(number)
        wait_until_handled(process, number)
    assert ended(process) == -signal.SIGALRM


def test_an_end_that_nobody_asked_for_has_a_deadline_too() -> None:
    assert ended(start("arm", "1", LONG)) in (1, -signal.SIGALRM)


def test_a_loop_that_turns_says_that_something_does_not_end() -> None:
    process = start("wait", "3", LONG)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 1
