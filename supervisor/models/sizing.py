"""What each model needs in memory: from its files, and from what its last loads took."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from supervisor.models.catalog import Catalog, Fingerprint
from supervisor.models.estimate import EstimateError, estimate
from supervisor.models.size_cache import MeasuredLoad, SizeCache, key
from supervisor.models.sources import SourceError
from supervisor.scheduler.model import LearnedLimit

log = logging.getLogger("bulkhead.supervisor")

_TYPICAL_TOKENS = 2048
"""Of each sequence, when as many decode as may: what a charge has room for."""
_LONG_TOKENS = 32768
"""Of one sequence alone."""
_BUDGET_SHARE = 0.9
"""What room for requests may fill the budget to. The rest is for a load that turns out larger than
its files say: without it such a model could never be loaded again."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. `headroom` is the part of `estimate` that a load does not touch yet. `context` is in
    tokens, 0 = the files do not say."""

    estimate: int = 0
    headroom: int = 0
    context: int = 0


class Sizing:
    """Reads models' files, anew when they change; keeps what loads took in `cache`, which has the
    use counts as well. Blocks on files.

    `budget` is that of all models, bytes, None = unlimited. A model gets room for as many requests
    as may run at once, but on a machine that is too small for that only what the budget leaves:
    it then serves fewer at once, which is better than none.
    """

    def __init__(self, catalog: Catalog, cache: SizeCache, budget: int | None) -> None:
        self.budget = budget
        self._catalog = catalog
        self.cache = cache
        self._seen: dict[str, tuple[Fingerprint, Need]] = {}

    def need(self, name: str) -> Need:
        """What the model needs; nothing is known of files that are missing or broken, which the
        load will say in its own words."""
        fingerprint = self._catalog.fingerprint(name)
        seen = self._seen.get(name)
        if seen is None or seen[0] != fingerprint:
            seen = self._seen[name] = (fingerprint, self._read(name))
        return seen[1]

    def context(self, name: str) -> int:
        """Tokens that the model takes, by what `need` last read; 0 = not known."""
        seen = self._seen.get(name)
        return 0 if seen is None else seen[1].context

    def has_changed(self, name: str) -> bool:
        """Whether the files are others than when `need` last looked."""
        seen = self._seen.get(name)
        return seen is None or seen[0] != self._catalog.fingerprint(name)

    def measured_load(self, name: str) -> MeasuredLoad | None:
        """The last load of these very files, of this run or an earlier one."""
        return self.cache.get(self._key(name))

    def save_load(self, name: str, memory_bytes: int, load_seconds: float) -> None:
        """A load took so much. Never raises."""
        measurement = MeasuredLoad(name, memory_bytes, load_seconds, time.time())
        self.cache.remember(self._key(name), measurement)

    def learned_limit(self, name: str, offset: float) -> LearnedLimit | None:
        """What was learned of the model's limits, in this run or an earlier one. `offset` is what
        the clock of epoch seconds is ahead of the caller's."""
        known = self.cache.learned_limit(name)
        return None if known is None else LearnedLimit(known.concurrency, known.since - offset)

    def save_limit(self, name: str, limit: LearnedLimit | None, offset: float) -> None:
        """It was learned; None = nothing limits it any more. Never raises."""
        at = None if limit is None else LearnedLimit(limit.concurrency, limit.since + offset)
        self.cache.save_limit(name, at)

    def _key(self, name: str) -> str:
        model = self._catalog.models[name]
        return key(self._catalog.fingerprint(name), {"context": model.context})

    def _read(self, name: str) -> Need:
        try:
            found = estimate(self._catalog.locate(name))
        except (SourceError, EstimateError) as error:
            log.warning("the size of model %s is unknown: %s", name, error)
            return Need()
        known = self._catalog.models[name].context or found.context
        context = known or _LONG_TOKENS
        typical = min(context, _TYPICAL_TOKENS)
        total = max(
            found.total(typical, self._catalog.concurrency(name)),
            found.total(min(context, _LONG_TOKENS), 1),
        )
        if self.budget is not None:
            least = found.total(typical, 1)
            total = max(least, min(total, int(self.budget * _BUDGET_SHARE)))
        return Need(total, total - found.loaded, known)
