"""The real engine: continuous batching over mlx-lm's batches.

A step is one decode step of everybody, one slice of prefill, or one pass of embeddings, so that a
slice is the most that anybody's next token or a cancel waits for.
"""

from __future__ import annotations

import enum
import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from supervisor.wire.frames import (
    Embed,
    Generate,
    Load,
    LoanFrame,
    Recall,
)
from worker.engine import loading, mlx_lm_compat
from worker.engine.decoding import BatchDecoder
from worker.engine.embedding import Embedder
from worker.engine.generation import Generation
from worker.engine.kv_cost import measure
from worker.engine.load_faults import told_of
from worker.engine.memory import Memory
from worker.engine.mlx_lm_generator import Batches
from worker.engine.native_heap import NativeHeap, native_heap
from worker.engine.prefill_turns import PrefillTurns
from worker.engine.serving import Serving, width
from worker.engine.slices import PREFILL_STEP
from worker.engine.thread import Job, LoadResult, Output, Prepared

log = logging.getLogger("bulkhead.worker")


class _Turn(enum.Enum):
    """What a step does."""

    DECODE = enum.auto()
    PREFILL = enum.auto()
    EMBED = enum.auto()


class BatchEngine:
    """An `Engine` over one mlx-lm model."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        heap: NativeHeap | None = None,
    ) -> None:
        """`clock` measures slices and steps, in seconds. `heap` is this process's unless given."""
        self._clock = clock
        self._heap = heap or native_heap()
        self._import_failure = ""
        """What made mlx-lm's import fail, as `warm_up` met it."""
        self._last = _Turn.PREFILL
        self._last_other = _Turn.EMBED
        """The last one that was no decode step."""

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
        self._heap.bound()
        loaded = loading.load(folder, load.context, progress)
        with told_of(folder):
            self._prepare_to_serve(load, loaded)
        return LoadResult(mx.get_active_memory(), self._memory.context)

    def _prepare_to_serve(self, load: Load, loaded: loading.LoadedModel) -> None:
        """What is made of the loaded model, which may fail for want of something in its files."""
        from worker.grammar.vocabulary import fill_masks

        cost = measure(mlx_lm_compat.lazy_caches(loaded.model))
        self._memory = memory = Memory(
            load.allowance,
            cost,
            rows=load.max_concurrency,
            context=loaded.context,
            chunk=PREFILL_STEP,
            heap=self._heap,
            vocabulary=width(loaded.model),
        )
        self._serving = serving = Serving(loaded, Path(load.path), memory.context, self._heap)
        self._embedder = serving.embedder
        decoder = BatchDecoder(fill_masks, serving.eos)
        batches = Batches(loaded.model, decoder, eos=serving.eos, step=PREFILL_STEP)
        self._turns = turns = PrefillTurns(load.prefill_gate)
        self._generation = Generation(
            serving, batches, memory, load.max_concurrency, self._clock, turns
        )

    def prepare(self, request: Generate | Embed) -> Prepared:
        return self._serving.prepare(request)

    def insert(self, job: Job) -> None:
        self._of(job).insert(job)

    def remove(self, job: Job) -> None:
        self._of(job).remove(job)

    def _of(self, job: Job) -> Generation | Embedder:
        return self._embedder if isinstance(job.request, Embed) else self._generation

    # ── a step ───────────────────────────────────────────────────────────────────────────────────

    def step(self) -> Sequence[Output]:
        outputs = self._generation.admit()
        prompts = self._generation.prompts()
        turn = self._turn(prefills=bool(prompts))
        if turn is None:
            return outputs
        before, self._last = self._last, turn
        if turn is _Turn.DECODE:
            outputs += self._generation.decode(alone=before is _Turn.DECODE)
        elif turn is _Turn.PREFILL:
            outputs += self._generation.prefill(prompts)
        else:
            outputs += self._embedder.step(self._memory, self._generation.patience)
        if turn is not _Turn.DECODE:
            self._last_other = turn
        self._memory.stepped()
        return outputs

    def _turn(self, *, prefills: bool) -> _Turn | None:
        """Every other step is a decode step, while anybody decodes; the rest take turns. None =
        nobody has anything to do."""
        if self._generation.decodes and (
            self._last is not _Turn.DECODE or not (prefills or self._embedder.busy)
        ):
            return _Turn.DECODE
        if prefills and self._embedder.busy:
            other = {_Turn.EMBED: _Turn.PREFILL, _Turn.PREFILL: _Turn.EMBED}
            return other[self._last_other]
        if prefills:
            return _Turn.PREFILL
        return _Turn.EMBED if self._embedder.busy else None

    # ── the whole ────────────────────────────────────────────────────────────────────────────────

    @property
    def busy(self) -> bool:
        # Asked before there is a model, too.
        if not hasattr(self, "_generation"):
            return False
        return self._generation.busy or self._embedder.busy

    @property
    def prefill(self) -> tuple[int, int]:
        return self._generation.progress if hasattr(self, "_generation") else (0, 0)

    def shrink(self) -> None:
        mx.clear_cache()
        self._heap.trim()

    def lend(self, size: int) -> None:
        self._memory.lend(size)
        self._generation.lent()

    def recall(self, recall: Recall) -> None:
        self._generation.recall(recall)
        self._memory.answer(recall)

    def limit(self, sequences: int) -> None:
        self._generation.limit(sequences)

    def allow_prefill(self, allowed: bool) -> None:
        self._generation.allow_prefill(allowed)

    def news(self) -> Sequence[LoanFrame]:
        if not hasattr(self, "_memory"):
            return ()
        return [*self._memory.news(), *self._turns.news(self._generation.tokens_left())]

    @property
    def due(self) -> float | None:
        return self._memory.due if hasattr(self, "_memory") else None

    def tidy(self) -> None:
        self._generation.idle()

    def close(self) -> None:
        for held in ("_generation", "_embedder", "_serving", "_memory"):
            if hasattr(self, held):
                delattr(self, held)
        gc.collect()
        mx.clear_cache()
