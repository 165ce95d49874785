"""When the memory of a worker that is gone may be promised to another one. Pure.

Linux: at reap. The kernel has torn the memory down by the time a child can be reaped, and
`MemAvailable` is no witness, since other programs move it.

macOS: wired memory of Metal comes back after the exit, within seconds, and after a hard kill
sometimes not at all. So the charge stays until it is seen to be back: after the reap it is

    min(F, max(0, unattributed - baseline))

where F is the worker's last footprint, `unattributed` the machine's wired memory less what living
workers have, and `baseline` what that was while nothing of ours was coming or going. It never
grows again: what a noisy neighbour wires later is not ours. It ends at max(256 MB, 2 % of F) or
less. What is left after 10 s is stranded: still charged, still read, and shown, since after a hard
kill only a reboot may bring it back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

SETTLE_SECONDS = 10.0
FAST_INTERVAL = 0.1
"""Seconds between readings until the memory is back or stranded."""
SLOW_INTERVAL = 1.0
"""Seconds between readings of stranded memory."""
REST_BYTES = 256_000_000
REST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the machine. `at` in seconds of any steady clock. `unattributed` in bytes:
    wired memory that no living worker accounts for; None where it could not be read."""

    at: float
    unattributed: int | None


@dataclass(frozen=True, slots=True)
class Release:
    """One worker's memory on its way back."""

    footprint: int
    """F: the last footprint that was read while it lived, bytes."""
    baseline: int
    """Quiet unattributed wired memory, bytes: `quiet_baseline`."""
    reaped_at: float
    charge: int
    """What is still charged, bytes."""
    stranded: bool = False

    @property
    def done(self) -> bool:
        return self.charge == 0

    @property
    def interval(self) -> float:
        """Seconds until the next reading is due."""
        return SLOW_INTERVAL if self.stranded else FAST_INTERVAL


def on_linux(footprint: int, reaped_at: float) -> Release:
    """Done at once."""
    return Release(footprint, 0, reaped_at, 0)


def on_macos(footprint: int, baseline: int, reaped_at: float) -> Release:
    """Everything is charged until the first reading."""
    return Release(footprint, baseline, reaped_at, footprint)


def observe(release: Release, reading: Reading) -> Release:
    """`release` after `reading`. A reading that failed changes only the clock: unread memory is
    not back. One from before the reap changes nothing."""
    if release.done or reading.at < release.reaped_at:
        return release
    charge = release.charge
    if reading.unattributed is not None:
        charge = min(charge, max(0, reading.unattributed - release.baseline))
        if charge <= rest(release.footprint):
            return replace(release, charge=0, stranded=False)
    stranded = reading.at - release.reaped_at >= SETTLE_SECONDS
    return replace(release, charge=charge, stranded=stranded)


def follow(release: Release, readings: Iterable[Reading]) -> Release:
    """`observe` over a series."""
    for reading in readings:
        release = observe(release, reading)
    return release


def rest(footprint: int) -> int:
    """Bytes that are too few to wait for."""
    return max(REST_BYTES, int(footprint * REST_SHARE))


def share(releases: Iterable[Release], reading: Reading) -> list[Release]:
    """Several releases at once, by one reading.

    Each sees all the memory that is not back, its own and the others', so it would be charged once
    for every one of them. It is therefore shared out, oldest first, each up to its charge; the
    baseline is the lowest, since the later ones may have been taken while the first was settling.
    """
    pending = list(releases)
    waiting = [each for each in pending if not each.done and reading.at >= each.reaped_at]
    if reading.unattributed is None or not waiting:
        return [observe(each, reading) for each in pending]
    left = max(0, reading.unattributed - min(each.baseline for each in waiting))
    seen: dict[int, Release] = {}
    for each in sorted(waiting, key=lambda release: release.reaped_at):
        mine = min(left, each.charge)
        left -= mine
        seen[id(each)] = observe(each, Reading(reading.at, each.baseline + mine))
    return [seen.get(id(each), each) for each in pending]


def unattributed(wired: int | None, living: Iterable[int | None]) -> int | None:
    """The machine's `wired` bytes less those of its `living` workers. None when it is unknown;
    a worker whose own are unknown is taken for none, which charges rather too much."""
    if wired is None:
        return None
    return max(0, wired - sum(each or 0 for each in living))


def quiet_baseline(readings: Iterable[Reading]) -> int | None:
    """The lowest unattributed figure of a quiet time, the newest minutes say: other programs only
    add to it. None when none could be read."""
    known = [each.unattributed for each in readings if each.unattributed is not None]
    return min(known, default=None)
