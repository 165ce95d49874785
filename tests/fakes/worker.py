"""The real worker server around a scripted engine, or the real one where the folder has no script.

Runs in place of `worker.main`.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from supervisor.wire import codec
from supervisor.wire.codec import HEADER, encode
from supervisor.wire.frames import Embed, Frame, FromEngine, Generate, Load, Token
from supervisor.wire.stream import FrameStream
from tests.fakes.engine import GARBAGE, TORN, ScriptedEngine, pass_gate, script_in
from worker.engine import Engine, Job, Loaded, Output, Prepared
from worker.main import main

SPAWN_GATE = "FAKE_SPAWN_GATE"
SPAWN_DEED = "FAKE_SPAWN_DEED"
NO_DESCRIPTORS = "FAKE_NO_DESCRIPTORS"
"""Environment: at spawn no folder is known yet, so the script of that phase comes this way."""


class Choice:
    """The engine that the folder asks for."""

    def __init__(self) -> None:
        self._chosen: Engine | None = None

    def warm_up(self) -> None:
        if gate := os.environ.get(SPAWN_GATE):
            pass_gate(gate)
        match os.environ.get(SPAWN_DEED):
            case "exit0":
                os._exit(0)
            case "abort":
                os.abort()

    def load(self, load: Load, progress: Callable[[int, int], None]) -> Loaded:
        script = script_in(Path(load.path))
        if script is not None:
            self._chosen = ScriptedEngine(script)
        else:
            from worker.batch import BatchEngine

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
        self._engine.insert(job)

    def remove(self, job: Job) -> None:
        self._engine.remove(job)

    def pause(self, job: Job) -> Sequence[FromEngine]:
        return self._engine.pause(job)

    def unpause(self, job: Job) -> None:
        self._engine.unpause(job)

    def step(self) -> Sequence[Output]:
        return self._engine.step()

    def shrink(self) -> None:
        self._engine.shrink()

    @property
    def busy(self) -> bool:
        return self._chosen is not None and self._chosen.busy

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

    def encode(self, frame: Frame) -> bytes:
        if self._torn:
            os._exit(0)  # the half has been sent: this is the frame after it
        if isinstance(frame, Token) and frame.text == TORN:
            self._torn = True
            return encode(Token(frame.id, "half"))[: HEADER.size + 2]
        if isinstance(frame, Token) and frame.text == GARBAGE:
            return HEADER.pack(4) + b"\xc1\xc1\xc1\xc1"
        return encode(frame)


if __name__ == "__main__":
    codec.encode = BreakableCodec().encode
    if os.environ.get(NO_DESCRIPTORS):
        without_descriptors()
    main(Choice)
