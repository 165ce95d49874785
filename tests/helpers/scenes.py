"""Scenes for those who reckon and decide what sequences may hold."""

from __future__ import annotations

from worker.engine.demand import Demand
from worker.engine.kv_cost import Corrections, KvCost, Part, StepCost, grown
from worker.engine.scene import Batch, Member

TOKEN = 1000
"""Bytes of KV of a token, in all layers."""
COST = KvCost(tuple((Part(TOKEN // 4),) for _ in range(4)))
FREE = Demand(COST, StepCost(), Corrections(), 512)
"""Steps that take nothing."""


def member(
    key: int, tokens: int = 1000, *, request: str = "", kept: int = 0, apart: bool = False
) -> Member:
    """The greater the key, the younger."""
    return Member(key, request or f"r{key}", (float(key), key), tokens, kept, apart=apart)


def decoding(*members: Member, room: int = 0) -> Batch:
    return Batch(members, room or grown(max(each.tokens for each in members)))
