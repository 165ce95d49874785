"""The MLX thread: one thread that loads, generates and frees, driven through a queue.

Streams and lazy arrays belong to the thread that made them, so nothing else may touch MLX. The
thread runs any `Engine`; `worker.batch` holds the real one, tests bring one that follows a script.
The end of this thread is the end of the process: what an exception inside a step leaves behind is
undefined, and a worker that lives without its engine would be a zombie.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from supervisor.wire.frames import FromEngine, Generate, Load

log = logging.getLogger("bulkhead.worker")

EXIT_ENGINE_DIED = 70
"""Exit status of a worker whose engine raised (EX_SOFTWARE)."""


class Unloadable(Exception):
    """These files can never be served by this installation; the message says why."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load found out. `memory_bytes` is what MLX holds; `context` is in tokens."""

    memory_bytes: int
    context: int


@dataclass(slots=True, eq=False)
class Job:
    """One accepted request. `deliver` is called on the server's event loop."""

    request: Generate
    prompt: Sequence[int]
    deliver: Callable[[Sequence[FromEngine]], None]


Output = tuple[Job, Sequence[FromEngine]]
"""Frames for one job, in order."""


class Engine(Protocol):
    """What generates. `prepare` runs on the prompt thread, all else on the MLX thread."""

    def warm_up(self) -> None:
        """Import what takes long."""

    def load(self, load: Load, progress: Callable[[int, int], None]) -> Loaded:
        """Bring the weights into memory, telling (bytes done, bytes in all).

        Raises Unloadable when no retry can help; any other exception ends the process.
        """

    def prepare(self, request: Generate) -> list[int]:
        """The request's prompt as tokens. Raises BulkheadError when it can't be served."""

    def insert(self, job: Job) -> None:
        """Queue a job; `step` works on it from now on."""

    def remove(self, job: Job) -> None:
        """Forget a job that is not wanted any more and free what it held; unknown jobs are fine."""

    def step(self) -> Sequence[Output]:
        """One decode step and one prefill chunk. After its `End` frame a job is forgotten."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    def close(self) -> None:
        """Free the weights and give the memory back to the system."""


class EngineThread:
    """Runs an Engine. `post` and `submit`, `cancel`, `close` may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        post: Callable[[Callable[[], None]], object],
        on_warm: Callable[[], None],
        on_progress: Callable[[int, int], None],
        on_loaded: Callable[[Loaded], None],
        on_unloadable: Callable[[str], None],
        on_closed: Callable[[], None],
    ) -> None:
        """`post` schedules a call on the server's event loop; every callback runs there."""
        self._engine = engine
        self._post = post
        self._on_warm = on_warm
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._on_unloadable = on_unloadable
        self._on_closed = on_closed
        self._commands: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load(self, load: Load) -> None:
        """Load a model; answered by `on_loaded` or `on_unloadable`."""
        self._commands.put(lambda: self._load(load))

    def submit(self, job: Job) -> None:
        self._commands.put(lambda: self._continue(self._engine.insert, job))

    def cancel(self, job: Job) -> None:
        self._commands.put(lambda: self._continue(self._engine.remove, job))

    def close(self) -> None:
        """End the thread after the running step; answered by `on_closed`."""
        self._commands.put(lambda: False)

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._engine.warm_up()
            self._post(self._on_warm)
            while self._obey():
                outputs = self._engine.step()
                if outputs:
                    self._post(lambda outputs=outputs: _deliver(outputs))  # type: ignore[misc]
            self._engine.close()
            self._post(self._on_closed)
        except BaseException:  # noqa: BLE001
            # stderr is the file that the supervisor reads last words from.
            traceback.print_exc()
            log.critical("the generation thread died; the process ends")
            os._exit(EXIT_ENGINE_DIED)

    def _obey(self) -> bool:
        """Carry out commands, waiting for one while there is nothing to generate."""
        while not self._engine.busy:
            if not self._commands.get()():
                return False
        while not self._commands.empty():
            if not self._commands.get()():
                return False
        return True

    def _continue(self, act: Callable[[Job], None], job: Job) -> bool:
        act(job)
        return True

    def _load(self, load: Load) -> bool:
        def progress(done: int, total: int) -> None:
            self._post(lambda: self._on_progress(done, total))

        try:
            loaded = self._engine.load(load, progress)
        except Unloadable as error:
            reason = str(error)
            self._post(lambda: self._on_unloadable(reason))
        else:
            self._post(lambda: self._on_loaded(loaded))
        return True


def _deliver(outputs: Sequence[Output]) -> None:
    for job, frames in outputs:
        job.deliver(frames)
