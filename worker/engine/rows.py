"""What the sequences of one batch want of their tokens, and how they are decoded together.

What a request wants is a `BatchRow`, which travels through mlx-lm where a sampler would: filtered,
extended and split with the batch. A `BatchPlan` sorts the rows of a batch by what has to be done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from worker.engine.sampling import Parameters, key
from worker.engine.thread import Constraint

NEVER = -1e30
"""A logit that loses against every other but those a grammar forbids: if the end of sequence is all
that a grammar allows, it beats `min_tokens`. Finite after division by any temperature."""
MOST_LOGPROBS = 20
"""Alternatives that can be told with a token."""


@dataclass(slots=True, eq=False)
class BatchRow:
    """What one request wants, and how far it is. Belongs to one insertion into a generator.

    `emitted` are output tokens that are part of this insertion's prompt, because another worker has
    generated them: randomness, penalties and `min_tokens` go on from there. `constraint` must have
    been told of them. `logprobs` is how many alternatives are told, None = no log probabilities.
    `prompt_scores` gathers those of the prompt.
    """

    parameters: Parameters
    _: KW_ONLY
    emitted: InitVar[Sequence[int]] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    constraint: Constraint | None = None
    prompt_scores: Any = None
    position: int = field(init=False)
    """Index in the whole output of the token that the next step samples."""
    steps: int = field(init=False, default=0)
    """Steps so far; the first one's input is the prompt's last token, not an output."""
    fault: Exception | None = field(init=False, default=None)
    """What its grammar or its counting failed with: it decodes on as if free, until whoever owns
    the batch takes it out. The other rows know nothing of it."""
    _counts: Counter[int] | None = field(init=False)

    def __post_init__(self, emitted: Sequence[int]) -> None:
        if self.logprobs is not None:
            self.logprobs = min(self.logprobs, MOST_LOGPROBS)
        self.position = len(emitted)
        self._counts = Counter(emitted) if self.parameters.counts else None

    @property
    def reads(self) -> bool:
        """Whether a step depends on what the tokens are that came before it."""
        wanted = self.parameters
        return self.constraint is not None or wanted.counts or bool(wanted.repetition_context)

    def push(self, token: int) -> None:
        """The step's input; only rows that read need to be told."""
        if self.steps == 0:
            return
        if self.constraint is not None:
            self.constraint.push(token)
        if self._counts is not None:
            self._counts[token] += 1

    def restart(self, token: int) -> None:
        """The row leaves its batch with `token` as the last of the output, and will be inserted
        again with it as its prompt's last token."""
        self.push(token)
        self.steps = 0

    def advance(self) -> None:
        """A step has been queued."""
        self.steps += 1
        self.position += 1

    def penalties(self) -> tuple[list[int], list[float]]:
        """Tokens of the output and what OpenAI's formula subtracts from their logits."""
        presence, frequency = self.parameters.presence_penalty, self.parameters.frequency_penalty
        counts: dict[int, int] = self._counts or {}
        return list(counts), [presence + frequency * count for count in counts.values()]


@dataclass(slots=True)
class GroupLogprobs:
    """The log probabilities of some rows of one step: of the tokens sampled [rows], and of the
    likeliest ones, likeliest first [rows, at most 20]."""

    sampled: mx.array
    ids: mx.array
    values: mx.array
    _read: Any = None

    def read(self) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """The three as lists."""
        if self._read is None:
            self._read = self.sampled.tolist(), self.ids.tolist(), self.values.tolist()
        sampled, ids, values = self._read
        return sampled, ids, values


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's natural log probabilities: of the model's distribution with biases, penalties
    and grammar, before temperature and filters. What a `Response.logprobs` holds for rows that
    asked. Reading them blocks until their step is computed, which that of the token was too."""

    _told: GroupLogprobs
    _index: int
    _count: int

    def wait(self) -> None:
        """Read them."""
        self._told.read()

    @property
    def sampled(self) -> float:
        return self._told.read()[0][self._index]

    @property
    def top(self) -> list[tuple[int, float]]:
        """(id, value) of as many tokens as were asked for, likeliest first; of fewer where biases
        and grammar allow fewer, so that every value is finite."""
        _, ids, values = self._told.read()
        pairs = zip(ids[self._index], values[self._index], strict=True)
        return [(token, value) for token, value in pairs if value > NEVER / 2][: self._count]


@dataclass(slots=True)
class RowGroup:
    """Rows that go through the same filters, and their parameters, [rows, 1] each."""

    indices: list[int]
    rows: list[BatchRow]
    is_all: bool
    places: mx.array = field(init=False)
    asking: list[int] = field(init=False)
    """Which of the group's rows want log probabilities."""
    _columns: dict[str, mx.array] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.places = mx.array(self.indices)
        self.asking = [i for i, row in enumerate(self.rows) if row.logprobs is not None]

    def column(self, name: str) -> mx.array:
        """The rows' values of a parameter."""
        if name not in self._columns:
            values = [getattr(row.parameters, name) for row in self.rows]
            self._columns[name] = mx.array(values, dtype=mx.float32)[:, None]
        return self._columns[name]

    def keys(self, use: int) -> mx.array:
        words = [key(row.parameters.seed, row.position, use) for row in self.rows]
        return mx.array(np.array(words, dtype=np.uint32))


