"""What a worker may hold beyond its loaded weights, and how long a sequence may become in it. Pure.

A load is charged for what is loaded, what the process grows by, and room for one conversation. All
further KV cache is lent, up to what the budget can spare for the model and to its `kv_budget`.
"""

from __future__ import annotations

from supervisor.models.estimate import Estimate
from supervisor.models.estimate.model import CHARGED_TOKENS, STEP, with_freed
from supervisor.scheduler.model import NextCharge
from supervisor.wire.frames import Allowance


def allowance(found: Estimate, charge: NextCharge, *, kv_budget: int | None) -> Allowance:
    """What the worker is told at its load. `kv_budget` is the configured one, None = "auto"."""
    room = max(0, charge.untouched - found.growth)
    limits = []
    if charge.most is not None:
        limits.append(max(room, charge.most - (charge.size - room)))
    if kv_budget is not None:
        # The cache alone is what is configured: what a step takes comes to it.
        limits.append(kv_budget + found.transient(CHARGED_TOKENS))
    limit = max(1, min(limits)) if limits else 0
    return Allowance(
        room=min(room, limit) if limits else room,
        limit=limit,
        prompt_token=with_freed(found.prompt_token),
        score=with_freed(found.scores),
        row=with_freed(found.logits),
    )


def context(found: Estimate, limit: int, configured: int) -> int:
    """Tokens of the longest sequence: the model's own limit, the `configured` one, and what the
    `limit` of its allowance holds, 0 = no such limit. 0 = none of them is known."""
    known = [tokens for tokens in (configured, found.context) if tokens]
    if limit:
        known.append(max(STEP, found.longest(limit)))
    return min(known, default=0)
