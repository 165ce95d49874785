"""worker.engine.thread: one thread, commands in order, and no life without it."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisor.wire.frames import (
    Embed,
    End,
    FromEngine,
    Generate,
    Load,
    Progress,
    Repaid,
    Text,
    Token,
)
from supervisor.wire.progress import SIZE, ProgressRecord, Reading
from tests.helpers.children import ROOT
from tests.helpers.fakes.loans import BorrowsNothing
from worker.engine.thread import (
    EXIT_ENGINE_DIED,
    EngineThread,
    Job,
    LoadResult,
    Output,
    Prepared,
    Unloadable,
)

SECONDS = 20
LOAD = Load("m", 1, "/folder", "/socket", 4, 0)


class Counter(BorrowsNothing):
    """An engine whose every job counts from 0 to its `max_tokens`. It notes who calls it."""

    def __init__(self, *, unloadable: bool = False) -> None:
        super().__init__()
        self._unloadable = unloadable
        self.jobs: dict[Job, int] = {}
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.idle_steps = 0
        self.before_step: Callable[[], None] = lambda: None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def warm_up(self) -> None:
        self._note("warm_up")

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        self._note(f"load {load.model}")
        progress(1, 2)
        if self._unloadable:
            raise Unloadable("no such file")
        progress(2, 2)
        return LoadResult(7, 4096)

    def prepare(self, request: Generate | Embed) -> Prepared:
        raise AssertionError("not the thread's business")

    def insert(self, job: Job) -> None:
        self._note(f"insert {job.request.request_id}")
        self.jobs[job] = 0

    def remove(self, job: Job) -> None:
        self._note(f"remove {job.request.request_id}")
        self.jobs.pop(job, None)

    def step(self) -> Sequence[Output]:
        self.idle_steps += not self.jobs
        self.before_step()
        self.threads.add(threading.current_thread().name)
        outputs: list[Output] = []
        for job, made in list(self.jobs.items()):
            frames: list[FromEngine] = [Token(made, str(made))]
            self.jobs[job] = made + 1
            assert isinstance(job.request, Generate)
            if made + 1 == job.request.max_tokens:
                frames.append(End("length", 1, made + 1))
                del self.jobs[job]
            outputs.append((job, frames))
        return outputs

    @property
    def prefill(self) -> tuple[int, int]:
        """Whoever has no token yet, with a prompt of 10 of which 4 are done."""
        fresh = sum(made == 0 for made in self.jobs.values())
        return (4 * fresh, 10 * fresh)

    def shrink(self) -> None:
        self._note("shrink")

    @property
    def busy(self) -> bool:
        return bool(self.jobs)

    def close(self) -> None:
        self._note("close")


class Collector:
    """A sink: what the MLX thread sends is looked at by the test, on its own thread."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self.frames: list[FromEngine] = []
        self.closed = 0
        self._post = post

    def send(self, frames: Sequence[FromEngine]) -> None:
        assert threading.current_thread().name == "mlx"
        self._post(lambda: self.frames.extend(frames))

    def close(self) -> None:
        def note() -> None:
            self.closed += 1

        self._post(note)


class Stage:
    """An engine thread whose event loop is the test: `run_until` carries out what it posts."""

    def __init__(self, engine: Counter) -> None:
        self.engine = engine
        self.told: list[Any] = []
        self._buffer = bytearray(SIZE)
        self.record = ProgressRecord(self._buffer)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.thread = EngineThread(
            engine,
            self.record,
            self._posted.put,
            on_warm=lambda: self.told.append("warm"),
            on_progress=lambda done, total: self.told.append((done, total)),
            on_loaded=self.told.append,
            on_unloadable=self.told.append,
            on_news=self.told.append,
            on_closed=lambda: self.told.append("closed"),
        )
        self.thread.start()

    @property
    def reading(self) -> Reading:
        return Reading.decode(self._buffer)

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._posted.get(timeout=SECONDS)()

    def end_with(self, error: AssertionError) -> None:
        def fail() -> None:
            self.told.append("closed")  # by its own death
            raise error

        self._posted.put(fail)

    def job(self, name: str, tokens: int) -> tuple[Job, Collector]:
        sink = Collector(self._posted.put)
        return Job(Generate(name, Text(""), 1.0, max_tokens=tokens), Prepared([0]), sink), sink

    def close(self) -> None:
        self.thread.close()
        self.run_until(lambda: "closed" in self.told)


