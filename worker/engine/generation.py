"""The requests of one model that generate: those that wait, are prefilled, decode or are paused.

Which sequences share a batch is in `worker.engine.groups`, whose prompt goes on and by how much in
`worker.engine.slices`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from supervisor.wire.frames import FromEngine, Generate, Progress
from worker.engine import slices
from worker.engine.active_job import ActiveJob, row_fault
from worker.engine.mlx_lm_generator import Batches, NextToken, Pending
from worker.engine.sequences import Decoded, Sequences
from worker.engine.serving import Serving, prompt_size
from worker.engine.thread import FINAL_FRAMES, Job, Output

log = logging.getLogger("bulkhead.worker")


@dataclass(frozen=True, slots=True)
class _Paused:
    """A job outside the batches, with its place in the output."""

    active: ActiveJob
    sequence: Pending


class Generation:
    """Owns the jobs of one model whose requests are `Generate`. All calls on the MLX thread."""

    def __init__(
        self,
        serving: Serving,
        batches: Batches,
        concurrency: int,
        clock: Callable[[], float],
    ) -> None:
        """At most `concurrency` sequences are prefilled or decode. `clock` measures slices and
        steps, in seconds."""
        self._serving, self._batches, self._clock = serving, batches, clock
        self.sequences = Sequences(batches)
        self._concurrency = concurrency
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
        self._after_oldest = False
        self._speeds, self._pace = slices.Speeds(), slices.Pace()

    # ── jobs come, pause and leave ───────────────────────────────────────────────────────────────

    def insert(self, job: Job) -> None:
        self._queue.append(job)
        self._queued_tokens += prompt_size(job)

    def remove(self, job: Job) -> None:
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
        state, active = self.sequences.next_token(uid), self._active[uid]
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
            parked = self.sequences.park(uid)
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
            uid = self.sequences.resume(paused.sequence)
            self._active[uid], self._uids[job] = paused.active, uid
            self._prefilling[uid] = 1 + self.sequences.left(uid)

    def _dequeue(self, job: Job) -> None:
        self._queue.remove(job)
        self._queued_tokens -= prompt_size(job)

    def _forget(self, uid: int, *, left: bool = False) -> None:
        """Forget a sequence; `left`: it is no longer among them."""
        if not left:
            self.sequences.remove([uid])
        self._prefilling.pop(uid, None)
        del self._uids[self._active.pop(uid).job]

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def decode(self, *, alone: bool) -> list[Output]:
        """One token of everybody. `alone`: so was the last step, with nothing between."""
        begun = self._clock()
        decoded = self.sequences.decode()
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

    def prompts(self) -> list[slices.Prompt]:
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
        sequences = self.sequences
        return slices.Prompt(
            job,
            sequences.left(uid),
            sequences.done(uid),
            begun=sequences.begun(uid),
            scored=self._active[uid].scores_prompt,
        )

    def _fits(self, prompt: slices.Prompt) -> int | None:
        """Tokens that a slice of a prompt may have."""
        if not self.sequences.decodes:
            return None
        return self._speeds.tokens(self._pace.seconds, prompt.done, scored=prompt.scored)

    def prefill(self, prompts: Sequence[slices.Prompt]) -> list[Output]:
        """A slice of what `prompts` has just said. Who is done with it has a first token."""
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
            done = max(map(self.sequences.done, sizes))
            scored = any(self._active[uid].scores_prompt for uid in sizes)
            begun = self._clock()
            self.sequences.prefill(sizes)
            seconds = self._clock() - begun
            self._speeds.learn(chosen.padded, done, seconds, scored=scored)
        for uid, size in sizes.items():
            outputs += self._told_of_prompt(uid, size)
        started = [uid for uid in sizes if uid in self._active and not self.sequences.left(uid)]
        return outputs + self._first_tokens(started)

    def _begin(self, job: Job) -> int:
        """The uid of a job that has begun now or before."""
        if job in self._uids:
            return self._uids[job]
        self._dequeue(job)
        new = self._serving.begin(job)
        stops = self._batches.never_stop if new.endless else None
        uid = self.sequences.insert(new.tokens, new.row, new.most, stops=stops)
        self._active[uid], self._uids[job] = new.active, uid
        self._prefilling[uid] = len(new.tokens)
        return uid

    def _told_of_prompt(self, uid: int, size: int) -> list[Output]:
        """What a request is told by a slice of its prompt, of `size` tokens."""
        active, left = self._active[uid], self.sequences.left(uid)
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
        for uid, state in self.sequences.start(uids).items():
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
        ends = state.token in self._serving.eos and state.stops is not self._batches.never_stop
        return state.left < 1 or ends

    # ── the whole ────────────────────────────────────────────────────────────────────────────────

    @property
    def decodes(self) -> bool:
        """Whether anybody does."""
        return self.sequences.decodes > 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self._active) or any(job not in self._pausing for job in self._queue)

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt tokens done and in all, of the requests that have no token yet."""
        if not self._prefilling:
            return (0, self._queued_tokens)
        begun = sum(prompt_size(self._active[uid].job) for uid in self._prefilling)
        return (begun - sum(self._prefilling.values()), begun + self._queued_tokens)
