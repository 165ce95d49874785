"""The real engine: continuous batching over mlx-lm's batches.

A step is one decode step of everybody, one slice of prefill, or one pass of embeddings, so that a
slice is the most that anybody's next token, a cancel or a pause waits for. Which sequences share a
batch is in `worker.engine.groups`, whose prompt goes on and by how much in `worker.engine.slices`.
"""

from __future__ import annotations

import enum
import gc
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mlx.core as mx

from supervisor.wire.frames import (
    Embed,
    FromEngine,
    Generate,
    Load,
    LoanFrame,
    Progress,
    Recall,
    Repaid,
)
from worker.engine import loading, mlx_lm_compat, slices
from worker.engine.active_job import ActiveJob, row_fault
from worker.engine.decoding import BatchDecoder
from worker.engine.load_faults import told_of
from worker.engine.mlx_lm_generator import Batches, NextToken, Pending
from worker.engine.sequences import Decoded, Sequences
from worker.engine.serving import Serving, prompt_size
from worker.engine.thread import FINAL_FRAMES, Job, LoadResult, Output, Prepared

log = logging.getLogger("bulkhead.worker")


class _Turn(enum.Enum):
    """What a step does."""

    DECODE = enum.auto()
    PREFILL = enum.auto()
    EMBED = enum.auto()


@dataclass(frozen=True, slots=True)
class _Paused:
    """A job outside the batches, with its place in the output."""

    active: ActiveJob
    sequence: Pending


