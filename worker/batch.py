"""The real engine: continuous batching with mlx-lm's `BatchGenerator`."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Embed, End, FromEngine, Generate, Load, Progress, Token
from worker import loading
from worker.engine import Job, Loaded, Output, Prepared
from worker.prompts import Prompts
from worker.sampling import Samplers
from worker.text import TextStream

log = logging.getLogger("bulkhead.worker")

PREFILL_BATCH = 8
"""Prompts prefilled together, mlx-lm's own figure."""
PREFILL_STEP = 512
"""Prompt tokens of one sequence in one step. A step is what a neighbour's next token and a cancel
wait for, and larger ones gain little."""


@dataclass(slots=True)
class _Live:
    """A job inside the generator."""

    job: Job
    text: TextStream
    tokens: int = 0
    ahead: bool = False
    """Whether the first token has been told before the generator has told it."""


class BatchEngine:
    """An `Engine` over one mlx-lm model."""

    def __init__(self) -> None:
        self._queue: deque[Job] = deque()
        """Accepted, not yet given to the generator; see `_admit`."""
        self._live: dict[int, _Live] = {}
        self._uids: dict[Job, int] = {}
        self._prefilling: dict[int, int] = {}
        """Prompt tokens still to be prefilled, of those in the generator without a first token."""

    def warm_up(self) -> None:
        loading.import_mlx_lm()

    def load(self, load: Load, progress: Callable[[int, int], None]) -> Loaded:
        from mlx_lm.generate import BatchGenerator, StopSequences

        from worker import prefill

        prefill.install()

        self._model = loading.load(Path(load.path), load.context, progress)
        self._prompts = Prompts(self._model.tokenizer, self._model.context)
        self._samplers = Samplers()
        generator: Any = BatchGenerator(
            self._model.model,
            stop_tokens=[[token] for token in self._model.tokenizer.eos_token_ids],
            completion_batch_size=load.max_concurrency,
            prefill_batch_size=min(PREFILL_BATCH, load.max_concurrency),
            prefill_step_size=PREFILL_STEP,
        )
        # The constructor wires the whole recommended working set, which is wrong when several
        # workers share the machine; closing does nothing but undo that.
        generator.close()
        self._generator = generator
        self._concurrency = load.max_concurrency
        self._never_stop = StopSequences()
        return Loaded(mx.get_active_memory(), self._model.context)

    def prepare(self, request: Generate | Embed) -> Prepared:
        if isinstance(request, Embed):
            raise UnsupportedValue("This model makes no embeddings.", param="model")
        return Prepared(self._prompts.tokens(request))

    def insert(self, job: Job) -> None:
        self._queue.append(job)

    def _admit(self) -> None:
        """Give queued jobs to the generator, a whole group at a time.

        Handed over one by one, as they arrive, the prompts of a burst would go through in groups
        of 1, 7, 1, 7, for the generator fills its prompt batch before it takes the finished ones
        out of it; and each group's first tokens would wait for the next group's prefill, which is
        in the same step. So a prompt waits until those before it have their first token, but not
        while one of them has chunks to go.
        """
        left = self._prefilling.values()
        if left and max(left) <= PREFILL_STEP:
            return
        room = min(PREFILL_BATCH - len(left), self._concurrency - len(self._live))
        for _ in range(min(room, len(self._queue))):
            self._start(self._queue.popleft())

    def _start(self, job: Job) -> None:
        request, model = job.request, self._model
        assert isinstance(request, Generate)
        wanted = request.sampling
        room = model.context - len(job.prompt)
        temperature = model.temperature if wanted.temperature is None else wanted.temperature
        top_p = model.top_p if wanted.top_p is None else wanted.top_p
        (uid,) = self._generator.insert(
            [list(job.prompt)],
            max_tokens=[min(request.max_tokens or room, room)],
            samplers=[self._samplers.get(temperature, top_p)],
            stop_sequences=[self._never_stop] if request.ignore_eos else None,
        )
        self._live[uid] = _Live(job, TextStream(model.tokenizer.detokenizer, request.stop))
        self._uids[job] = uid
        self._prefilling[uid] = len(job.prompt)

    def remove(self, job: Job) -> None:
        uid = self._uids.pop(job, None)
        if uid is not None:
            del self._live[uid]
            self._prefilling.pop(uid, None)
            self._generator.remove([uid])
        elif job in self._queue:
            self._queue.remove(job)

    def step(self) -> Sequence[Output]:
        self._admit()
        prefills, generated = self._generator.next()
        outputs: list[Output] = []
        for prefill in prefills:
            done, total = prefill.progress
            self._prefilling[prefill.uid] = total - done
            if 0 < done < total - 1:  # the last token is the first decode step's
                job = self._live[prefill.uid].job
                log.info("request %s: prefilled %d of %d", job.request.request_id, done, total)
                outputs.append((job, [Progress(done, total)]))
        for response in generated:
            live = self._live[response.uid]
            if live.ahead:
                live.ahead = False
                continue
            frames = self._frames(live, response.token, response.finish_reason)
            # Of a stop string the generator knows nothing.
            self._told(response.uid, frames, ended=response.finish_reason is not None)
            outputs.append((live.job, frames))
        return outputs + self._firsts([p.uid for p in prefills if p.end_of_prompt])

    def _firsts(self, uids: Sequence[int]) -> list[Output]:
        """The first tokens of sequences whose prompts are done.

        The generator would tell them after it has built the step that follows, which takes as long
        as a step of a small model. A token that might end its sequence is left to it.
        """
        outputs: list[Output] = []
        if not uids:
            return outputs
        batch = self._generator._generation_batch
        tokens = batch._next_tokens.tolist()
        for uid in uids:
            del self._prefilling[uid]
            live, at = self._live[uid], batch.uids.index(uid)
            token = tokens[at]
            if token in self._model.tokenizer.eos_token_ids or batch.max_tokens[at] == 1:
                continue
            live.ahead = True
            frames = self._frames(live, token, None)
            self._told(uid, frames, ended=False)
            outputs.append((live.job, frames))
        return outputs

    def _told(self, uid: int, frames: Sequence[FromEngine], *, ended: bool) -> None:
        """Forget a sequence whose last frame is among `frames`; `ended`: the generator has."""
        if isinstance(frames[-1], End):
            if not ended:
                self._generator.remove([uid])
            del self._uids[self._live.pop(uid).job]

    @property
    def busy(self) -> bool:
        return bool(self._live or self._queue)

    def close(self) -> None:
        self._queue.clear()
        self._live.clear()
        self._uids.clear()
        for held in ("_generator", "_model", "_prompts"):
            if hasattr(self, held):
                delattr(self, held)
        gc.collect()
        mx.clear_cache()

    def _frames(self, live: _Live, token: int, finish: str | None) -> Sequence[FromEngine]:
        """What one generated token means for its request."""
        if finish == "stop":
            # The end-of-sequence token is not output; what was held back for stop strings is.
            text = live.text.finish()
            ended = self._end(live, "stop")
            return [Token(token, text), ended] if text else [ended]
        live.tokens += 1
        text = live.text.push(token)
        if finish == "length" and not live.text.stopped:
            text += live.text.finish()
        if live.text.stopped:
            return [Token(token, text), self._end(live, "stop")]
        if finish == "length":
            return [Token(token, text), self._end(live, "length")]
        return [Token(token, text)]

    def _end(self, live: _Live, reason: Any) -> End:
        return End(reason, len(live.job.prompt), live.tokens)
