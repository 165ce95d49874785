"""The requests of one model that generate: those that wait, are prefilled, decode or are parked.

Which sequences share a batch is in `worker.engine.groups`, whose prompt goes on and by how much in
`worker.engine.slices`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from supervisor.wire.frames import FromEngine, Generate, Progress, Recall
from worker.engine import admission, slices
from worker.engine.active_job import ActiveJob, row_fault
from worker.engine.embedding import Wanted
from worker.engine.memory import Memory
from worker.engine.mlx_lm_generator import Batches, NextToken, Pending
from worker.engine.prefill_turns import PrefillTurns
from worker.engine.scene import Batch, Member, Scene
from worker.engine.sequences import Decoded, Sequences
from worker.engine.serving import Serving, prompt_size
from worker.engine.thread import FINAL_FRAMES, Job, Output

log = logging.getLogger("bulkhead.worker")


FEW = 256
"""Queued jobs that are considered at once."""
_EMBEDDED = -1
"""What plans know an input of an embedding by that takes a KV cache; the numbers of jobs are not
negative."""


@dataclass(frozen=True, slots=True)
class _Parked:
    """A job outside the batches, with its place in the output."""

    active: ActiveJob
    sequence: Pending


class Generation:
    """Owns the jobs of one model whose requests are `Generate`. All calls on the MLX thread."""

    def __init__(
        self,
        serving: Serving,
        batches: Batches,
        memory: Memory,
        concurrency: int,
        clock: Callable[[], float],
        turns: PrefillTurns,
    ) -> None:
        """At most `concurrency` sequences are prefilled or decode. `clock` measures slices and
        steps, in seconds. `turns` says which prompts wait for other workers'."""
        self._serving, self._batches, self._clock = serving, batches, clock
        self.sequences = Sequences(batches)
        self._memory, self._turns = memory, turns
        self._concurrency = self._places = concurrency
        self._numbers = count()
        self._ages: dict[Job, tuple[float, int]] = {}
        """Of all jobs here; see `Member`."""
        self._decided_steps = 0
        """Decode steps until `admit` has something to decide."""
        self._embedded = Wanted()
        """What embeddings wanted when `admit` decided last."""
        self._made: list[Output] = []
        """What was told when sequences were parked between steps."""
        self._queue: deque[Job] = deque()
        """Accepted, not begun, oldest first."""
        self._queued_tokens = 0
        """Of their prompts."""
        self._active: dict[int, ActiveJob] = {}
        """Those among the sequences, by uid."""
        self._uids: dict[Job, int] = {}
        self._prefilling: dict[int, int] = {}
        """Prompt tokens still to go, of those among the sequences without a first token."""
        self._parked: dict[Job, _Parked] = {}
        """Those that have left the batches for want of memory or a place."""
        self._after_oldest = False
        self._speeds, self._pace = slices.Speeds(), slices.Pace()

    # ── jobs come, are parked and leave ───────────────────────────────────────────────────────────

    def insert(self, job: Job) -> None:
        self._queue.append(job)
        self._queued_tokens += prompt_size(job)
        self._ages[job] = (
            (job.request.now if isinstance(job.request, Generate) else 0.0),
            next(self._numbers),
        )
        self._decided_steps = 0

    def remove(self, job: Job) -> None:
        self._decided_steps = 0
        self._made = [made for made in self._made if made[0] is not job]
        uid = self._uids.get(job)
        if uid is not None:
            self._forget(uid)
        elif job in self._queue:
            self._dequeue(job)
        else:
            self._parked.pop(job, None)
        self._ages.pop(job, None)

    def _set_aside(self, uid: int, *, keep: bool = True) -> Sequence[FromEngine]:
        """Park a sequence, with its cache if `keep`; one that would end with the next step ends
        now. What its request is told by it."""
        if uid in self._prefilling:
            job = self._active[uid].job
            self._parked[job] = _Parked(self._active[uid], self.sequences.park(uid, keep=keep))
            del self._active[uid], self._uids[job], self._prefilling[uid]
            return ()
        state, active = self.sequences.next_token(uid), self._active[uid]
        if self._may_end(state) or state.row.fault is not None:
            frames = self._frames(active, state, self._finish(state))
            self._forget(uid)
            return frames
        frames = ()
        if not active.told_ahead:
            # The batch is a token ahead, and would keep it to itself.
            frames = self._frames(active, state, None)
            if isinstance(frames[-1], FINAL_FRAMES):
                self._forget(uid)
                return frames
        try:
            parked = self.sequences.park(uid, keep=keep)
        except Exception as error:  # noqa: BLE001
            self._forget(uid)
            return [*frames, row_fault(active.job, error)]
        active.told_ahead = False
        del self._active[uid], self._uids[active.job]
        self._parked[active.job] = _Parked(active, parked)
        return frames

    def _resume(self, job: Job) -> None:
        parked = self._parked.pop(job)
        uid = self.sequences.resume(parked.sequence)
        self._active[uid], self._uids[job] = parked.active, uid
        self._prefilling[uid] = 1 + self.sequences.left(uid)

    def _dequeue(self, job: Job) -> None:
        self._queue.remove(job)
        self._queued_tokens -= prompt_size(job)

    def _forget(self, uid: int, *, left: bool = False) -> None:
        """Forget a sequence; `left`: it is no longer among them."""
        if not left:
            self.sequences.remove([uid])
        self._prefilling.pop(uid, None)
        job = self._active.pop(uid).job
        del self._uids[job], self._ages[job]
        self._decided_steps = 0

    # ── who goes on ──────────────────────────────────────────────────────────────────────────────

    def admit(self) -> list[Output]:
        """Let jobs begin, be parked and come back, as memory and places say. What requests are told
        by it. Nothing to do while nobody has come or gone and no batch has to grow."""
        made, self._made = self._made, []
        if self._is_decided:
            return made
        # Of who has left, what remains is to be there before others begin.
        self.sequences.settle()
        scene = self._scene()
        plan = self._memory.plan(scene)
        # What has changed is looked at once more.
        self._decided_steps = 0 if plan.acts else admission.steps(scene)
        made += self._carry_out(plan)
        self._embedded = self._serving.embedder.wanted
        self._memory.settle()
        return made

    @property
    def _is_decided(self) -> bool:
        return self._decided_steps > 0 and self._serving.embedder.wanted == self._embedded

    def _carry_out(self, plan: admission.Plan) -> list[Output]:
        jobs = {number: job for job, (_, number) in self._ages.items()} if plan.acts else {}
        made: list[Output] = []
        for key in plan.park:
            if key == _EMBEDDED:
                self._serving.embedder.drop_long()
            elif told := self._set_aside(self._uids[jobs[key]], keep=key not in plan.drop):
                made.append((jobs[key], told))
        for key in plan.drop:
            if (parked := self._parked.get(jobs[key])) is not None and parked.sequence.cache:
                parked.sequence.drop()
        for key in plan.go:
            if key == _EMBEDDED:
                self._serving.embedder.begin_long()
                continue
            job = jobs[key]
            if job in self._parked:
                self._resume(job)
                continue
            try:
                self._begin(job)
            except Exception as error:  # noqa: BLE001
                del self._ages[job]
                made.append((job, [row_fault(job, error)]))
        return made

    def _scene(self) -> Scene:
        batches = tuple(
            Batch(
                tuple(
                    self._member(self._active[uid].job, length)
                    for uid, length in zip(uids, lengths, strict=True)
                ),
                room,
            )
            for uids, lengths, room in self.sequences.batches()
        )
        prompts = tuple(
            self._member(
                self._active[uid].job, self.sequences.done(uid) + self.sequences.left(uid) + 1
            )
            for uid in self._prefilling
        )
        queued = islice(self._may_begin(), FEW)
        waiting = [self._member(job, prompt_size(job)) for job in queued]
        for job, parked in self._parked.items():
            sequence = parked.sequence
            kept = sum(layer.nbytes for layer in sequence.cache or ())
            waiting.append(self._member(job, sequence.length, kept))
        long, short = self._serving.embedder.wanted
        if long is not None:
            # Of prompts of the same time it is the oldest.
            age = (long.since, _EMBEDDED)
            embedded = Member(_EMBEDDED, long.request, age, long.tokens, apart=True)
            if long.under_way:
                prompts = (*prompts, embedded)
            else:
                waiting.append(embedded)
        return Scene(batches, prompts, tuple(waiting), self._places, short)

    def _may_begin(self) -> Iterator[Job]:
        """Queued jobs that do not wait for their turn to prefill, oldest first."""
        turns = self._turns
        if not turns.gated:
            return iter(self._queue)
        return (job for job in self._queue if turns.may_go_on(prompt_size(job)))

    def _member(self, job: Job, tokens: int, kept: int = 0) -> Member:
        age = self._ages[job]
        request = job.request.request_id.partition("#")[0]  # all choices of one have that in common
        scored = self._serving.scores(job)
        return Member(age[1], request, age, tokens, kept, scored)

    def limit(self, places: int) -> None:
        """At most so many are under way, 0 = as many as at first."""
        self._places = places or self._concurrency
        self._decided_steps = 0

    def allow_prefill(self, allowed: bool) -> None:
        """Whether long prompts have their turn."""
        self._turns.allow(allowed)
        self._decided_steps = 0

    def tokens_left(self) -> Iterator[int]:
        """Of each prompt that would be worked on if it had its turn."""
        yield from map(self.sequences.left, self._prefilling)
        if len(self._active) < self._places:
            yield from map(prompt_size, islice(self._queue, FEW))

    def lent(self) -> None:
        """There is more memory than before."""
        self._decided_steps = 0

    def idle(self) -> None:
        """Nothing has been computed for a while: what serves nobody may go."""
        self._made += self._carry_out(self._memory.plan(self._scene()))
        self._memory.settle()

    def recall(self, recall: Recall) -> None:
        """Free what is asked for, as far as it may be."""
        self._made += self._carry_out(self._memory.to_recall(recall, self._scene()))
        self.sequences.settle()
        self._decided_steps = 0

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def decode(self, *, alone: bool) -> list[Output]:
        """One token of everybody. `alone`: so was the last step, with nothing between."""
        begun = self._clock()
        self._decided_steps -= 1
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
        """Whom a slice may be of, oldest first: those that have begun, and do not wait for their
        turn."""
        if not self._prefilling:
            return []
        left, may_go_on = self.sequences.left, self._turns.may_go_on
        jobs = [self._active[uid].job for uid in self._prefilling if may_go_on(left(uid))]
        jobs.sort(key=self._ages.__getitem__)
        return [self._prompt(job) for job in jobs]

    def _prompt(self, job: Job) -> slices.Prompt:
        uid = self._uids[job]
        sequences = self.sequences
        return slices.Prompt(
            job,
            sequences.left(uid),
            sequences.done(uid),
            begun=sequences.begun(uid),
            scored=self._active[uid].scores_prompt,
        )

    def _fits(self, prompt: slices.Prompt) -> slices.Room:
        """Tokens that a slice which begins with a prompt may have."""
        scored = prompt.scored
        fitting = self._memory.slice(
            prompt.done + min(prompt.left, slices.PREFILL_STEP), scored=scored
        )
        decoding, prompts = self.sequences.decodes, len(self._prefilling)
        least = 0 if decoding else slices.ALONE_TOKENS
        one, several = (
            max(least, self._speeds.tokens(seconds, prompt.done, scored=scored))
            for seconds in (
                self._pace.of_one(prompts, decoding),
                self._pace.of_several(prompts, decoding),
            )
        )
        return slices.Room(min(one, fitting), min(several, fitting))

    @property
    def patience(self) -> float:
        """Seconds that a pass of embeddings may take."""
        return self._pace.of_one(0, self.sequences.decodes)

    def prefill(self, prompts: Sequence[slices.Prompt]) -> list[Output]:
        """A slice of what `prompts` has just said. Who is done with it has a first token."""
        chosen = slices.choose(prompts, self._fits, after_oldest=self._after_oldest)
        self._after_oldest = chosen.of_oldest
        self._decided_steps = 0
        outputs: list[Output] = []
        sizes = {self._uids[job]: size for job, size in chosen.parts.items()}
        if any(sizes.values()):
            done = max(map(self.sequences.done, sizes))
            scored = any(self._active[uid].scores_prompt for uid in sizes)
            after = max(self.sequences.done(uid) + size for uid, size in sizes.items())
            self._memory.watch_prefill(len(sizes), max(sizes.values()), after, scored=scored)
            begun = self._clock()
            self.sequences.prefill(sizes)
            seconds = self._clock() - begun
            self._memory.learn()
            self._speeds.learn(chosen.padded, done, seconds, scored=scored)
        for uid, size in sizes.items():
            outputs += self._told_of_prompt(uid, size)
        started = [uid for uid in sizes if uid in self._active and not self.sequences.left(uid)]
        return outputs + self._first_tokens(started)

    def _begin(self, job: Job) -> None:
        """Have a queued job be prefilled from now on."""
        self._dequeue(job)
        new = self._serving.begin(job)
        stops = self._batches.never_stop if new.endless else None
        uid = self.sequences.insert(new.tokens, new.row, new.most, stops=stops)
        self._active[uid], self._uids[job] = new.active, uid
        self._prefilling[uid] = len(new.tokens)

    def _told_of_prompt(self, uid: int, size: int) -> list[Output]:
        """What a request is told by a slice of its prompt, of `size` tokens."""
        active, left = self._active[uid], self.sequences.left(uid)
        self._prefilling[uid] = left + 1
        try:
            frames = active.prompt_frames()
        except Exception as error:  # noqa: BLE001
            frames = [row_fault(active.job, error)]
        else:
            if left and not active.begun:
                total = prompt_size(active.job)
                done = total - left - 1
                if done // slices.PREFILL_STEP > (done - size) // slices.PREFILL_STEP:
                    log.info(
                        "request %s: prefilled %d of %d", active.job.request.request_id, done, total
                    )
                frames.append(Progress(done, total))
            elif not left and (end := active.prompt_end()) is not None:
                frames.append(end)
        if frames and isinstance(frames[-1], FINAL_FRAMES):
            self._forget(uid)
        return [(active.job, frames)] if frames else []

    def _first_tokens(self, uids: Sequence[int]) -> list[Output]:
        """The first tokens of sequences whose prompts are done, told before the next decode step.

        A token that might end its sequence is left to that. So are all while other prompts wait:
        another slice would come between this step and the next, and the second token late.
        """
        if not uids:
            return []
        outputs: list[Output] = []
        states = self.sequences.start(uids)
        for uid in states:
            del self._prefilling[uid]
            self._active[uid].begun = True
        for uid, state in states.items():
            if self._prefilling or self._may_end(state):
                continue
            active = self._active[uid]
            active.told_ahead = True
            frames = self._frames(active, state, None)
            if isinstance(frames[-1], FINAL_FRAMES):
                self._forget(uid)
            outputs.append((active.job, frames))
        return outputs

    def _may_end(self, state: NextToken) -> bool:
        """Whether the sequence ends with this token."""
        return self._finish(state) is not None

    def _finish(self, state: NextToken) -> str | None:
        if state.token in self._serving.eos and state.stops is not self._batches.never_stop:
            return "stop"
        return "length" if state.left < 1 else None

    # ── the whole ────────────────────────────────────────────────────────────────────────────────

    @property
    def decodes(self) -> bool:
        """Whether anybody does."""
        return self.sequences.decodes > 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute, decide or tell."""
        if self._made or self.decodes:
            return True
        # Behind the gate a prompt that has begun may have to wait for its turn.
        if self.prompts() if self._turns.gated else self._active:
            return True
        return not self._is_decided

    @property
    def progress(self) -> tuple[int, int]:
        """Prompt tokens done and in all, of the requests that have no token yet."""
        if not self._prefilling:
            return (0, self._queued_tokens)
        begun = sum(prompt_size(self._active[uid].job) for uid in self._prefilling)
        # Of those that were parked, what they had generated is to be processed as well.
        done = max(0, begun - sum(self._prefilling.values()))
        return (done, begun + self._queued_tokens)