@pytest.fixture
def make_stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Counter], Stage]]:
    """Makes a stage on which the end of the thread fails the test instead of ending pytest."""
    stages: list[Stage] = []

    def die(status: int) -> None:
        for stage in stages:
            stage.end_with(AssertionError(f"the engine thread ended the process: {status}"))

    def make(engine: Counter) -> Stage:
        stages.append(Stage(engine))
        return stages[-1]

    monkeypatch.setattr("os._exit", die)
    yield make
    for stage in stages:
        if "closed" not in stage.told:
            stage.close()


@pytest.fixture
def stage(make_stage: Callable[[Counter], Stage]) -> Stage:
    return make_stage(Counter())


class Lazy(Counter):
    """Has something to tidy up once nothing is to be done, and tells when it has."""

    def __init__(self) -> None:
        super().__init__()
        self.tidied = threading.Event()

    @property
    def due(self) -> float | None:
        return None if self.tidied.is_set() else 0.0

    def tidy(self) -> None:
        self._note("tidy")
        self._news.append(Repaid(5))
        self.tidied.set()


def test_an_idle_engine_tidies_up_without_being_told(
    make_stage: Callable[[Counter], Stage],
) -> None:
    engine = Lazy()
    stage = make_stage(engine)
    stage.run_until(lambda: [Repaid(5)] in stage.told)
    stage.close()
    assert engine.calls.count("tidy") == 1
    assert engine.threads == {"mlx"}


def counted(tokens: int) -> list[FromEngine]:
    return [*(Token(i, str(i)) for i in range(tokens)), End("length", 1, tokens)]


def test_a_load_is_told_step_by_step(stage: Stage) -> None:
    stage.thread.load(LOAD)
    stage.run_until(lambda: len(stage.told) == 4)
    assert stage.told == ["warm", (1, 2), (2, 2), LoadResult(7, 4096)]
    stage.close()
    assert stage.engine.calls == ["warm_up", "load m", "close"]


def test_what_cannot_be_loaded_is_told_with_its_reason_and_the_thread_goes_on(
    make_stage: Callable[[Counter], Stage],
) -> None:
    stage = make_stage(Counter(unloadable=True))
    stage.thread.load(LOAD)
    stage.run_until(lambda: "no such file" in stage.told)
    assert stage.told == ["warm", (1, 2), "no such file"]
    stage.close()


def test_jobs_get_their_frames_in_order_and_then_nothing_more(stage: Stage) -> None:
    jobs = [stage.job(f"r{i}", 5 + i) for i in range(3)]
    for job, _ in jobs:
        stage.thread.submit(job)
    stage.run_until(lambda: all(sink.closed for _, sink in jobs))
    assert [sink.frames for _, sink in jobs] == [counted(5), counted(6), counted(7)]
    assert [sink.closed for _, sink in jobs] == [1, 1, 1]


class Prefilling(Counter):
    """The first two steps of each job are its prompt's."""

    taken = 0

    def step(self) -> Sequence[Output]:
        self.taken += 1
        return [
            (job, [Progress(1, 3)] if self.jobs.get(job, 9) <= 2 else frames)
            for job, frames in super().step()
        ]


