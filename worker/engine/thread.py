"""The MLX thread: one thread that loads, generates and frees, driven through a queue.

Streams and lazy arrays belong to the thread that made them, so nothing else may touch MLX. The
thread runs any `Engine`; `worker.engine.batch` holds the real one, tests bring one that follows a
script. The end of this thread is the end of the process: what an exception inside a step leaves
behind is undefined, and a worker that lives without its engine would be a zombie.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from supervisor.errors import BulkheadError, QueueFull
from supervisor.wire.frames import (
    Embed,
    Embedded,
    End,
    Failed,
    FromEngine,
    Generate,
    Load,
    LoanFrame,
    Progress,
    PromptLogprobs,
    Recall,
    Token,
)
from supervisor.wire.progress import ProgressRecord

log = logging.getLogger("bulkhead.worker")

FINAL_FRAMES = (End, Embedded, Failed)
"""Frames after which nothing follows."""
EXIT_ENGINE_DIED = 70
"""Exit status of a worker whose engine raised (EX_SOFTWARE)."""


def failed(error: BulkheadError) -> Failed:
    """The frame that ends a request with an error."""
    return Failed(error.code, error.message, error.param, error.retry_after)


class Unloadable(Exception):
    """These files can never be served by this installation; the message says why."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load found out. `memory_bytes` is what MLX holds; `context` is in tokens."""

    memory_bytes: int
    context: int


class Sink(Protocol):
    """Where a job's frames go. The MLX thread alone calls both, once the job is submitted."""

    def send(self, frames: Sequence[FromEngine]) -> None:
        """Deliver in order; never blocks, never raises for a peer that has left."""

    def close(self) -> None:
        """Nothing follows."""


class Constraint(Protocol):
    """What tokens may come next. Belongs to one job."""

    @property
    def binds(self) -> bool:
        """Whether the next token may not be any, so that a mask is needed."""

    def push(self, token: int) -> None:
        """The output's next token. A token that was not allowed is tolerated: steps run ahead."""


class OutputConstraint(Constraint, Protocol):
    """A `Constraint` that knows whether the output is a whole answer; `worker.grammar` makes
    them."""

    @property
    def endless(self) -> bool:
        """Whether the output may go on behind an end of sequence, if the request wants that."""

    @property
    def holds_calls(self) -> bool:
        """Whether a call that begins can only become one whose arguments are JSON."""

    def incomplete_error(self, *, called: bool) -> BulkheadError | None:
        """Why the output is no whole answer, though the model ended it; None = it is one. `called`:
        the transcript found calls in it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request's tokens and whatever else is made before its turn comes.

    Of a `Generate`: the `prompt`, its text if an echo was asked for, the grammar of its output and
    the engine's own text state, both told of what was emitted before; and the end, if that was all
    there is. Of an `Embed`: the `inputs`.
    """

    prompt: Sequence[int] = ()
    echo: str = ""
    constraint: OutputConstraint | None = None
    transcript: Any = None
    end: End | None = None
    inputs: Sequence[Sequence[int]] = ()

    @property
    def size(self) -> int:
        """Tokens."""
        return len(self.prompt) + sum(map(len, self.inputs))


class Line(Protocol):
    """Where a request waits until others let it have what it wants, in the order of coming."""

    def wait(self, call: Callable[[], object]) -> None:
        """Get in line, or keep the place there. `call` is called once, on any thread and perhaps
        at once, when it is the request's turn."""

    def leave(self) -> None:
        """The request has what it wants, or is over. May be called again."""


class NoRoom(Exception):
    """A request is prepared but for what others have to let go first."""

    def __init__(self, refusal: QueueFull, line: Line, go_on: Callable[[], Prepared]) -> None:
        """`refusal` is for who does not wait. `go_on` does the rest once it is the request's turn;
        it is as `Engine.prepare`, and raises this again if there is no room after all."""
        super().__init__(refusal.message)
        self.refusal = refusal
        self.line = line
        self.go_on = go_on


@dataclass(slots=True, eq=False)
class Job:
    """One accepted request."""

    request: Generate | Embed
    prepared: Prepared
    sink: Sink
    begun: bool = False
    """Whether any of its output has been delivered; what is told in prefill is none."""

    @property
    def prompt(self) -> Sequence[int]:
        """Token ids."""
        return self.prepared.prompt


Output = tuple[Job, Sequence[FromEngine]]
"""Frames for one job, in order."""


