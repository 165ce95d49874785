"""Samplers, shared between requests with equal parameters.

`BatchGenerator` samples the whole batch in one call when all rows hold the *same* sampler object,
and row by row otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

Sampler = Callable[[Any], Any]


class Samplers:
    """Gives out one sampler object for each distinct set of parameters, the recent ones kept."""

    def __init__(self) -> None:
        from mlx_lm.sample_utils import make_sampler

        def make(temperature: float, top_p: float) -> Sampler:
            sampler: Sampler = make_sampler(temp=temperature, top_p=top_p)
            return sampler

        self._make = lru_cache(maxsize=64)(make)

    def get(self, temperature: float, top_p: float) -> Sampler:
        """`temperature` 0 = greedy, in which case `top_p` means nothing. `top_p` 0 leaves nothing
        but the likeliest token too; to mlx-lm it would mean no limit."""
        greedy = temperature == 0 or top_p == 0
        return self._make(0.0 if greedy else temperature, 1.0 if greedy else top_p)