class BatchPlan:
    """How the rows of one composition of the batch are decoded; made when it changes."""

    def __init__(self, rows: Sequence[BatchRow]) -> None:
        self.rows = list(rows)
        self.reads = [i for i, row in enumerate(rows) if row.reads]
        self.constrained = [i for i, row in enumerate(rows) if row.constraint is not None]
        self.biased = [i for i, row in enumerate(rows) if row.parameters.logit_bias]
        self.counting = [i for i, row in enumerate(rows) if row.parameters.counts]
        self.repeating = [i for i, row in enumerate(rows) if row.parameters.repetition_context]
        self.waiting = [i for i, row in enumerate(rows) if row.min_tokens]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_filter_key(row), []).append(i)
        self.groups = [
            RowGroup(indices, [rows[i] for i in indices], len(groups) == 1)
            for indices in groups.values()
        ]
        order = [i for group in self.groups for i in group.indices]
        self.back = mx.array([order.index(i) for i in range(len(order))])
        """Where each row's token is among those of the groups, one after the other."""
        self.bias = pad([zip(*rows[i].parameters.logit_bias, strict=True) for i in self.biased])
        self.is_plain = (
            not (self.biased or self.counting or self.repeating or self.waiting)
            and len(self.groups) == 1
            and not any(_filter_key(rows[0]))
            and not self.groups[0].asking
        )

    def push(self, tokens: Sequence[int]) -> None:
        """The step's input, for those who read."""
        for i in self.reads:
            row = self.rows[i]
            if row.fault is None:
                try:
                    row.push(tokens[i])
                except Exception as error:  # noqa: BLE001
                    row.fault = error

    def bound(self) -> list[int]:
        """The rows whose constraint needs a mask now; others' answers are free at this place."""
        return [i for i in self.constrained if self._binds(self.rows[i])]

    def _binds(self, row: BatchRow) -> bool:
        if row.fault is not None or row.constraint is None:
            return False
        try:
            return row.constraint.binds
        except Exception as error:  # noqa: BLE001
            row.fault = error
            return False


def _filter_key(row: BatchRow) -> tuple[Any, ...]:
    """What must be equal for rows to be filtered together; all false for a greedy plain row."""
    wanted = row.parameters
    return (
        wanted.temperature > 0,
        wanted.top_p < 1,
        wanted.min_p > 0,
        wanted.xtc_probability > 0,
        wanted.top_k,
    )


def pad(rows: Sequence[Any]) -> tuple[mx.array, mx.array]:
    """(ids, numbers) of each row as two arrays. Shorter rows repeat their first pair: writing the
    same value to the same place twice changes nothing."""
    pairs = [tuple(map(list, row)) for row in rows]
    width = max((len(ids) for ids, _ in pairs), default=0)
    all_ids = np.zeros((len(pairs), width), dtype=np.int32)
    all_numbers = np.zeros((len(pairs), width), dtype=np.float32)
    for place, (ids, numbers) in enumerate(pairs):
        if ids:
            all_ids[place] = ids[0]
            all_numbers[place] = numbers[0]
            all_ids[place, : len(ids)] = ids
            all_numbers[place, : len(ids)] = numbers
    return mx.array(all_ids), mx.array(all_numbers)
