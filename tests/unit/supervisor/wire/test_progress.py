"""supervisor.wire.progress: what one process counts is what another reads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from supervisor.wire import progress
from supervisor.wire.progress import SIZE, ProgressRecord, Reading
from tests.helpers.children import ROOT

COUNT = """
import os, sys
from supervisor.wire.progress import ProgressRecord
record = ProgressRecord.inherited(int(sys.argv[1]))
for _ in range(3):
    record.begin()
record.end()
record.made(7, 5)
record.prefilling(30, 40)
with record.preparing():
    os.kill(os.getpid(), 9)
"""


def test_a_record_outlives_its_process() -> None:
    descriptor = progress.create()
    try:
        assert progress.read(descriptor) == Reading()
        done = subprocess.run(
            [sys.executable, "-c", COUNT, str(descriptor)],
            pass_fds=[descriptor],
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == -9
        reading = progress.read(descriptor)
    finally:
        os.close(descriptor)
    assert reading is not None
    assert reading.longest > 0
    counts = (reading.begun, reading.ended, reading.outputs, reading.preparing, reading.prepared)
    assert counts == (3, 1, 7, 1, 0)
    assert reading.beats == 0
    assert (reading.tokens, reading.prefilled, reading.to_prefill) == (5, 30, 40)


def test_a_record_that_was_cut_short_says_nothing() -> None:
    descriptor = progress.create()
    os.ftruncate(descriptor, SIZE - 1)
    assert progress.read(descriptor) is None
    os.close(descriptor)
    assert progress.read(descriptor) is None


def test_a_loop_that_turns_beats() -> None:
    descriptor = progress.create()
    duplicate = os.dup(descriptor)

    async def scenario() -> None:
        beating = asyncio.create_task(ProgressRecord.inherited(duplicate).beat())
        seen = set[int]()
        async with asyncio.timeout(20):
            while len(seen) < 3:
                reading = progress.read(descriptor)
                assert reading is not None
                seen.add(reading.beats)
                await asyncio.sleep(0)
        beating.cancel()

    asyncio.run(scenario())
    os.close(descriptor)


def test_the_longest_step_is_remembered_and_fades() -> None:
    buffer = bytearray(SIZE)
    now = [100.0]
    record = ProgressRecord(buffer, lambda: now[0])

    def step(seconds: float) -> float:
        record.begin()
        now[0] += seconds
        record.end()
        return Reading.decode(buffer).longest

    assert step(8.0) == 8.0
    assert 7.9 < step(1.0) < 8.0
    now[0] += 3600
    assert 1.9 < step(1.0) < 2.0
    now[0] += 36000
    assert step(1.0) == 1.0
