"""What one engine holds, beside what it may: plans are made of what MLX says and carried out.

`worker.engine.admission` decides and `worker.engine.loan` keeps the account; this measures, frees,
and tells the supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from supervisor.wire.frames import Allowance, LoanFrame, Recall
from worker.engine import admission
from worker.engine.admission import Plan
from worker.engine.demand import Demand
from worker.engine.kv_cost import LEAST_SLICE, STEP, Corrections, KvCost, StepCost
from worker.engine.loan import Loan, Usage
from worker.engine.native_heap import NativeHeap
from worker.engine.scene import Scene

UNBOUNDED = Allowance(room=2**60)
"""For an engine that is told of no allowance."""
UNKNOWN = 4.0
"""How much more than reckoned the first prefill step may take, which is as small as that wants."""
SAFE = 2.2
"""And how much more any: what one behind few tokens took does not tell all of one behind many."""
_FREED_MOST = 64 * 2**20
_FREED_LEAST = 2**20
_FREED_SHARE = 16
"""Freed buffers that MLX keeps for its next steps: this part of the room, within these bounds."""


class _Watched(NamedTuple):
    """A prefill step under way. In bytes: what it is reckoned to take besides caches, what MLX held
    before it, by how much the caches grow if they do, and the copy of a layer that this takes."""

    kind: str
    """Of those that `Corrections` knows."""
    reckoned: int
    before: int
    growth: int
    copy: int


class Memory:
    """The account of one loaded model. All calls on the MLX thread."""

    def __init__(
        self,
        allowance: Allowance,
        cost: KvCost,
        *,
        rows: int,
        context: int,
        chunk: int,
        heap: NativeHeap,
        vocabulary: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What MLX holds by now is no part of the allowance. At most `rows` sequences of `context`
        tokens each; `chunk` tokens of a prompt go through the model at once, which has `vocabulary`
        logits."""
        if not allowance.room and not allowance.limit:
            allowance = UNBOUNDED
        self._heap, self._clock = heap, clock
        self._corrections = Corrections()
        freed = max(_FREED_LEAST, min(_FREED_MOST, allowance.room // _FREED_SHARE))
        self.demand = Demand(
            cost,
            StepCost(allowance.prompt_token, allowance.score, allowance.row, 4 * vocabulary),
            self._corrections,
            chunk,
            freed,
        )
        self.context = self.demand.longest(allowance.limit, context)
        """Tokens that one sequence can have here, at most the model's own."""
        ever = rows * cost.held(1, context)
        self._loan = Loan(allowance.room, allowance.limit, ever)
        self._usage = Usage()
        self._news: list[LoanFrame] = []
        self._bounded = allowance is not UNBOUNDED
        if self._bounded:
            mx.set_cache_limit(freed)
        mx.clear_cache()
        self._base = mx.get_active_memory()
        self._watched: _Watched | None = None

    # ── plans ────────────────────────────────────────────────────────────────────────────────────

    def plan(self, scene: Scene) -> Plan:
        """What to do so that `scene` keeps within what may be held."""
        made = admission.plan(scene, self.demand, self._loan.budget, final=self._loan.final)
        self._usage = made.usage
        return made

    def settle(self) -> None:
        """A plan has been carried out: give back what has been idle for long, and say what is
        needed."""
        if not self._bounded:
            return
        if size := self._loan.surplus(self._usage, self._clock()):
            self._free()
            size = min(size, self._loan.budget - self.held)
            if size > 0:
                self._news.append(self._loan.repay(size))
        if told := self._loan.needs(self._usage):
            self._news.append(told)

    @property
    def due(self) -> float | None:
        """Seconds until `settle` may have something to give back; None = it has not."""
        return self._loan.due(self._clock()) if self._bounded else None

    @property
    def held(self) -> int:
        """Bytes that are held now or may be before the next plan."""
        now = mx.get_active_memory() + mx.get_cache_memory() - self._base
        return max(self._usage.held, now)

    def stepped(self) -> None:
        """A step is over: bound what MLX keeps of it. On the CPU it heeds no limit of its own but
        32 MB."""
        if mx.get_cache_memory() > self.demand.freed and self._bounded:
            mx.clear_cache()

    def slice(self, context: int, *, scored: bool = False) -> int:
        """Tokens, of all prompts together, that a prefill step may have which ends with `context`
        tokens behind the longest."""
        demand = self.demand
        kind = "scored" if scored else "prefill"
        least = demand.step_cost.prefill(LEAST_SLICE, context, scored=scored)
        spare = self._loan.budget - self._usage.held + least
        factor = max(SAFE, self._corrections.of(kind, UNKNOWN))
        return demand.step_cost.slice_within(int(spare / factor), context, scored=scored)

    # ── what the supervisor says ─────────────────────────────────────────────────────────────────

    def lend(self, size: int) -> None:
        if over := self._loan.lend(size):
            self._news.append(self._loan.repay(over))

    def to_recall(self, recall: Recall, scene: Scene) -> Plan:
        """What to do so that the recalled bytes are free, as far as they can be."""
        wanted = max(0, min(recall.bytes, self._loan.lent))
        budget = self._loan.budget - wanted
        made = admission.free(scene, self.demand, budget, park=recall.park)
        self._usage = made.usage
        return made

    def answer(self, recall: Recall) -> None:
        """That plan has been carried out: give back what is free."""
        self._free()
        size = min(recall.bytes, self._loan.budget - self.held)
        self._news.append(self._loan.repay(size, recall.number))
        # Now: where nobody is under way there may be no other plan for long.
        if self._bounded and (told := self._loan.needs(self._usage)):
            self._news.append(told)

    def _free(self) -> None:
        mx.clear_cache()
        self._heap.trim()

    def news(self) -> Sequence[LoanFrame]:
        news, self._news = self._news, []
        return news

    # ── learning ─────────────────────────────────────────────────────────────────────────────────

    def watch_prefill(self, rows: int, tokens: int, context: int, *, scored: bool = False) -> None:
        """A prefill step begins, of so many tokens of each of so many prompts, the longest of which
        has `context` tokens behind it."""
        if self._bounded and rows * tokens >= LEAST_SLICE:
            reckoned = self.demand.step_cost.prefill(rows * tokens, context, scored=scored)
            cost = self.demand.cost
            mx.reset_peak_memory()
            self._watched = _Watched(
                "scored" if scored else "prefill",
                reckoned,
                before=mx.get_active_memory(),
                growth=cost.held(rows, context) - cost.held(rows, max(0, context - STEP)),
                copy=cost.largest(rows, context - tokens),
            )

    def learn(self) -> None:
        """It is over: where it took more than was known, that is known from now on."""
        if (watched := self._watched) is None:
            return
        self._watched = None
        now = mx.get_active_memory()
        besides = mx.get_peak_memory() - max(watched.before, now)
        if 0 < watched.growth <= 2 * (now - watched.before):
            besides -= watched.copy
        self._corrections.observe(watched.kind, watched.reckoned, besides)
