"""The log probabilities of a prompt's own tokens, taken from the prefill itself.

Prefill throws the logits away, and MLX, being lazy, never computes them. Those of a whole step of a
large vocabulary would be gigabytes, so where a batch has a prompt that is scored, its steps go
through the model in parts (`parts`), and of each part a few numbers a token are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from supervisor.wire.frames import PROMPT_SLICE
from worker.engine.kv_cost import LEAST_PART, PART_BYTES
from worker.engine.rows import MOST_LOGPROBS

_eval: Any = mx.eval


class TokenScore(NamedTuple):
    """A prompt's token: its natural log probability, and the likeliest tokens in its place as (id,
    value), likeliest first."""

    token: int
    value: float
    top: Sequence[tuple[int, float]]


class PromptScores:
    """What one prompt's tokens score, as its prefill goes on. Belongs to one insertion into a
    generator, whose prompt is `tokens` and nothing else."""

    def __init__(self, tokens: Sequence[int], count: int, *, vocabulary: int, told: int) -> None:
        """`count` is how many alternatives are wanted, `vocabulary` how many logits the model has.
        The first `told` tokens have been told."""
        self.vocabulary = vocabulary
        self._tokens = tokens
        self._count = min(count, MOST_LOGPROBS)
        self._told = told
        self._read = 0
        """Tokens that have gone through the model."""
        self._new: list[TokenScore] = []
        if not told:
            self._new.append(TokenScore(tokens[0], 0.0, ()))

    @property
    def wanting(self) -> bool:
        """Whether there are tokens without a score."""
        return self._read + 1 < len(self._tokens)

    def restart(self) -> None:
        """The prompt goes through the model from its beginning again: what has a score keeps it."""
        self._read = 0

    def take(self) -> tuple[int, list[TokenScore]]:
        """(number of the first one, the scores that have not been taken yet), in the prompt's
        order. The first token follows nothing: its value means nothing.

        Until all are there, up to a multiple of `PROMPT_SLICE`: the pieces of a stream are the same
        whatever the prompt shares its steps with.
        """
        start, known = self._told, self._told + len(self._new)
        count = known - start - (known % PROMPT_SLICE if self.wanting else 0)
        taken = self._new[: max(0, count)]
        self._told, self._new = start + len(taken), self._new[len(taken) :]
        return start, taken

    def read(self, logits: mx.array) -> None:
        """The prompt's next tokens have gone through the model, with these `logits` [tokens,
        vocabulary]. Blocks until they are computed."""
        first = max(self._read + 1, self._told + len(self._new))
        skipped = first - self._read - 1
        self._read += logits.shape[0]
        targets = self._tokens[first : self._read + 1]
        if targets:
            self._new.extend(
                _scores(logits[skipped : skipped + len(targets)], targets, self._count)
            )


def _scores(logits: mx.array, targets: Sequence[int], count: int) -> list[TokenScore]:
    logits = logits.astype(mx.float32)
    norm = mx.logsumexp(logits, axis=-1, keepdims=True)
    own = (mx.take_along_axis(logits, mx.array(list(targets))[:, None], axis=-1) - norm)[:, 0]
    if count > 1:
        most = min(MOST_LOGPROBS, logits.shape[-1])
        # The same number whatever is wanted, so that ties are settled alike.
        ids = mx.argpartition(-logits, kth=most - 1, axis=-1)[:, :most]
        order = mx.argsort(-mx.take_along_axis(logits, ids, axis=-1), axis=-1)
        ids = mx.take_along_axis(ids, order, axis=-1)[:, :count]
    else:
        ids = mx.argmax(logits, axis=-1, keepdims=True)[:, :count]
    values = mx.take_along_axis(logits, ids, axis=-1) - norm
    _eval(own, ids, values)
    told: list[list[Any]] = [own.tolist(), ids.tolist(), values.tolist()]  # type: ignore[list-item]
    return [
        TokenScore(token, value, list(zip(others, likeliest, strict=True)))
        for token, value, others, likeliest in zip(targets, *told, strict=True)
    ]


def parts(
    tokens: Sequence[Sequence[int]], rows: Sequence[PromptScores | None], most: int
) -> Iterator[list[list[int]]]:
    """The `tokens` of one step of a batch of prompts in parts, of which each row's may be empty.

    A part has `most` tokens of a row at most, and no more than the logits may take. None has a
    single token of a row beside none of another: to mlx-lm's caches with a window that would be a
    decode step, which they refuse where rows are padded.
    """
    total = max(map(len, tokens))
    vocabulary = max(scores.vocabulary for scores in rows if scores is not None)
    fitting = min(most, max(LEAST_PART, PART_BYTES // (4 * len(rows) * vocabulary)))
    size = next((size for size in range(fitting, 1, -1) if size >= total or total % size != 1), 1)
    for start in range(0, total, size):
        yield [list(row[start : start + size]) for row in tokens]


class ScoringModel:
    """Stands in for the model while one part of a step of a batch of prompts is processed.

    `lengths` are the part's tokens of each row; what follows them is padding.
    """

    def __init__(
        self, model: Any, rows: Sequence[PromptScores | None], lengths: Sequence[int]
    ) -> None:
        self._model = model
        self._rows = rows
        self._lengths = lengths

    def __call__(self, tokens: mx.array, **options: Any) -> None:
        """Blocks until the rows that are scored have their scores."""
        logits = self._model(tokens, **options)
        for place, (scores, length) in enumerate(zip(self._rows, self._lengths, strict=True)):
            # One by one: a row's copies are gone before the next one's are made.
            if scores is not None and length:
                scores.read(logits[place, :length])
