"""An engine that follows a script, for faults and phases that a real model gives no hold on.

A model folder with a `script.json` is served by it. A *gate* is a FIFO: the engine opens it for
reading and so stops until the test has opened it for writing and closed it again; neither side
polls, and each knows that the other has arrived.
"""

from __future__ import annotations

import collections
import gc
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from supervisor.errors import InvalidValue
from supervisor.wire.frames import (
    Chat,
    Embed,
    End,
    FromEngine,
    Generate,
    Load,
    Progress,
    Text,
    Token,
    Tokens,
)
from tests.helpers.fakes.loans import BorrowsNothing
from worker.engine.thread import Job, LoadResult, Output, Prepared, Unloadable

PROMPT_TOKENS = 8
REFUSED = "refuse me"
"""A text that the engine does not take as a prompt."""
TORN = "\0torn"
GARBAGE = "\0garbage"
"""Texts that the fake worker's codec turns into a broken frame, see `fakes.worker`."""


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one model does. Gates and deeds apply to `generations` alone."""

    gates: dict[str, str] = {}
    """Phase ("load", "prefill", "decode") → FIFO; each is passed once an incarnation."""
    deeds: dict[str, str] = {}
    """Phase → what happens there, after its gate: exit0, raise, torn, garbage, unloadable, or one
    of `end`'s."""
    last_words: str = ""
    """What is written to stderr before a deed."""
    at_token: int = 3
    """The decode phase is entered before this token."""
    says: tuple[Token, ...] = ()
    """What every answer is, instead of numbered words up to `max_tokens`."""
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    """How an answer of `says` ends."""
    tells_seed: bool = False
    """Each token of an answer is the seed of its choice."""
    context: int = 4096
    load_steps: int = 3
    prefill_steps: int = 1
    step_seconds: float = 0.0
    """What each of them takes."""
    tokens_per_second: float = 0.0
    """Of each answer, by the engine's own clock; 0 = as fast as it can."""
    crowd: int = 1
    """No token is made before so many requests are there; then all go on until none is left."""
    generations: tuple[int, ...] = (1,)

    def write(self, folder: Path) -> Path:
        """Make `folder` a model that Bulkhead will serve."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "script.json").write_bytes(msgspec.json.encode(self))
        (folder / "config.json").write_text(json.dumps({"model_type": "scripted"}))
        (folder / "model.safetensors").write_bytes(b"")
        return folder


def text_of(tokens: int) -> str:
    """What a scripted model says in that many tokens."""
    return "".join(f"w{number} " for number in range(tokens))


class ScriptedEngine(BorrowsNothing):
    """An `Engine` whose tokens are numbers and whose misdeeds are planned."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script
        self._active = True
        self._jobs: dict[Job, int] = {}
        """Tokens made of each."""
        self._prefilled: dict[Job, int] = {}
        """Steps of each whose prompt is not done."""
        self._is_awaiting_crowd = True
        self._due = 0.0
        """When the next tokens are made, if they are paced; monotonic seconds."""
        self._gates = dict(script.gates)

    def warm_up(self) -> None:
        """Nothing to import."""

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        self._active = load.generation in self._script.generations
        for step in range(self._script.load_steps):
            time.sleep(self._script.step_seconds)
            progress(step + 1, self._script.load_steps)
        self._phase("load")
        return LoadResult(memory_bytes=1000, context=self._script.context)

    def prepare(self, request: Generate | Embed) -> Prepared:
        assert isinstance(request, Generate)
        echo = ""
        prompt: Sequence[int] = ()
        match request.prompt:
            case Chat(messages):
                size = sum(len(str(message["content"])) for message in messages)
            case Text(text):
                if text == REFUSED:
                    raise InvalidValue("planned", param="prompt")
                size, echo = len(text), text
            case Tokens(ids):
                size, echo, prompt = len(ids), "".join(f"<{token}>" for token in ids), ids
        padding = max(PROMPT_TOKENS, size) - len(prompt)
        return Prepared([*prompt, *[0] * padding], echo if request.echo else "")

    def insert(self, job: Job) -> None:
        assert isinstance(job.request, Generate)
        self._jobs[job] = len(job.request.emitted)
        self._prefilled[job] = 0
        if self._is_awaiting_crowd:
            self._is_awaiting_crowd = len(self._jobs) < self._script.crowd
        if not self._script.tokens_per_second and self._script.crowd == 1:
            gc.collect()  # whatever the server forgot to hold on to is gone from now on

    def remove(self, job: Job) -> None:
        self._jobs.pop(job, None)
        self._prefilled.pop(job, None)
        self._await_crowd()

    def step(self) -> Sequence[Output]:
        if self._script.tokens_per_second:
            self._await_turn()
        outputs: list[Output] = []
        for job, made in tuple(self._jobs.items()):
            if job in self._prefilled and not self._prefill(job, outputs):
                continue
            frames: list[FromEngine] = [Token(made, f"w{made} ")]
            if made == self._script.at_token and (said := self._phase("decode")):
                frames = [Token(made, said)]
            self._jobs[job] = made + 1
            assert isinstance(job.request, Generate)
            says = self._script.says
            if says:
                frames = [says[made]]
            elif self._script.tells_seed:
                frames = [Token(made, f"{job.request.sampling.seed} ")]
            if made + 1 >= (len(says) or job.request.max_tokens or 16):
                reason = self._script.finish_reason if says else "length"
                frames.append(End(reason, len(job.prompt), made + 1))
                del self._jobs[job]
            outputs.append((job, frames))
        self._await_crowd()
        return outputs

    def _prefill(self, job: Job, outputs: list[Output]) -> bool:
        """One step of it, unless there are none to be done; whether that was the last."""
        done, steps = self._prefilled[job] + 1, self._script.prefill_steps
        if done >= steps:
            del self._prefilled[job]
        else:
            self._prefilled[job] = done
        if done <= steps:
            time.sleep(self._script.step_seconds)
            outputs.append((job, [Progress(done, len(job.prompt))]))
            self._phase("prefill")
        return done >= steps

    def _await_crowd(self) -> None:
        """If nobody is left."""
        self._is_awaiting_crowd |= not self._jobs

    def _await_turn(self) -> None:
        """Steps begin at even distances; one that comes late moves those after it only if it is
        late by a whole one."""
        now = time.monotonic()
        self._due = max(self._due + 1 / self._script.tokens_per_second, now)
        time.sleep(self._due - now)

    @property
    def prefill(self) -> tuple[int, int]:
        steps = self._script.prefill_steps
        if not self._prefilled:
            return 0, 0
        left = [
            (len(job.prompt), self._prefilled[job]) for job in self._prefilled.keys() & self._jobs
        ]
        return (sum(size * done // steps for size, done in left), sum(size for size, _ in left))

    def shrink(self) -> None:
        """Nothing is kept."""

    @property
    def busy(self) -> bool:
        return bool(self._jobs) and not self._is_awaiting_crowd

    def close(self) -> None:
        self._jobs.clear()

    def _phase(self, name: str) -> str:
        """Stop at the phase's gate, then do its deed. Returns the text of a broken frame."""
        if not self._active:
            return ""
        if gate := self._gates.pop(name, None):
            pass_gate(gate)
        if name in self._script.deeds:
            os.write(2, self._script.last_words.encode())
        match self._script.deeds.get(name):
            case "exit0":
                os._exit(0)
            case "raise":
                raise RuntimeError("planned")
            case "unloadable":
                raise Unloadable("planned")
            case "torn":
                return TORN
            case "garbage":
                return GARBAGE
            case deed if deed is not None:
                end(deed)
        return ""


def end(how: str) -> None:
    """Go no further: die, or hang."""
    match how:
        case "abort":
            os.abort()
        case "memory":
            os.write(2, b"[malloc] Unable to allocate 4096 bytes.\n")
            os.abort()
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()  # this thread may be the last to be stopped
        case "hog":  # one call into C, without end and with the interpreter's lock
            collections.deque(itertools.repeat(None), maxlen=0)
        case "block":
            threading.Event().wait()
        case unknown:
            raise AssertionError(unknown)


def pass_gate(fifo: str) -> None:
    """Wait until the test has come and gone."""
    with open(fifo, "rb") as gate:
        gate.read()


def script_in(folder: Path) -> Script | None:
    """The folder's script, if it is a scripted model."""
    path = folder / "script.json"
    return msgspec.json.decode(path.read_bytes(), type=Script) if path.exists() else None
