"""What each model needs in memory: from its files, and from what its last loads took."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from supervisor.models.about import about
from supervisor.models.allowance import allowance, context
from supervisor.models.catalog import Catalog, Fingerprint
from supervisor.models.estimate import Estimate, EstimateError, estimate
from supervisor.models.estimate.model import STEP
from supervisor.models.size_cache import MeasuredLoad, SizeCache, key
from supervisor.models.sources import Place, SourceError
from supervisor.scheduler.model import LearnedLimit, NextCharge
from supervisor.wire.about import About
from supervisor.wire.frames import Allowance
from supervisor.wire.text import reason

log = logging.getLogger("bulkhead.supervisor")

_LONG_TOKENS = 32768
"""A context, where neither the files nor the configuration say how long it is."""
_WORDS = 120
"""Characters of mlx-lm's own words beside ours: a list of parameters may be long."""
_OF_WEIGHTS = re.compile(r"[Mm]issing|KeyError|\[load|\[read|safetensors")
"""mlx-lm's and MLX's words for weights that are not there or broken."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the disk had of a model when it was looked at."""

    stamp: Fingerprint
    fingerprint: Fingerprint = ()
    """Of the files that are to be loaded."""
    place: Place | None = None
    problem: str = ""
    """Why there is no place, or why its size is unknown."""
    need: Need = field(default_factory=lambda: Need())
    found: Estimate | None = None
    """What its files say of its memory; None = nothing."""
    about: About = field(default_factory=About)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. `headroom` is the part of `estimate` that a load does not touch yet: what the process
    grows by, and room for one conversation."""

    estimate: int = 0
    headroom: int = 0


class Sizing:
    """What is known of models' files, which are read anew when they change; keeps what loads took
    in `cache`, which has the use counts as well.

    `look` and `need` block on the disk. The others never do, but for the first of a model that was
    not looked at yet. One thread at a time calls `look` for a model; all else belongs to one.

    `budget` is that of all models, bytes, None = unlimited.
    """

    def __init__(self, catalog: Catalog, cache: SizeCache, budget: int | None) -> None:
        self.budget = budget
        self._catalog = catalog
        self.cache = cache
        self._known: dict[str, Look] = {}

    def look(self, name: str) -> Look | None:
        """What the disk has; None where it is what is known. On any thread."""
        known = self._known.get(name)
        before = None if known is None else known.place
        # Before anything is read: what changes meanwhile is seen by the next look.
        stamp = self._stamp(name, before)
        if known is not None and known.stamp == stamp:
            return None
        place, problem = self._find(name)
        if _folder(place) != _folder(before):  # whose files the stamp is to tell of
            stamp = self._stamp(name, place)
            place, problem = self._find(name)
        return self._read(name, stamp, place, problem)

    def take(self, name: str, look: Look) -> Need:
        """From now on this is known."""
        before = self._known.get(name)
        self._known[name] = look
        if look.problem and (before is None or before.problem != look.problem):
            log.warning("the size of model %s is unknown: %s", name, look.problem)
        note = look.place.note if look.place is not None else ""
        if self._catalog.tells_of(name):
            note = ""  # which was said at start
        if note and (before is None or before.place is None or before.place.note != note):
            log.warning("model %s: %s", name, note)
        return look.need

    def need(self, name: str) -> Need:
        """What the model needs; nothing is known of files that are missing or broken, which the
        load will say in its own words."""
        look = self.look(name)
        return self._known[name].need if look is None else self.take(name, look)

    def allowance(self, name: str, charge: NextCharge) -> Allowance:
        """What a worker may hold whose load is charged so much; without any limit where nothing is
        known of its files."""
        found = self._last(name).found
        if found is None:
            return Allowance(charge.untouched)
        return allowance(found, charge, kv_budget=self._catalog.models[name].kv_budget_bytes)

    def least_kv(self, name: str) -> int:
        """Bytes of KV cache without which the model serves nobody: 256 tokens, which are allocated
        at once. 0 = unknown."""
        found = self._last(name).found
        return 0 if found is None else found.kv(STEP)

    def context(self, name: str, charge: NextCharge) -> int:
        """Tokens that a sequence may have in such a worker, as far as files, configuration and
        budget tell; 0 = unknown. The worker itself will know better."""
        found, configured = self._last(name).found, self._catalog.models[name].context
        if found is None:
            return configured
        return context(found, self.allowance(name, charge).limit, configured)

    def folder(self, name: str) -> Path:
        """Where the last look found the model. Raises SourceError with what it found instead."""
        known = self._last(name)
        if known.place is None:
            raise SourceError(known.problem)
        return known.place.folder

    def seems_whole(self, name: str) -> bool:
        """Whether the last look at the model's files found nothing that keeps it from loading."""
        return not self._last(name).problem

    def explained(self, name: str, reason: str) -> str:
        """Why a load failed, by the worker, with what the files seem to lack."""
        known = self._known.get(name)
        doubt = known.place.doubt or known.problem if known is not None and known.place else ""
        if doubt and doubt not in reason and _OF_WEIGHTS.search(reason):
            return f"{doubt} (mlx-lm: {reason[:_WORDS]})"
        return reason

    def passed_over(self) -> list[dict[str, object]]:
        """What the Hugging Face cache has and is not served, or not in its newest form: `source`,
        `reason`, and `mlx`, whether one would expect it to be served."""
        told: list[dict[str, object]] = [
            {"source": each.source, "reason": each.reason, "mlx": each.is_mlx}
            for each in self._catalog.passed_over
        ]
        for name, look in self._known.items():
            source = self._catalog.models[name].source
            if look.place is not None and look.place.note and not self._catalog.tells_of(name):
                told.append({"source": source, "reason": look.place.note, "mlx": True})
        return told

    def measured_load(self, name: str) -> MeasuredLoad | None:
        """The last load of these very files, of this run or an earlier one."""
        return self.cache.get(self._key(name)) or self.cache.get(self._former_key(name))

    def save_load(self, name: str, memory_bytes: int, load_seconds: float) -> None:
        """A load took so much. Never raises."""
        known = self.measured_load(name)
        excess = 0 if known is None else known.excess_bytes
        measurement = MeasuredLoad(name, memory_bytes, load_seconds, time.time(), excess)
        self.cache.remember(self._key(name), measurement)

    def save_excess(self, name: str, size: int) -> None:
        """Its workers outgrow their charges by so many bytes. Never raises."""
        known = self.measured_load(name)
        if known is not None:  # else it was never loaded, as far as anybody remembers
            self.cache.remember(self._key(name), replace(known, excess_bytes=size, at=time.time()))

    def about(self) -> dict[str, About]:
        """What the last look at each model's files told of it."""
        return {name: look.about for name, look in self._known.items()}

    def learned_limit(self, name: str, offset: float) -> LearnedLimit | None:
        """What was learned of the model's limits, in this run or an earlier one. `offset` is what
        the clock of epoch seconds is ahead of the caller's."""
        known = self.cache.learned_limit(name)
        return None if known is None else LearnedLimit(known.concurrency, known.since - offset)

    def save_limit(self, name: str, limit: LearnedLimit | None, offset: float) -> None:
        """It was learned; None = nothing limits it any more. Never raises."""
        at = None if limit is None else LearnedLimit(limit.concurrency, limit.since + offset)
        self.cache.save_limit(name, at)

    def _last(self, name: str) -> Look:
        if name not in self._known:
            self.need(name)
        return self._known[name]

    def _key(self, name: str) -> str:
        """The environment may have MLX allocate otherwise. What is lent after a load is none of it:
        neither the context nor how many requests may run."""
        env = self._catalog.models[name].env
        return key(self._last(name).fingerprint, {"env": env} if env else {})

    def _former_key(self, name: str) -> str:
        """That of earlier versions, whose measurements are as good."""
        model = self._catalog.models[name]
        return key(self._last(name).fingerprint, {"context": model.context})

    def _stamp(self, name: str, place: Place | None) -> Fingerprint:
        return self._catalog.stamp(name, _folder(place))

    def _find(self, name: str) -> tuple[Place | None, str]:
        """The place, or why there is none."""
        try:
            return self._catalog.find(name), ""
        except SourceError as error:
            return None, str(error)

    def _read(self, name: str, stamp: Fingerprint, place: Place | None, problem: str) -> Look:
        fingerprint: Fingerprint = ()
        need, found = Need(), None
        if place is not None:
            try:
                fingerprint = self._catalog.fingerprint(place.folder)
                found = estimate(place.folder)
                need = self._need(name, found)
            except EstimateError as error:
                problem = str(error)
            except OSError as error:
                problem = f"{place.folder} cannot be read: {reason(error)}"
        weights = 0 if found is None else found.weights
        known = About() if place is None else about(place.folder, fingerprint, weights)
        return Look(stamp, fingerprint or (problem,), place, problem, need, found, known)

    def _need(self, name: str, found: Estimate) -> Need:
        headroom = found.growth + found.room(
            self._catalog.models[name].context or found.context or _LONG_TOKENS
        )
        return Need(found.loaded + headroom, headroom)


def _folder(place: Place | None) -> Path | None:
    return None if place is None else place.folder