def test_the_core_is_yielded_once_for_each_group_of_first_tokens(
    make_stage: Callable[[Counter], Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Prefilling()
    stage = make_stage(engine)
    yields: list[int] = []
    monkeypatch.setattr("os.sched_yield", lambda: yields.append(engine.taken))
    jobs = [stage.job(f"r{i}", 8) for i in range(3)]
    group = iter([job for job, _ in jobs[1:]])

    def join() -> None:
        for job in group:
            stage.thread.submit(job)

    engine.before_step = join
    stage.thread.submit(jobs[0][0])
    stage.run_until(lambda: all(sink.closed for _, sink in jobs))
    assert [sum(isinstance(frame, Token) for frame in sink.frames) for _, sink in jobs] == [6] * 3
    assert yields == [3, 4]


def test_a_job_may_join_while_another_runs(stage: Stage) -> None:
    first, first_sink = stage.job("r1", 10**9)
    second, second_sink = stage.job("r2", 3)
    stage.thread.submit(first)
    stage.run_until(lambda: len(first_sink.frames) > 3)
    stage.thread.submit(second)
    stage.run_until(lambda: second_sink.closed == 1)
    assert second_sink.frames == counted(3)
    stage.thread.cancel(first)


def test_a_cancelled_job_is_removed_and_the_others_are_not(stage: Stage) -> None:
    endless, sink = stage.job("r1", 10**9)
    stage.thread.submit(endless)
    stage.run_until(lambda: len(sink.frames) > 3)
    stage.thread.cancel(endless)
    stage.run_until(lambda: sink.closed == 1)
    delivered = len(sink.frames)
    other, other_sink = stage.job("r2", 3)
    stage.thread.submit(other)
    stage.run_until(lambda: other_sink.frames == counted(3))
    stage.close()
    assert len(sink.frames) == delivered
    assert stage.engine.calls == ["warm_up", "insert r1", "remove r1", "insert r2", "close"]


def test_a_cancel_during_a_step_leaves_nothing_to_step_for(stage: Stage) -> None:
    entered, gate = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert gate.wait(SECONDS)

    stage.engine.before_step = block
    job, sink = stage.job("r1", 10**9)
    stage.thread.submit(job)
    assert entered.wait(SECONDS)
    stage.thread.cancel(job)
    gate.set()
    stage.run_until(lambda: sink.closed == 1)
    other, other_sink = stage.job("r2", 2)
    stage.thread.submit(other)
    stage.run_until(lambda: other_sink.frames == counted(2))
    assert len(sink.frames) == 1
    assert stage.engine.idle_steps == 0


def test_everything_runs_on_one_thread(stage: Stage) -> None:
    job, sink = stage.job("r1", 2)
    stage.thread.load(LOAD)
    stage.thread.submit(job)
    stage.run_until(lambda: sink.frames == counted(2))
    stage.thread.cancel(job)
    stage.close()
    assert stage.engine.threads == {"mlx"}
    assert threading.current_thread().name != "mlx"


def test_closing_does_not_wait_for_running_jobs(stage: Stage) -> None:
    job, sink = stage.job("r1", 10**9)
    stage.thread.submit(job)
    stage.run_until(lambda: len(sink.frames) > 3)
    stage.close()
    assert stage.engine.calls[-1] == "close"
    for thread in threading.enumerate():
        if thread.name == "mlx":
            thread.join(SECONDS)
            assert not thread.is_alive()


# ── no life without it ───────────────────────────────────────────────────────────────────────────

DIE = f"""
import threading
from tests.unit.worker.engine.test_thread import *

class Broken(Counter):
    def {{method}}(self, *arguments):
        raise {{error}}("planned")

def ignore(*arguments):
    pass

record = ProgressRecord(bytearray(SIZE))
thread = EngineThread(Broken(), record, ignore, ignore, ignore, ignore, ignore, ignore, ignore)
thread.start()
thread.load(LOAD)
thread.submit(Job(Generate("r", Text(""), 1.0, max_tokens=5), Prepared([0]), Collector(ignore)))
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_an_engine_that_cannot_say_why_it_raises_ends_the_process_too() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", DIE.format(method="step", error="RuntimeError")],
            stderr=full,
            cwd=ROOT,
            timeout=SECONDS * 2,
            check=False,
        )
    assert done.returncode == EXIT_ENGINE_DIED


def test_its_record_tells_steps_from_rest_and_counts_what_was_made(stage: Stage) -> None:
    stage.thread.load(LOAD)
    stage.run_until(lambda: LoadResult(7, 4096) in stage.told)
    assert stage.reading == Reading()  # a load is no step
    inside: list[Reading] = []
    stage.engine.before_step = lambda: inside.append(stage.reading)
    job, sink = stage.job("r1", 3)
    stage.thread.submit(job)
    stage.run_until(lambda: sink.closed == 1)
    stage.close()
    assert all(reading.begun == reading.ended + 1 for reading in inside)
    assert [reading.outputs for reading in inside] == [0, 1, 2]
    after = stage.reading
    assert after.begun == after.ended == 4  # the insert, too
    assert after.outputs == 4  # three tokens and the end
    assert after.tokens == 3
    # Told as soon as the request is in, before the step that works on it.
    assert [(each.prefilled, each.to_prefill) for each in inside] == [(4, 10), (0, 0), (0, 0)]
    assert (after.prefilled, after.to_prefill) == (0, 0)
    assert after.longest > 0


def test_caches_shrink_between_steps_and_cost_no_request(stage: Stage) -> None:
    stage.thread.load(LOAD)
    job, sink = stage.job("a", 3)
    # Asked for while a step runs: it waits for the next gap.
    asked = iter([stage.thread.shrink])
    stage.engine.before_step = lambda: next(asked, lambda: None)()
    stage.thread.submit(job)
    stage.run_until(lambda: sink.closed == 1)
    assert sink.frames == counted(3)
    assert stage.engine.calls[-2:] == ["insert a", "shrink"]
    assert stage.engine.threads == {"mlx"}


def test_an_idle_engine_shrinks_too(stage: Stage) -> None:
    stage.thread.load(LOAD)
    stage.thread.shrink()
    stage.close()
    assert stage.engine.calls[-2:] == ["shrink", "close"]
    assert stage.engine.idle_steps == 0
