"""Samplers, shared between requests with equal parameters.

`BatchGenerator` samples the whole batch in one call when all rows hold the *same* sampler object,
and row by row otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx

Sampler = Callable[[Any], Any]


_COLDEST = 1e-4
"""Below it sampling is greedy in all but rounding, and its inverse would overflow."""


class Samplers:
    """Gives out one sampler object for each distinct set of parameters, the recent ones kept."""

    def __init__(self) -> None:
        from mlx_lm.sample_utils import make_sampler

        def make(temperature: float, top_p: float) -> Sampler:
            # mlx-lm compiles its sampling, and a plain number would be part of what is compiled,
            # anew for each value.
            make_any: Any = make_sampler
            sampler: Sampler = make_any(
                temp=mx.array(temperature) if temperature else 0.0,
                top_p=mx.array(top_p) if top_p < 1 else 1.0,
            )
            return sampler

        self._make = lru_cache(maxsize=64)(make)

    def get(self, temperature: float, top_p: float) -> Sampler:
        """`temperature` 0 = greedy, in which case `top_p` means nothing. `top_p` 0 leaves nothing
        but the likeliest token too; to mlx-lm it would mean no limit."""
        greedy = temperature < _COLDEST or top_p == 0
        return self._make(0.0 if greedy else temperature, 1.0 if greedy else top_p)
