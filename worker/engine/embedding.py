"""Embeddings from the decoder-style embedding models that mlx-lm loads.

`worker.engine.pooling` reads from the model's files which hidden states become the vector: the last
token's (Qwen3-Embedding, e5-mistral) or the mean of all. The model is causal, so that padding
behind an input changes none of its states, and inputs of unlike length go through together.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from supervisor.errors import InternalError, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Embed, Embedded, FromEngine, Vector
from worker.engine import mlx_lm_compat
from worker.engine.active_job import row_fault
from worker.engine.memory import Memory
from worker.engine.pooling import NoEmbeddings, pooling_of
from worker.engine.slices import Speeds
from worker.engine.thread import Job, Output, failed
from worker.prompt.encoder import PromptEncoder
from worker.prompt.tokenizer import ModelTokenizer

STEP_TOKENS = 1024
"""Tokens of one step, padding included: as much as a neighbour's next token waits for."""
SHORT = 512
"""Tokens of the longest input that goes through in one step, without a KV cache: a load's charge
has room for as many."""
_SPREAD = 4
"""How many times shorter than a batch's longest input another request's may be: the rest is
padding."""

_BODIES = ("model", "transformer", "backbone")
"""What mlx-lm's architectures call the part that ends in hidden states."""


@dataclass(slots=True, eq=False)
class _EmbedJob:
    """A job's inputs on their way. `short` and `long` are indices of those to do, longest last."""

    job: Job
    short: list[int]
    long: list[int]
    vectors: dict[int, bytes] = field(default_factory=dict)
    """Those that are done and wait for an earlier one."""
    sent: int = 0
    fault: Exception | None = None
    """What a vector could not be made for: it ends this job alone."""

    def done(self, index: int, values: Any) -> None:
        """The `values` of an input are there."""
        try:
            self.vectors[index] = _vector(values, self.job)
        except Exception as error:  # noqa: BLE001
            self.fault = error

    @property
    def inputs(self) -> Sequence[Sequence[int]]:
        return self.job.prepared.inputs

    @property
    def made(self) -> float:
        """When the request was, seconds since the epoch."""
        assert isinstance(self.job.request, Embed)
        return self.job.request.now


class LongInput(NamedTuple):
    """An input that takes a KV cache, of so many tokens. `since`: when the oldest request was made
    that it, or one behind it, is of."""

    request: str
    since: float
    tokens: int
    under_way: bool
    """Whether it has its cache, or waits for room."""


class Wanted(NamedTuple):
    """What embeddings take: `long` a KV cache, `short` so many tokens of a step without one."""

    long: LongInput | None = None
    short: int = 0


@dataclass(slots=True, eq=False)
class _LongUnderWay:
    """A long input that has its cache."""

    work: _EmbedJob
    index: int
    cache: Any
    done: int = 0
    sum: Any = 0.0
    """Of the hidden states so far, shape [hidden]."""


