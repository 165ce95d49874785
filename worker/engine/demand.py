"""What sequences take in memory, reckoned before it is taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from worker.engine import groups
from worker.engine.kv_cost import LEAST_SLICE, STEP, Corrections, KvCost, StepCost, grown
from worker.engine.scene import Member, Scene

_TOKEN = 4
"""Bytes of a token in the list that mlx-lm keeps of each row's."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What sequences take, in bytes. `chunk`: tokens of the largest prefill step; `freed`: buffers
    that MLX keeps for later steps."""

    cost: KvCost
    step_cost: StepCost
    corrections: Corrections
    chunk: int
    freed: int = 0

    def now(self, scene: Scene) -> int:
        """What those under way may take until some batch has to grow; one that has to grow in the
        next step has."""
        batches = [
            _Shape(len(b.members), b.span, b.room + STEP if b.span[1] >= b.room else b.room)
            for b in scene.batches
        ]
        return self._of(batches, scene.prompts, LEAST_SLICE, 0, scene.pass_tokens)

    def alone(self, member: Member) -> int:
        """What one sequence takes until it has decoded a step, where nobody else is under way."""
        return self._of([], [member], LEAST_SLICE, 1)

    def next(self, scene: Scene, more: Iterable[Member] = ()) -> int:
        """What they and `more` may take until each has gone on for a stretch."""
        batches = [
            _Shape(len(b.members), b.span, b.room + STEP if b.span[1] + STEP > b.room else b.room)
            for b in scene.batches
        ]
        prompts = [*scene.prompts, *more]
        return self._of(batches, prompts, self.chunk, STEP, scene.pass_tokens)

    def _of(
        self,
        batches: list[_Shape],
        prompts: Sequence[Member],
        chunk: int,
        stretch: int = 0,
        pass_tokens: int = 0,
    ) -> int:
        longest = max((member.tokens for member in prompts), default=0)
        held = 0
        for member in prompts:
            room = grown(member.tokens + stretch)
            if member.apart:
                held += self.cost.held(1, room)
                continue
            span = (member.tokens, member.tokens)
            at = groups.join(span, [batch.span for batch in batches])
            own = _Shape(1, span, room)
            if at is None:
                batches.append(own)
            else:
                batches[at] = batches[at].with_(own)
        while pair := groups.merge([batch.span for batch in batches]):
            first, second = pair
            batches[first] = batches[first].with_(batches.pop(second))
        if not batches and not prompts and not pass_tokens:
            return 0
        rows = sum(batch.rows for batch in batches)
        held += self.freed + sum(self.cost.held(batch.rows, batch.room) for batch in batches)
        held += sum(_TOKEN * batch.rows * batch.room for batch in batches)
        held += sum(self._beyond(member.tokens) for member in prompts)
        change = max((self.cost.largest(batch.rows, batch.room) for batch in batches), default=0)
        growth = sum(self.cost.largest(1, grown(member.tokens + stretch)) for member in prompts)
        scored = any(member.scored for member in prompts)
        chunk = max(chunk if prompts else 0, pass_tokens)
        longest = max(longest, pass_tokens)
        return held + self.step(rows, chunk, longest, change, growth, scored=scored)

    def step(
        self,
        rows: int,
        chunk: int,
        context: int,
        change: int,
        growth: int = 0,
        *,
        scored: bool = False,
    ) -> int:
        """What the next step or `change` takes besides: they come one after the other. While a
        prefill step is computed its prompts' arrays may grow, by a copy of a layer: `growth`."""
        tokens = min(chunk, context)
        prefill = int(self.step_cost.prefill(tokens, context) * self.corrections.of("prefill"))
        if scored:
            reckoned = self.step_cost.prefill(tokens, context, scored=True)
            prefill = max(prefill, int(reckoned * self.corrections.of("scored")))
        return max(prefill + growth, change) + self.step_cost.decode(rows)

    def _beyond(self, tokens: int) -> int:
        """What windows hold beyond their size, behind a prompt's largest step."""
        step = min(tokens, self.chunk)
        return self.cost.held(1, tokens, step) - self.cost.held(1, tokens)

    def longest(self, limit: int, own: int) -> int:
        """Tokens, at most `own`, that one sequence can come to have where nobody else is under way
        and all is at most `limit` bytes; 0 = no limit."""

        def fits(tokens: int) -> bool:
            return self.alone(Member(0, "", (0.0, 0), tokens - 1)) <= limit

        if not limit or fits(own):
            return own
        least, most = 0, own  # fits, does not
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least

    def kept(self, tokens: int) -> int:
        """Of one sequence's cache outside a batch."""
        return self.cost.held(1, tokens)


@dataclass(frozen=True, slots=True)
class _Shape:
    rows: int
    span: groups.Span
    room: int

    def with_(self, other: _Shape) -> _Shape:
        span = min(self.span[0], other.span[0]), max(self.span[1], other.span[1])
        return _Shape(self.rows + other.rows, span, max(self.room, other.room))
