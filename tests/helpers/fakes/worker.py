"""The real worker server around a scripted engine, or the real one where the folder has no script.

Runs in place of `worker.main`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from supervisor.wire import codec
from supervisor.wire.codec import HEADER, encode
from supervisor.wire.frames import (
    Embed,
    End,
    Frame,
    Generate,
    Load,
    PromptLogprobs,
    Token,
)
from supervisor.wire.stream import FrameStream
from tests.helpers.fakes import orders
from tests.helpers.fakes.engine import GARBAGE, TORN, ScriptedEngine, end, pass_gate, script_in
from tests.helpers.fakes.loans import PassesLoansOn
from tests.helpers.fakes.signs import Signed
from tests.helpers.fakes.table import hand_on
from worker import priority
from worker.engine.thread import Engine, Job, LoadResult, Output, Prepared
from worker.main import main

SPAWN_GATE = "FAKE_SPAWN_GATE"
SPAWN_DEED = "FAKE_SPAWN_DEED"
IMPORTS = "FAKE_IMPORTS"
"""Environment: every worker imports mlx-lm before it greets, a spare at its low priority."""
EAGER = "FAKE_EAGER"
"""Environment: the same, and a spare does it as fast as everybody else."""
NO_DESCRIPTORS = "FAKE_NO_DESCRIPTORS"
"""Environment: at spawn no folder is known yet, so the script of that phase comes this way."""
DEATHS = "FAKE_DEATHS"
"""Environment: for each generation, after how many tokens in all it aborts, those of scored prompts
among them; 0 = before it is ready, - = never. Later ones live."""
ENDS = "FAKE_ENDS"
"""Environment: for each generation, how it ends then, if not by abort, see `fakes.engine.end`."""
TABLE = "FAKE_TABLE"
"""Environment: the file of `fakes.table`."""
ROWS_MAX = "FAKE_ROWS_MAX"
"""Environment: how many sequences may decode at once; it ends when there is one more."""
TOKENS_MAX = "FAKE_TOKENS_MAX"
"""Environment: how many tokens all sequences may have together, their prompts included."""
CROWD = "FAKE_CROWD"
"""Environment: in its first incarnation it computes nothing before so many requests have come."""
POISON = "FAKE_POISON"
"""Environment: "TOKEN DEPTH": a prompt that holds that token id kills its worker after so many
tokens of its output."""


class Choice(PassesLoansOn):
    """The engine that the folder asks for."""

    def __init__(self) -> None:
        self._chosen: Engine | None = None
        self._is_warm = False
        self._lives: int | None = None
        """Tokens that are left to this incarnation; None = it lives."""
        self._end = "abort"
        poison = os.environ.get(POISON, "").split()
        self._poison = (int(poison[0]), int(poison[1])) if poison else None
        self._depths: dict[Job, int] = {}
        """How far each request is into its output."""
        self._rows_max = int(os.environ.get(ROWS_MAX, 10**9))
        self._tokens_max = int(os.environ.get(TOKENS_MAX, 10**9))
        self._counts = any(os.environ.get(plan) for plan in (DEATHS, POISON, ROWS_MAX, TOKENS_MAX))
        """Whether some number of tokens ends it; counting costs as much as scripted ones do."""
        self._decoding: set[Job] = set()
        self._awaited = 0
        """Requests that are still to come before it computes."""

    def warm_up(self) -> None:
        if self._is_warm:
            return
        self._is_warm = True
        if gate := os.environ.get(SPAWN_GATE):
            pass_gate(gate)
        if os.environ.get(IMPORTS) or os.environ.get(EAGER):
            from worker.engine.batch import BatchEngine

            BatchEngine().warm_up()
        match os.environ.get(SPAWN_DEED):
            case "exit0":
                os._exit(0)
            case "abort":
                os.abort()

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        deaths = os.environ.get(DEATHS, "").split()
        if load.generation <= len(deaths) and deaths[load.generation - 1] != "-":
            self._lives = int(deaths[load.generation - 1])
        if self._lives == 0:
            os.abort()
        if load.generation == 1:
            self._awaited = int(os.environ.get(CROWD, 0))
        ends = os.environ.get(ENDS, "").split()
        if load.generation <= len(ends):
            self._end = ends[load.generation - 1]
        script = script_in(Path(load.path))
        if script is not None:
            self._chosen = ScriptedEngine(script)
        else:
            from worker.engine.batch import BatchEngine

            self._chosen = BatchEngine()
        self._chosen.warm_up()
        return self._chosen.load(load, progress)

    @property
    def _engine(self) -> Engine:
        assert self._chosen is not None
        return self._chosen

    def prepare(self, request: Generate | Embed) -> Prepared:
        return self._engine.prepare(request)

    def insert(self, job: Job) -> None:
        self._awaited -= 1
        if isinstance(job.request, Generate):
            self._depths[job] = len(job.request.emitted)
            self._check_poison(job)
        self._engine.insert(job)

    def _check_poison(self, job: Job) -> None:
        if self._poison is None:
            return
        token, depth = self._poison
        if token in job.prompt and self._depths[job] >= depth:
            os.abort()

    def remove(self, job: Job) -> None:
        self._decoding.discard(job)
        self._engine.remove(job)

    def step(self) -> Sequence[Output]:
        outputs = self._engine.step()
        if not self._counts:
            return outputs
        for job, frames in outputs:
            tokens = sum(isinstance(frame, Token) for frame in frames)
            if self._lives is not None:
                self._lives -= tokens + sum(
                    len(frame.tokens) for frame in frames if isinstance(frame, PromptLogprobs)
                )
                if self._lives <= 0:
                    end(self._end)
            if job in self._depths:
                self._depths[job] += tokens
                self._check_poison(job)
            if tokens:
                self._decoding.add(job)
        held = sum(len(job.prompt) + self._depths.get(job, 0) for job in self._decoding)
        if len(self._decoding) > self._rows_max or held > self._tokens_max:
            end(self._end)
        for job, frames in outputs:
            if isinstance(frames[-1], End):
                self._decoding.discard(job)
        return outputs

    @property
    def prefill(self) -> tuple[int, int]:
        return (0, 0) if self._chosen is None else self._chosen.prefill

    def shrink(self) -> None:
        self._engine.shrink()

    @property
    def busy(self) -> bool:
        return self._chosen is not None and self._awaited <= 0 and self._chosen.busy

    @property
    def due(self) -> float | None:
        return None if self._chosen is None else self._chosen.due

    def close(self) -> None:
        if self._chosen is not None:
            self._chosen.close()


def without_descriptors() -> None:
    """The first connection meets the process's limit of open files."""
    real = FrameStream.duplicate
    left = [1]

    def duplicate(self: FrameStream[Any]) -> socket.socket | None:
        if left:
            left.pop()
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self)

    setattr(FrameStream, "duplicate", duplicate)  # noqa: B010