class Embedder:
    """Embeds for one model. `prepare` runs on one thread at a time, all else on the MLX thread.

    The steps are an `Engine`'s: after its last frame a job is forgotten.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ModelTokenizer,
        folder: Path,
        context: int,
        *,
        fitting: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`model` as mlx-lm loads it, `context` in tokens; `fitting` is how much of it this machine
        can hold, None = all of it. `clock` measures passes, in seconds. Never raises: a model that
        makes no embeddings refuses them in `prepare`."""
        self._model, self._tokenizer, self._clock = model, tokenizer, clock
        self._speeds = Speeds()
        self._works: deque[_EmbedJob] = deque()
        self._waiting: deque[_EmbedJob] = deque()
        """Those with long inputs that have not begun, in their turns."""
        self._long: _LongUnderWay | None = None
        """One at a time, when there is room for its KV cache."""
        self._long_turn = False
        self._reason: str | None = None
        try:
            self._pooling = pooling_of(folder)
            self._body = _body(model)
            self._size, vocabulary = self._measure()
            self._encoder = PromptEncoder(tokenizer, context, vocabulary, fitting=fitting)
        except NoEmbeddings as error:
            self._reason = str(error)

    def prepare(self, request: Embed) -> list[list[int]]:
        """Token ids of each input. Raises UnsupportedValue, InvalidValue, ContextLengthExceeded or
        PromptTooLarge; messages never quote an input."""
        if self._reason is not None:
            raise UnsupportedValue(
                f"This model makes no embeddings: {self._reason}.", param="model"
            )
        if request.dimensions is not None and not 1 <= request.dimensions <= self._size:
            raise InvalidValue(
                f"Invalid value for `dimensions`: this model's embeddings have {self._size}.",
                param="dimensions",
            )
        if not request.inputs:
            raise InvalidValue("Invalid value for `input`: it is empty.", param="input")
        one = len(request.inputs) == 1
        return [
            self._tokens(input, "input" if one else f"input[{index}]", truncate=request.truncate)
            for index, input in enumerate(request.inputs)
        ]

    def insert(self, job: Job) -> None:
        """Queue a job whose `prepared.inputs` are those of `prepare`."""
        inputs = job.prepared.inputs
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        work = _EmbedJob(
            job,
            short=[index for index in order if len(inputs[index]) <= SHORT],
            long=[index for index in order if len(inputs[index]) > SHORT],
        )
        self._works.append(work)
        if work.long:
            self._waiting.append(work)

    def remove(self, job: Job) -> None:
        """Forget a job and what it held; unknown ones are fine."""
        self._works = deque(work for work in self._works if work.job is not job)
        self._waiting = deque(work for work in self._waiting if work.job is not job)
        if self._long is not None and self._long.work.job is job:
            self._long = None

    @property
    def busy(self) -> bool:
        """Whether a step would get anything done."""
        return self._long is not None or any(work.short for work in self._works)

    @property
    def wanted(self) -> Wanted:
        """What is under way or waits. The long input that waits does so for `begin_long`."""
        short = SHORT if any(work.short for work in self._works) else 0
        if self._long is not None:
            work, index = self._long.work, self._long.index
        elif self._waiting:
            work = self._waiting[0]
            index = work.long[-1]
        else:
            return Wanted(None, short)
        since = min(each.made for each in (work, *self._waiting))
        long = LongInput(
            work.job.request.request_id, since, len(work.inputs[index]), self._long is not None
        )
        return Wanted(long, short)

    def begin_long(self) -> None:
        """There is room for the cache of the one that waits. Computes nothing."""
        assert self._long is None
        work = self._waiting.popleft()
        index = work.long.pop()
        if work.long:
            self._waiting.append(work)
        self._long = _LongUnderWay(work, index, mlx_lm_compat.make_prompt_cache(self._model))

    def drop_long(self) -> None:
        """Others need the room: the one under way waits, and will begin anew."""
        assert self._long is not None
        work, index = self._long.work, self._long.index
        if work.long:
            self._waiting.remove(work)
        work.long.append(index)
        self._waiting.appendleft(work)
        self._long = None

    def step(self, memory: Memory, seconds: float) -> list[Output]:
        """One pass of at most STEP_TOKENS, of what fits into `memory`, and of about so many
        `seconds` or one short input, through the model. The jobs take turns, and so do the long
        input under way and batches of short ones: no request waits for the whole of another."""
        if not self.busy:
            return []
        short = any(work.short for work in self._works)
        self._long_turn = self._long is not None and (self._long_turn or not short)
        step = self._step_long if self._long_turn else self._step_short
        touched = step(memory, seconds)
        self._long_turn = not self._long_turn
        return [(work.job, frames) for work in touched if (frames := self._frames(work))]

    # ── on the MLX thread ────────────────────────────────────────────────────────────────────────

    def _step_short(self, memory: Memory, seconds: float) -> list[_EmbedJob]:
        """A batch of whole inputs, of the first job and of others that fit in."""
        timely = self._speeds.tokens(seconds, 0, scored=False)
        most = min(STEP_TOKENS, timely, memory.slice(SHORT))
        rows: list[tuple[_EmbedJob, int]] = []
        longest = 0
        for work in self._works:
            while work.short:
                length = len(work.inputs[work.short[-1]])
                if rows and (
                    length > longest
                    or (len(rows) + 1) * longest > most
                    or (work is not rows[0][0] and length * _SPREAD < longest)
                ):
                    break
                longest = max(longest, length)
                rows.append((work, work.short.pop()))
        self._works.rotate(-1)
        inputs = [list(work.inputs[index]) for work, index in rows]
        lengths = [len(tokens) for tokens in inputs]
        # Any token will do as padding: a causal model's states don't depend on what comes later.
        padded = mx.array([tokens + [0] * (longest - len(tokens)) for tokens in inputs])
        memory.watch_prefill(len(rows), longest, longest)
        begun = self._clock()
        hidden = self._body(padded)  # [rows, longest, hidden]
        if self._pooling == "last":
            pooled = hidden[mx.arange(len(rows)), mx.array(lengths) - 1].astype(mx.float32)
        else:
            real = mx.arange(longest)[None, :] < mx.array(lengths)[:, None]
            # Not a product with the mask: padding may be anything, infinity included.
            kept = mx.where(real[:, :, None], hidden.astype(mx.float32), 0.0)
            pooled = kept.sum(axis=1) / mx.array(lengths)[:, None]
        vectors = _to_numpy(pooled)
        memory.learn()
        self._speeds.learn(len(rows) * longest, 0, self._clock() - begun, scored=False)
        for (work, index), values in zip(rows, vectors, strict=True):
            work.done(index, values)
        return list(dict.fromkeys(work for work, _ in rows))

    def _step_long(self, memory: Memory, seconds: float) -> list[_EmbedJob]:
        """One chunk of the long input."""
        long = self._long
        assert long is not None
        tokens = long.work.inputs[long.index]
        after = min(len(tokens), long.done + STEP_TOKENS)
        timely = self._speeds.tokens(seconds, long.done, scored=False)
        size = min(STEP_TOKENS, timely, memory.slice(after))
        chunk = list(tokens[long.done : long.done + size])
        memory.watch_prefill(1, len(chunk), long.done + len(chunk))
        begun, before = self._clock(), long.done
        hidden = self._body(mx.array([chunk]), cache=long.cache)[0].astype(mx.float32)
        long.done += len(chunk)
        if self._pooling == "mean":
            long.sum = hidden.sum(axis=0) + long.sum
        mx.eval([layer.state for layer in long.cache], long.sum)
        memory.learn()
        self._speeds.learn(len(chunk), before, self._clock() - begun, scored=False)
        if long.done < len(tokens):
            return []
        pooled = hidden[-1] if self._pooling == "last" else long.sum / len(tokens)
        long.work.done(long.index, _to_numpy(pooled))
        self._long = None
        return [long.work]

    def _frames(self, work: _EmbedJob) -> list[FromEngine]:
        """What can be told of a job by now: vectors go out in the order of the inputs."""
        frames: list[FromEngine] = []
        if work.fault is not None:
            self.remove(work.job)
            return [row_fault(work.job, work.fault)]
        while work.sent in work.vectors:
            values = work.vectors.pop(work.sent)
            if not values:
                error = InternalError(
                    f"The model's numbers overflowed at input {work.sent}: no embedding was made."
                )
                frames.append(failed(error))
                break
            frames.append(Vector(values))
            work.sent += 1
        else:
            if work.sent < len(work.inputs):
                return frames
            frames.append(Embedded(work.job.prepared.size))
        self.remove(work.job)
        return frames

    def _measure(self) -> tuple[int, int]:
        """(numbers of a vector, token ids there are), found by running one token. Raises
        NoEmbeddings."""
        known = max(self._tokenizer.get_vocab().values(), default=0) + 1
        rows = next(
            (
                int(module.weight.shape[0])
                for name, module in self._body.named_modules()
                if name.rpartition(".")[2] in ("embed_tokens", "wte", "embeddings", "embed_in")
                and hasattr(module, "weight")
            ),
            known,
        )
        try:
            hidden = self._body(mx.array([[0]]))
            mx.eval(hidden)
            shape = hidden.shape
        except Exception as error:  # noqa: BLE001
            # Architectures are programs of their own and can raise anything.
            raise NoEmbeddings(
                f"its architecture gives no hidden states ({type(error).__name__})"
            ) from None
        if len(shape) != 3 or shape[-1] == rows:
            raise NoEmbeddings("its architecture gives no hidden states")
        return int(shape[-1]), min(rows, known)

    # ── before a request's turn ──────────────────────────────────────────────────────────────────

    def _tokens(self, input: str | Sequence[int], place: str, *, truncate: bool) -> list[int]:
        if isinstance(input, str):
            if truncate:
                input = self._encoder.beginning(input)
            # As the tokenizer does it for its own model: Qwen3-Embedding's ends every text with
            # the very token whose state is the embedding.
            tokens = self._encoder.encode(input, "input", place)
        else:
            tokens = self._encoder.checked(input, "input", place)
        if not tokens:
            raise InvalidValue(f"Invalid value for `{place}`: it is empty.", param="input")
        if truncate and len(tokens) > self._encoder.fitting:
            return self._truncated(tokens)
        self._encoder.check_size(len(tokens), "input", place)
        return tokens

    def _truncated(self, tokens: list[int]) -> list[int]:
        """As many as there is room for, and a token at the end with which every text ends."""
        last = {self._encoder.encode(text, "input", "input")[-1] for text in ("a", "b")}
        end = tokens[-1:] if last == {tokens[-1]} else []
        return tokens[: self._encoder.fitting - len(end)] + end


def _body(model: Any) -> Any:
    """The part of an mlx-lm model before its output layer. Raises NoEmbeddings."""
    holder = getattr(model, "language_model", model)
    for name in _BODIES:
        if callable(body := getattr(holder, name, None)):
            return body
    raise NoEmbeddings("its architecture gives no hidden states")


def _to_numpy(values: Any) -> Any:
    mx.eval(values)
    return np.array(values)


def _vector(values: Any, job: Job) -> bytes:
    """The first `dimensions` numbers, of length 1; nothing when they are no numbers any more."""
    assert isinstance(job.request, Embed)
    kept = values[: job.request.dimensions]
    length = np.linalg.norm(kept.astype(np.float64))
    if not np.isfinite(length):
        return b""
    return bytes((kept / max(length, 1e-12)).astype("<f4").tobytes())
