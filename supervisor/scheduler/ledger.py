"""The RAM ledger: what every incarnation is charged, from before its spawn to its memory's return.

Nothing here reads memory: figures come in as bytes, times as monotonic seconds. One invariant: a
charge is only taken when Σ charges + its own ≤ budget. A measurement may break the budget, because
the memory is in use by then whatever the ledger says; the pool must then make up for it.

After an exit the kernel may still hold the memory. Where the platform tells at the reap (Linux)
the charge is released at once. Where it does not (macOS) the charge follows the wired memory that
no living process accounts for, less what there was in quiet times; what has not come back after
`STRANDED_SECONDS` stays charged as stranded, until it is seen to be back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

Key = tuple[str, int]
"""(model, generation): one incarnation."""

STRANDED_SECONDS = 10.0
"""After its exit, an incarnation's memory that is not back holds up its model no longer."""
_BACK_BYTES = 256 * 10**6
_BACK_SHARE = 0.02
"""A rest of this share of the footprint, or of `_BACK_BYTES`, is measurement noise."""
_OS_RESERVE_SHARE = 0.10
_OS_RESERVE_MIN = 4 * 10**9
"""What stays with the system and other programs where the GPU's working set is known."""
_LINUX_SHARE = 0.75


def auto_budget(physical: int, working_set: int | None) -> int:
    """What `memory.budget = "auto"` means, bytes, on a machine with `physical` bytes of RAM.

    With a recommended GPU working set (macOS) the smaller of it and RAM less a reserve, which is
    at most half of a small machine; without one (Linux) three quarters of RAM.
    """
    if working_set is None:
        return int(physical * _LINUX_SHARE)
    reserve = max(_OS_RESERVE_MIN, int(physical * _OS_RESERVE_SHARE))
    return min(working_set, physical - min(reserve, physical // 2))


class Phase(enum.StrEnum):
    ESTIMATED = "estimated"
    """Charged before the spawn, by an estimate or a learned size."""
    MEASURED = "measured"
    RELEASING = "releasing"
    """The process is gone, its memory is not yet seen to be back."""
    STRANDED = "stranded"
    """Not back in time: charged on, but nobody waits for it any more."""


class Reserved(enum.Enum):
    """What has a part of the budget and is no model."""

    GATEWAY = enum.auto()
    SPARE = enum.auto()


@dataclass(slots=True)
class Charge:
    """What one incarnation is charged, in bytes."""

    bytes: int
    """All of it: what was charged for the load, and `lent`."""
    phase: Phase = Phase.ESTIMATED
    lent: int = 0
    """The part that was lent after the load, and can be given back."""
    footprint: int | None = None
    """The last one seen of the living process, bytes: its memory can't leave more behind."""
    allowed: int = 0
    """The most that it was charged while that was read."""
    highest: int = 0
    """The most that it has been charged since: a reading under way may be of any moment."""
    gone_at: float = 0.0
    """When the process was reaped, monotonic seconds."""

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended and its memory alone is waited for."""
        return self.phase in (Phase.RELEASING, Phase.STRANDED)


class OverBudget(Exception):
    """A charge was asked for that does not fit: a bug in whoever plans."""


class Ledger:
    """All charges against one budget in bytes; None = unlimited."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        """The part for models, bytes."""
        self.reservations: dict[Reserved, int] = {}
        """The parts for what is no model, bytes; `budget` leaves them out."""
        self.charges: dict[Key, Charge] = {}
        self.charged = 0
        """Σ charges, bytes."""

    def reserve(self, what: Reserved, size: int) -> None:
        """Keep `size` bytes of the budget for what is no model, before anything is charged."""
        self.reservations[what] = size
        if self.budget is not None:
            self.budget -= size

    @property
    def reserved(self) -> int:
        """Σ reservations, bytes."""
        return sum(self.reservations.values())

    @property
    def free(self) -> float:
        """Bytes that may still be charged; negative after a measurement that broke the budget."""
        return float("inf") if self.budget is None else self.budget - self.charged

    def awaits_memory(self) -> bool:
        """Whether a process has ended and its memory is not yet seen to be back."""
        return any(charge.is_gone for charge in self.charges.values())

    @property
    def stranded(self) -> int:
        """Bytes that dead processes still hold."""
        return sum(c.bytes for c in self.charges.values() if c.phase is Phase.STRANDED)

    def can_ever_fit(self, size: int) -> bool:
        """Whether `size` bytes fit when nothing else is charged."""
        return self.budget is None or size <= self.budget

    def fits(self, size: int) -> bool:
        """Whether `size` bytes more may be charged now."""
        return size <= self.free

    def of(self, key: Key) -> int:
        """What this incarnation is charged, 0 when nothing."""
        charge = self.charges.get(key)
        return 0 if charge is None else charge.bytes

    def charge(self, key: Key, size: int) -> None:
        """Charge `size` bytes, before the spawn. Raises OverBudget when they do not fit."""
        if key in self.charges:
            raise OverBudget(f"{key} is charged already")
        if not self.fits(size):
            raise OverBudget(f"{size} bytes for {key}: {self.charged} of {self.budget} are charged")
        self.charges[key] = Charge(size, highest=size)
        self.charged += size

    def measure(self, key: Key, size: int) -> None:
        """The load is over: `size` bytes replace the estimate. `free` may become negative."""
        charge = self.charges[key]
        charge.phase = Phase.MEASURED
        self._set(charge, size)

    def lent(self, key: Key) -> int:
        """What this incarnation has been lent and not given back."""
        charge = self.charges.get(key)
        return 0 if charge is None else charge.lent

    def lend(self, key: Key, size: int) -> None:
        """Charge a living incarnation `size` bytes more. Raises OverBudget when they do not fit."""
        charge = self.charges[key]
        if charge.is_gone or not self.fits(size):
            raise OverBudget(f"{size} more for {key}: {self.charged} of {self.budget} are charged")
        charge.lent += size
        self._set(charge, charge.bytes + size)

    def repay(self, key: Key, size: int) -> None:
        """A living incarnation holds `size` bytes of its loan no longer, as far as they had been
        lent: a worker is not trusted to count."""
        charge = self.charges[key]
        back = 0 if charge.is_gone else max(0, min(size, charge.lent))
        charge.lent -= back
        self._set(charge, charge.bytes - back)

    def footprint(self, key: Key, size: int) -> None:
        """The living process was seen to hold `size` bytes, at a moment since the last such call.
        Changes no charge."""
        charge = self.charges.get(key)
        if charge is not None and not charge.is_gone:
            charge.footprint, charge.allowed = size, charge.highest
            charge.highest = charge.bytes

    def release(self, key: Key) -> None:
        """The memory is back."""
        self.charged -= self.charges.pop(key).bytes

    def exited(self, key: Key, now: float) -> None:
        """The process is gone; its charge stays until `observe` sees the memory back."""
        charge = self.charges[key]
        charge.phase, charge.gone_at = Phase.RELEASING, now

    def observe(self, unattributed: int, now: float) -> list[Key]:
        """A reading: bytes wired by no living process, above the quiet baseline.

        Returns the incarnations that are waited for no longer: their memory is back, or stranded.
        A charge only falls, since a dead process takes no memory: a reading that rises again is
        somebody else's. The earliest spawned accounts for the rest first, so that Σ over the dead
        is never above what was read.
        """
        left = max(0, unattributed)
        over = []
        gone = [(charge.gone_at, key) for key, charge in self.charges.items() if charge.is_gone]
        for gone_at, key in gone:
            charge = self.charges[key]
            whole = charge.bytes if charge.footprint is None else charge.footprint
            self._set(charge, min(charge.bytes, whole, left))
            left -= charge.bytes
            if charge.bytes <= max(_BACK_BYTES, _BACK_SHARE * whole):
                self.release(key)
                over.append(key)
            elif charge.phase is Phase.RELEASING and now >= gone_at + STRANDED_SECONDS:
                charge.phase = Phase.STRANDED
                over.append(key)
        return over

    def strand(self, key: Key) -> None:
        """No reading has come for `STRANDED_SECONDS`: assume the worst."""
        self.charges[key].phase = Phase.STRANDED

    def _set(self, charge: Charge, size: int) -> None:
        self.charged += size - charge.bytes
        charge.bytes = size
        charge.highest = max(charge.highest, size)