class BreakableCodec:
    """The real codec, except that two texts come out as a torn and as a malformed frame."""

    def __init__(self) -> None:
        self._torn = False
        self._tears = False

    def tear(self) -> None:
        """The next frame, whatever it is, comes out as half of one."""
        self._tears = True

    def encode(self, frame: Frame) -> bytes:
        if self._torn:
            os._exit(0)  # the half has been sent: this is the frame after it
        if self._tears:
            self._torn = True
            return encode(frame)[: HEADER.size + 2]
        if isinstance(frame, Token) and frame.text == TORN:
            self._torn = True
            return encode(Token(frame.id, "half"))[: HEADER.size + 2]
        if isinstance(frame, Token) and frame.text == GARBAGE:
            return HEADER.pack(4) + b"\xc1\xc1\xc1\xc1"
        return encode(frame)


def _signed(folder: Path) -> Engine:
    return Signed(Choice(), folder)


if __name__ == "__main__":
    breakable = BreakableCodec()
    codec.encode = breakable.encode
    orders.obey(breakable.tear)
    if table := os.environ.get(TABLE):
        hand_on(Path(table))
    if os.environ.get(NO_DESCRIPTORS):
        without_descriptors()
    if os.environ.get(EAGER):
        setattr(priority, "LOWEST", os.getpriority(os.PRIO_PROCESS, 0))  # noqa: B010
    folder = os.environ.get(orders.VARIABLE)
    main(partial(_signed, Path(folder)) if folder else Choice)
