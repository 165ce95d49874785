"""The memory limits of this process' own control groups, and of those that these are in.

A service, a container or a job may have far less than the machine has, and the kernel ends a
process that exceeds it, however much RAM is free. Workers are in the supervisor's groups.

Version 2 has `memory.max`, at which the kernel kills, and `memory.high`, at which it slows
everything down; version 1 has `memory.limit_in_bytes`. Both may be mounted at once. What /proc
tells is a path below the root of the hierarchy, and a mount may show a part of that alone, which in
a container is often the process' own group. There may be several mounts of one hierarchy: whoever
watches a machine from a container binds the host's beside the container's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath

from supervisor.scheduler.pressure import GroupMemory

ReadText = Callable[[str], str]

_NO_LIMIT = 2**60
"""Version 1 has no word for it, but the largest number of pages."""
_ESCAPED = re.compile(r"\\([0-7]{3})")
_STAT = re.compile(r"^(\w+) (\d{1,19})$", re.MULTILINE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Version:
    """The files of one version."""

    limits: tuple[str, ...]
    used: str
    reclaimable: tuple[str, ...]
    """Of memory.stat: what the kernel takes away before it kills. A model's file that was read
    fills the rest of a group with such pages, and is no reason to unload anything."""


V1 = Version(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
V2 = Version(
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group is in its hierarchy, from the process' own root: first so many steps up, then
    down by these names. What is above that root has no names that the process could know."""

    up: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: str) -> Place:
        parts = PurePosixPath(path).parts[1:]
        up = sum(1 for _ in takewhile(lambda part: part == "..", parts))
        return cls(up, parts[up:])

    @property
    def depth(self) -> int:
        return len(self.names) - self.up

    def contains(self, other: Place) -> bool:
        """Whether the other group is this one, or in it."""
        if self.up > other.up:
            return not self.names  # with names it is beside the root, not above it
        return self.up == other.up and other.names[: len(self.names)] == self.names


@dataclass(frozen=True, slots=True)
class Group:
    """A folder of one group, its version, and which group it is: two mounts may show the same."""

    path: str
    version: Version
    place: Place


class Cgroups:
    """Reads limits. Nothing raises; what can't be read is no limit. `read` is for tests."""

    def __init__(self, read: ReadText) -> None:
        self._read = read
        self._membership = ""
        self._groups: list[Group] = []

    def memory(self) -> tuple[GroupMemory, ...]:
        """The groups that have a limit, the innermost first. Blocks on some files of the kernel's,
        which are there at once."""
        membership = self._text("/proc/self/cgroup")
        if membership != self._membership:  # a process is moved seldom, if ever
            self._membership = membership
            self._groups = list(groups(membership, self._text("/proc/self/mountinfo")))
        told: dict[tuple[Version, Place], GroupMemory] = {}
        for group in self._groups:
            which = group.version, group.place
            if which not in told and (memory := self._memory(group)) is not None:
                told[which] = memory
        return tuple(told.values())

    def _memory(self, group: Group) -> GroupMemory | None:
        version = group.version
        limits = [(self._bytes(f"{group.path}/{file}"), file) for file in version.limits]
        known = [(limit, file) for limit, file in limits if limit is not None]
        if not known:
            return None
        limit, file = min(known)
        used = self._bytes(f"{group.path}/{version.used}")
        stat = dict(_STAT.findall(self._text(f"{group.path}/memory.stat")))
        free = sum(int(stat.get(name, 0)) for name in version.reclaimable)
        return GroupMemory(
            f"{group.path}/{file}", limit, None if used is None else max(0, used - free)
        )

    def _bytes(self, path: str) -> int | None:
        text = self._text(path).strip()
        if not (text.isascii() and text.isdigit()) or len(text) > 19:
            return None  # "max", or there is no such file
        return int(text) if 0 < int(text) < _NO_LIMIT else None

    def _text(self, path: str) -> str:
        try:
            return self._read(path)
        except (OSError, ValueError):
            return ""


def groups(membership: str, mounts: str) -> Iterator[Group]:
    """The folders of a process' groups that account for memory, each with those that it is in, from
    its /proc/self/cgroup and /proc/self/mountinfo. Of each version the innermost come first."""
    # Of two at one mount point the later one hides the other.
    found = {mount: (version, Place.of(root)) for version, root, mount in _mounts(mounts)}
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version = V2
        elif "memory" in controllers.split(","):
            version = V1
        else:
            continue
        if path.startswith("/"):
            shown = [(mount, top) for mount, (kind, top) in found.items() if kind == version]
            folders = [Group(*each) for each in _folders(Place.of(path), version, shown)]
            yield from sorted(folders, key=lambda group: -group.place.depth)


def _mounts(text: str) -> Iterator[tuple[Version, str, str]]:
    """(version, root, mount point) of the hierarchies with memory in them."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        root, mount = _unescaped(fields[3]), _unescaped(fields[4])
        if kind[0] == "cgroup2":
            yield V2, root, mount
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            yield V1, root, mount


def _folders(
    group: Place, version: Version, mounts: Sequence[tuple[str, Place]]
) -> Iterator[tuple[str, Version, Place]]:
    """The group and those that it is in, as far as the mounts show them."""
    around = [(mount, top) for mount, top in mounts if top.contains(group)]
    for mount, top in around or mounts:  # of a process from outside of what a container sees, too
        inside = group.names[len(top.names) :] if top.contains(group) else ()
        if top.up > group.up:
            inside = ()  # the way down has no names
        for length in range(len(inside), -1, -1):
            folder = str(PurePosixPath(mount, *inside[:length]))
            yield folder, version, Place(top.up, (*top.names, *inside[:length]))


def _unescaped(text: str) -> str:
    """The kernel writes a space as \\040."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
