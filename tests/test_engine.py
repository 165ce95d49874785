"""worker.engine: one thread, commands in order, and no life without it."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from supervisor.wire.frames import End, FromEngine, Generate, Load, Text, Token
from tests.children import ROOT
from worker.engine import EXIT_ENGINE_DIED, EngineThread, Job, Loaded, Output, Unloadable

SECONDS = 20
LOAD = Load("m", 1, "/folder", "/socket", 4, 0)


class Counter:
    """An engine whose every job counts from 0 to its `max_tokens`. It notes who calls it."""

    def __init__(self, *, unloadable: bool = False) -> None:
        self._unloadable = unloadable
        self.jobs: dict[Job, int] = {}
        self.calls: list[str] = []
        self.threads: set[str] = set()

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def warm_up(self) -> None:
        self._note("warm_up")

    def load(self, load: Load, progress: Callable[[int, int], None]) -> Loaded:
        self._note(f"load {load.model}")
        progress(1, 2)
        if self._unloadable:
            raise Unloadable("no such file")
        progress(2, 2)
        return Loaded(7, 4096)

    def prepare(self, request: Generate) -> list[int]:
        raise AssertionError("not the thread's business")

    def insert(self, job: Job) -> None:
        self._note(f"insert {job.request.request_id}")
        self.jobs[job] = 0

    def remove(self, job: Job) -> None:
        self._note(f"remove {job.request.request_id}")
        self.jobs.pop(job, None)

    def step(self) -> Sequence[Output]:
        assert self.jobs, "stepped with nothing to do"
        self.threads.add(threading.current_thread().name)
        outputs: list[Output] = []
        for job, made in list(self.jobs.items()):
            frames: list[FromEngine] = [Token(made, str(made))]
            self.jobs[job] = made + 1
            if made + 1 == job.request.max_tokens:
                frames.append(End("length", 1, made + 1))
                del self.jobs[job]
            outputs.append((job, frames))
        return outputs

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def close(self) -> None:
        self._note("close")


class Stage:
    """An engine thread whose event loop is the test: `run_until` carries out what it posts."""

    def __init__(self, engine: Counter) -> None:
        self.engine = engine
        self.told: list[Any] = []
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.thread = EngineThread(
            engine,
            self._posted.put,
            on_warm=lambda: self.told.append("warm"),
            on_progress=lambda done, total: self.told.append((done, total)),
            on_loaded=self.told.append,
            on_unloadable=self.told.append,
            on_closed=lambda: self.told.append("closed"),
        )
        self.thread.start()

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._posted.get(timeout=SECONDS)()

    def job(self, name: str, tokens: int) -> tuple[Job, list[FromEngine]]:
        frames: list[FromEngine] = []
        return Job(Generate(name, Text(""), 1.0, max_tokens=tokens), [0], frames.extend), frames

    def close(self) -> None:
        self.thread.close()
        self.run_until(lambda: "closed" in self.told)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(Counter())
    yield stage
    if "closed" not in stage.told:
        stage.close()


def counted(tokens: int) -> list[FromEngine]:
    return [*(Token(i, str(i)) for i in range(tokens)), End("length", 1, tokens)]


def test_a_load_is_told_step_by_step(stage: Stage) -> None:
    stage.thread.load(LOAD)
    stage.run_until(lambda: len(stage.told) == 4)
    assert stage.told == ["warm", (1, 2), (2, 2), Loaded(7, 4096)]
    stage.close()
    assert stage.engine.calls == ["warm_up", "load m", "close"]


def test_what_cannot_be_loaded_is_told_with_its_reason_and_the_thread_goes_on() -> None:
    stage = Stage(Counter(unloadable=True))
    stage.thread.load(LOAD)
    stage.run_until(lambda: "no such file" in stage.told)
    assert stage.told == ["warm", (1, 2), "no such file"]
    stage.close()


def test_jobs_get_their_frames_in_order(stage: Stage) -> None:
    jobs = [stage.job(f"r{i}", 5 + i) for i in range(3)]
    for job, _ in jobs:
        stage.thread.submit(job)
    stage.run_until(lambda: all(frames and isinstance(frames[-1], End) for _, frames in jobs))
    assert [frames for _, frames in jobs] == [counted(5), counted(6), counted(7)]


def test_a_job_may_join_while_another_runs(stage: Stage) -> None:
    first, first_frames = stage.job("r1", 10**9)
    second, second_frames = stage.job("r2", 3)
    stage.thread.submit(first)
    stage.run_until(lambda: len(first_frames) > 3)
    stage.thread.submit(second)
    stage.run_until(lambda: second_frames[-1:] == [End("length", 1, 3)])
    assert second_frames == counted(3)
    stage.thread.cancel(first)


def test_a_cancelled_job_is_removed_and_the_others_are_not(stage: Stage) -> None:
    endless, frames = stage.job("r1", 10**9)
    stage.thread.submit(endless)
    stage.run_until(lambda: len(frames) > 3)
    stage.thread.cancel(endless)
    other, other_frames = stage.job("r2", 3)
    stage.thread.submit(other)
    stage.run_until(lambda: other_frames == counted(3))
    delivered = len(frames)
    stage.close()
    assert len(frames) == delivered
    assert stage.engine.calls == ["warm_up", "insert r1", "remove r1", "insert r2", "close"]


def test_everything_runs_on_one_thread(stage: Stage) -> None:
    job, frames = stage.job("r1", 2)
    stage.thread.load(LOAD)
    stage.thread.submit(job)
    stage.run_until(lambda: frames == counted(2))
    stage.thread.cancel(job)
    stage.close()
    assert stage.engine.threads == {"mlx"}
    assert threading.current_thread().name != "mlx"


def test_closing_does_not_wait_for_running_jobs(stage: Stage) -> None:
    job, frames = stage.job("r1", 10**9)
    stage.thread.submit(job)
    stage.run_until(lambda: len(frames) > 3)
    stage.close()
    assert stage.engine.calls[-1] == "close"
    for thread in threading.enumerate():
        if thread.name == "mlx":
            thread.join(SECONDS)
            assert not thread.is_alive()


# ── no life without it ───────────────────────────────────────────────────────────────────────────

DIE = f"""
import threading
from tests.test_engine import LOAD, Counter, EngineThread, Job, Generate, Text

class Broken(Counter):
    def {{method}}(self, *arguments):
        raise {{error}}("planned")

def ignore(*arguments):
    pass

thread = EngineThread(Broken(), ignore, ignore, ignore, ignore, ignore, ignore)
thread.start()
thread.load(LOAD)
thread.submit(Job(Generate("r", Text(""), 1.0, max_tokens=5), [0], ignore))
if "{{method}}" == "close":
    thread.close()
threading.Event().wait({SECONDS})
"""


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("warm_up", "ImportError"),
        ("load", "OSError"),
        ("insert", "RuntimeError"),
        ("step", "RuntimeError"),
        ("step", "SystemExit"),
        ("close", "MemoryError"),
    ],
)
def test_an_engine_that_raises_ends_the_process(method: str, error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIE.format(method=method, error=error)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        timeout=SECONDS * 2,
        check=False,
    )
    assert done.returncode == EXIT_ENGINE_DIED == 70
    assert f"{error}: planned" in done.stderr