class BatchEngine:
    """An `Engine` over one mlx-lm model."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` measures slices and steps, in seconds."""
        self._clock = clock
        self._import_failure = ""
        """What made mlx-lm's import fail, as `warm_up` met it."""
        self._queue: deque[Job] = deque()
        """Accepted, not begun, oldest first."""
        self._queued_tokens = 0
        """Of their prompts."""
        self._active: dict[int, ActiveJob] = {}
        """Those among the sequences, by uid."""
        self._uids: dict[Job, int] = {}
        self._prefilling: dict[int, int] = {}
        """Prompt tokens still to go, of those among the sequences without a first token."""
        self._paused: dict[Job, _Paused] = {}
        self._pausing: set[Job] = set()
        """Those to pause that have no token yet: queued ones are passed over, the others pause with
        their first."""
        self._news: list[LoanFrame] = []
        self._last = _Turn.PREFILL
        self._last_other = _Turn.EMBED
        """The last one that was no decode step."""
        self._after_oldest = False
        self._speeds, self._pace = slices.Speeds(), slices.Pace()

    def warm_up(self) -> None:
        self._import_failure = mlx_lm_compat.import_mlx_lm()
        if not self._import_failure:
            # A tenth of a second more, which is twice what a small model's load takes. It imports
            # transformers, which must not come before mlx-lm.
            import worker.grammar.compile  # noqa: F401

    def load(self, load: Load, progress: Callable[[int, int], None]) -> LoadResult:
        if self._import_failure:
            raise mlx_lm_compat.unfit(f"its import failed with {self._import_failure}")
        folder = Path(load.path)
        loaded = loading.load(folder, load.context, progress)
        with told_of(folder):
            self._prepare_to_serve(load, loaded)
        return LoadResult(mx.get_active_memory(), loaded.context)

    def _prepare_to_serve(self, load: Load, loaded: loading.LoadedModel) -> None:
        """What is made of the loaded model, which may fail for want of something in its files."""
        from worker.grammar.vocabulary import fill_masks

        self._serving = Serving(loaded, Path(load.path))
        self._embedder, self._eos = self._serving.embedder, self._serving.eos
        decoder = BatchDecoder(fill_masks, self._eos)
        self._batches = Batches(loaded.model, decoder, eos=self._eos, step=slices.PREFILL_STEP)
        self._sequences = Sequences(self._batches)
        self._concurrency = load.max_concurrency

    def prepare(self, request: Generate | Embed) -> Prepared:
        return self._serving.prepare(request)

    # ── jobs come, pause and leave ───────────────────────────────────────────────────────────────

    def insert(self, job: Job) -> None:
        if isinstance(job.request, Embed):
            self._embedder.insert(job)
        else:
            self._queue.append(job)
            self._queued_tokens += prompt_size(job)

    def remove(self, job: Job) -> None:
        if isinstance(job.request, Embed):
            self._embedder.remove(job)
            return
        self._pausing.discard(job)
        uid = self._uids.get(job)
        if uid is not None:
            self._forget(uid)
        elif job in self._queue:
            self._dequeue(job)
        else:
            self._paused.pop(job, None)

    def pause(self, job: Job) -> Sequence[FromEngine]:
        uid = self._uids.get(job)
        if uid in self._prefilling or job in self._queue:
            self._pausing.add(job)
            return ()
        return () if uid is None else self._set_aside(uid)

    def _set_aside(self, uid: int) -> Sequence[FromEngine]:
        """Park a sequence that decodes, with its job among the paused ones, unless it ends with the
        next step. What its request is told by it."""
        state, active = self._sequences.next_token(uid), self._active[uid]
        if self._may_end(state) or state.row.fault is not None:
            return ()
        frames: Sequence[FromEngine] = ()
        if not active.told_ahead:
            # The batch is a token ahead, and would keep it to itself.
            frames = self._frames(active, state, None)
            if isinstance(frames[-1], FINAL_FRAMES):
                self._forget(uid)
                return frames
        try:
            parked = self._sequences.park(uid)
        except Exception as error:  # noqa: BLE001
            self._forget(uid)
            return [*frames, row_fault(active.job, error)]
        active.told_ahead = False
        del self._active[uid], self._uids[active.job]
        self._paused[active.job] = _Paused(active, parked)
        return frames

    def unpause(self, job: Job) -> None:
        self._pausing.discard(job)
        paused = self._paused.pop(job, None)
        if paused is not None:
            uid = self._sequences.resume(paused.sequence)
            self._active[uid], self._uids[job] = paused.active, uid
            self._prefilling[uid] = 1 + self._sequences.left(uid)

    def _dequeue(self, job: Job) -> None:
        self._queue.remove(job)
        self._queued_tokens -= prompt_size(job)

    def _forget(self, uid: int, *, left: bool = False) -> None:
        """Forget a sequence; `left`: it is no longer among them."""
        if not left:
            self._sequences.remove([uid])
        self._prefilling.pop(uid, None)
        del self._uids[self._active.pop(uid).job]

    # ── a step ───────────────────────────────────────────────────────────────────────────────────

    def step(self) -> Sequence[Output]:
        prompts = self._prompts()
        turn = self._turn(prefills=bool(prompts))
        before, self._last = self._last, turn
        if turn is _Turn.DECODE:
            return self._decode(alone=before is _Turn.DECODE)
        self._last_other = turn
        return self._prefill(prompts) if turn is _Turn.PREFILL else self._embedder.step()

    def _turn(self, *, prefills: bool) -> _Turn:
        """Every other step is a decode step, while anybody decodes; the rest take turns."""
        decodes = self._sequences.decodes > 0
        if decodes and (self._last is not _Turn.DECODE or not (prefills or self._embedder.busy)):
            return _Turn.DECODE
        if prefills and self._embedder.busy:
            other = {_Turn.EMBED: _Turn.PREFILL, _Turn.PREFILL: _Turn.EMBED}
            return other[self._last_other]
        return _Turn.PREFILL if prefills else _Turn.EMBED

    def _decode(self, *, alone: bool) -> list[Output]:
        """One token of everybody. `alone`: so was the last step, with nothing between."""
        begun = self._clock()
        decoded = self._sequences.decode()
        if alone:
            self._pace.learn(self._clock() - begun)
        outputs: list[Output] = []
        for each in decoded:
            active = self._active[each.uid]
            if active.told_ahead and each.row.fault is None:
                active.told_ahead = False
                continue
            frames = self._frames(active, each, each.finish)
            if isinstance(frames[-1], FINAL_FRAMES):
                # Of a stop string the batches know nothing.
                self._forget(each.uid, left=each.finish is not None)
            outputs.append((active.job, frames))
        return outputs

    def _frames(
        self, active: ActiveJob, each: Decoded | NextToken, finish: str | None
    ) -> Sequence[FromEngine]:
        """What a token is for its request. What fails there is the request's own matter; what the
        model's part fails with is not."""
        if each.row.fault is not None:
            return [row_fault(active.job, each.row.fault)]
        if each.logprobs is not None:
            each.logprobs.wait()
        try:
            return active.frames(each.token, finish, each.logprobs)
        except Exception as error:  # noqa: BLE001
            return [row_fault(active.job, error)]

    # ── prefill ──────────────────────────────────────────────────────────────────────────────────

    def _prompts(self) -> list[slices.Prompt]:
        """Whom a slice may be of, oldest first: those that have begun, and as many of the queue as
        there are places."""
        if not self._prefilling and not self._queue:
            return []
        jobs = [self._active[uid].job for uid in self._prefilling]
        waiting = (job for job in self._queue if job not in self._pausing)
        jobs += islice(waiting, max(0, self._concurrency - len(self._active)))
        jobs.sort(key=lambda job: job.request.now if isinstance(job.request, Generate) else 0.0)
        return [self._prompt(job) for job in jobs]

    def _prompt(self, job: Job) -> slices.Prompt:
        uid = self._uids.get(job)
        if uid is None:
            return slices.Prompt(job, prompt_size(job) - 1, scored=self._serving.scores(job))
        sequences = self._sequences
        return slices.Prompt(
            job,
            sequences.left(uid),
            sequences.done(uid),
            begun=sequences.begun(uid),
            scored=self._active[uid].scores_prompt,
        )

    def _fits(self, prompt: slices.Prompt) -> int | None:
        """Tokens that a slice of a prompt may have."""
        if not self._sequences.decodes:
            return None
        return self._speeds.tokens(self._pace.seconds, prompt.done, scored=prompt.scored)

    def _prefill(self, prompts: Sequence[slices.Prompt]) -> list[Output]:
        """A slice. Who is done with it has a first token."""
        chosen = slices.choose(prompts, self._fits, after_oldest=self._after_oldest)
        self._after_oldest = chosen.of_oldest
        outputs: list[Output] = []
        sizes: dict[int, int] = {}
        for prompt in (each for each in prompts if each.key in chosen.parts):
            try:
                sizes[self._begin(prompt.key)] = chosen.parts[prompt.key]
            except Exception as error:  # noqa: BLE001
                outputs.append((prompt.key, [row_fault(prompt.key, error)]))
        if any(sizes.values()):
            done = max(map(self._sequences.done, sizes))
            scored = any(self._active[uid].scores_prompt for uid in sizes)
            begun = self._clock()
            self._sequences.prefill(sizes)
            seconds = self._clock() - begun
            self._speeds.learn(chosen.padded, done, seconds, scored=scored)
        for uid, size in sizes.items():
            outputs += self._told_of_prompt(uid, size)
        started = [uid for uid in sizes if uid in self._active and not self._sequences.left(uid)]
        return outputs + self._first_tokens(started)

    def _begin(self, job: Job) -> int:
        """The uid of a job that has begun now or before."""
        if job in self._uids:
            return self._uids[job]
        self._dequeue(job)
        new = self._serving.begin(job)
        stops = self._batches.never_stop if new.endless else None
        uid = self._sequences.insert(new.tokens, new.row, new.most, stops=stops)
        self._active[uid], self._uids[job] = new.active, uid
        self._prefilling[uid] = len(new.tokens)
        return uid

    def _told_of_prompt(self, uid: int, size: int) -> list[Output]:
        """What a request is told by a slice of its prompt, of `size` tokens."""
        active, left = self._active[uid], self._sequences.left(uid)
        self._prefilling[uid] = left + 1
        try:
            frames = active.prompt_frames()
        except Exception as error:  # noqa: BLE001
            frames = [row_fault(active.job, error)]
        else:
            if left:
                total = prompt_size(active.job)
                done = total - left - 1
                if done // slices.PREFILL_STEP > (done - size) // slices.PREFILL_STEP:
                    log.info(
                        "request %s: prefilled %d of %d", active.job.request.request_id, done, total
                    )
                frames.append(Progress(done, total))
            elif (end := active.prompt_end()) is not None:
                frames.append(end)
        if frames and isinstance(frames[-1], FINAL_FRAMES):
            self._pausing.discard(active.job)
            self._forget(uid)
        return [(active.job, frames)] if frames else []

    def _first_tokens(self, uids: Sequence[int]) -> list[Output]:
        """The first tokens of sequences whose prompts are done, told before the next decode step.

        A token that might end its sequence is left to that. Those that are to pause do so now.
        """
        if not uids:
            return []
        outputs: list[Output] = []
        jobs = [self._active[uid].job for uid in uids]
        for uid, state in self._sequences.start(uids).items():
            del self._prefilling[uid]
            active = self._active[uid]
            if self._may_end(state):
                continue
            active.told_ahead = True
            frames = self._frames(active, state, None)
            if isinstance(frames[-1], FINAL_FRAMES):
                self._forget(uid)
            outputs.append((active.job, frames))
        for job in jobs:
            if job in self._pausing:
                self._pausing.remove(job)
                if made := self.pause(job):
                    outputs.append((job, made))
        return outputs

    def _may_end(self, state: NextToken) -> bool:
        """Whether the sequence ends with this token."""
        ends = state.token in self._eos and state.stops is not self._batches.never_stop
        return state.left < 1 or ends

    # ── the whole ────────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        if self._active or any(job not in self._pausing for job in self._queue):
            return True
        # Asked before there is a model, too.
        embedder = getattr(self, "_embedder", None)
        return embedder is not None and embedder.busy

    @property
    def prefill(self) -> tuple[int, int]:
        if not self._prefilling:
            return (0, self._queued_tokens)
        begun = sum(prompt_size(self._active[uid].job) for uid in self._prefilling)
        return (begun - sum(self._prefilling.values()), begun + self._queued_tokens)

    def shrink(self) -> None:
        mx.clear_cache()

    def lend(self, size: int) -> None:
        pass

    def recall(self, recall: Recall) -> None:
        self._news.append(Repaid(0, recall.number))

    def limit(self, sequences: int) -> None:
        pass

    def allow_prefill(self, allowed: bool) -> None:
        pass

    def news(self) -> Sequence[LoanFrame]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        self._queue.clear()
        self._queued_tokens = 0
        self._paused.clear()
        self._pausing.clear()
        self._active.clear()
        self._uids.clear()
        self._prefilling.clear()
        for held in ("_sequences", "_batches", "_embedder", "_serving"):
            if hasattr(self, held):
                delattr(self, held)
        gc.collect()
        mx.clear_cache()