class Engine(Protocol):
    """What generates. `prepare` runs on one thread at a time, all else on the MLX thread."""

    def warm_up(self) -> None:
        """Import what takes long. On any thread, and more than once."""

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        """Bring the weights into memory, telling (bytes done, bytes in all).

        Raises Unloadable when no retry can help; any other exception ends the process.
        """

    def prepare(self, request: Generate | Embed) -> Prepared:
        """Do what needs no MLX. Raises BulkheadError when the request can't be served, and NoRoom
        when it can't be yet."""

    def insert(self, job: Job) -> None:
        """Queue a job; `step` works on it from now on."""

    def remove(self, job: Job) -> None:
        """Forget a job that is not wanted any more and free what it held; unknown jobs are fine."""

    def step(self) -> Sequence[Output]:
        """A decode step, a slice of prefill or a pass of embeddings. After its last frame a job is
        forgotten."""

    def shrink(self) -> None:
        """Give back memory that is only kept for later."""

    def lend(self, size: int) -> None:
        """So many bytes more may be held."""

    def recall(self, recall: Recall) -> None:
        """Give back what is asked for, as far as it is there; `news` then has the answer."""

    def limit(self, sequences: int) -> None:
        """At most so many sequences decode at once, 0 = as many as the load said."""

    def allow_prefill(self, allowed: bool) -> None:
        """Whether heavy prefills may go on, where they wait for that."""

    def news(self) -> Sequence[LoanFrame]:
        """What the supervisor is to be told, each once; asked after every step and command."""

    @property
    def due(self) -> float | None:
        """Seconds until `tidy` may have something to do if nothing is to be computed; None = it has
        not."""

    def tidy(self) -> None:
        """Give back what has served nobody for a while; `news` then tells it."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    @property
    def prefill(self) -> tuple[int, int]:
        """Prompt tokens done and in all, of the requests that have no token yet."""

    def close(self) -> None:
        """Free the weights and give the memory back to the system."""


class EngineThread:
    """Runs an Engine. What is handed to it may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        record: ProgressRecord,
        post: Callable[[Callable[[], None]], object],
        on_warm: Callable[[], None],
        on_progress: Callable[[int, int], None],
        on_loaded: Callable[[LoadResult], None],
        on_unloadable: Callable[[str], None],
        on_news: Callable[[Sequence[LoanFrame]], None],
        on_closed: Callable[[], None],
    ) -> None:
        """`post` schedules a call on the server's event loop; every callback runs there. `record`
        counts what must not take long: all but import, load and end."""
        self._engine = engine
        self._record = record
        self._post = post
        self._on_warm = on_warm
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._on_unloadable = on_unloadable
        self._on_news = on_news
        self._on_closed = on_closed
        self._commands: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load(self, load: Load) -> None:
        """Load a model; answered by `on_loaded` or `on_unloadable`."""
        self._commands.put(lambda: self._load(load))

    def submit(self, job: Job) -> None:
        self._commands.put(lambda: self._carry_out(self._engine.insert, job))

    def cancel(self, job: Job) -> None:
        self._commands.put(lambda: self._carry_out(self._cancel, job))

    def shrink(self) -> None:
        """Give back what is only kept for later, between two steps."""
        self._commands.put(lambda: self._carry_out(self._engine.shrink))

    def lend(self, size: int) -> None:
        self._commands.put(lambda: self._carry_out(self._engine.lend, size))

    def recall(self, recall: Recall) -> None:
        self._commands.put(lambda: self._carry_out(self._engine.recall, recall))

    def limit(self, sequences: int) -> None:
        self._commands.put(lambda: self._carry_out(self._engine.limit, sequences))

    def allow_prefill(self, allowed: bool) -> None:
        self._commands.put(lambda: self._carry_out(self._engine.allow_prefill, allowed))

    def close(self) -> None:
        """End the thread after the running step; answered by `on_closed`."""
        self._commands.put(lambda: False)

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._engine.warm_up()
            self._post(self._on_warm)
            while self._run_commands():
                self._record.begin()
                outputs = self._engine.step()
                begun = [self._deliver(job, frames) for job, frames in outputs]
                self._record.prefilling(*self._engine.prefill)
                self._record.end()
                self._tell_news()
                if any(begun):
                    # Linux wakes the reader on this very core, where it would wait until the next
                    # step is under way. At each token a yield would cost 4 % of their rate.
                    os.sched_yield()
            self._engine.close()
            self._post(self._on_closed)
        except BaseException:  # noqa: BLE001
            try:
                # stderr is the file that the supervisor reads last words from.
                traceback.print_exc()
                log.critical("the generation thread died; the process ends")
            finally:
                os._exit(EXIT_ENGINE_DIED)  # on a full disk as well

    def _run_commands(self) -> bool:
        """Carry out commands, waiting for one while there is nothing to generate."""
        while not self._engine.busy or not self._commands.empty():
            try:
                command = self._commands.get(timeout=self._engine.due)
            except queue.Empty:
                self._carry_out(self._engine.tidy)
                continue
            if not command():
                return False
        return True

    def _deliver(self, job: Job, frames: Sequence[FromEngine]) -> bool:
        """Whether the job's output begins with these `frames`."""
        begins = not job.begun and not isinstance(frames[-1], (Progress, PromptLogprobs))
        job.begun = job.begun or begins
        tokens = others = 0
        for frame in frames:  # for every token of every request
            if isinstance(frame, Token):
                tokens += 1
            elif not isinstance(frame, (Progress, PromptLogprobs, Failed)):
                others += 1
        self._record.made(tokens + others, tokens)
        job.sink.send(frames)
        if isinstance(frames[-1], FINAL_FRAMES):
            job.sink.close()
        return begins

    def _cancel(self, job: Job) -> None:
        self._engine.remove(job)
        job.sink.close()

    def _carry_out(self, act: Callable[..., None], *arguments: object) -> bool:
        self._record.begin()
        act(*arguments)
        self._record.prefilling(*self._engine.prefill)
        self._record.end()
        self._tell_news()
        return True

    def _tell_news(self) -> None:
        if news := self._engine.news():
            self._post(lambda: self._on_news(news))

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
