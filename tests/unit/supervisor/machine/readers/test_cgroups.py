"""supervisor.machine.readers.cgroups: limits as systemd, containers and version 1 lay them out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import pytest

from supervisor.machine.readers import LinuxReader, MachineMemory
from supervisor.machine.readers.cgroups import Cgroups
from supervisor.machine.readers.linux import read_text
from supervisor.scheduler.pressure import GroupMemory

GB = 10**9
UNIFIED = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MEMORY = "36 24 0:31 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
OTHERS = """\
23 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
24 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
33 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
broken line
37 24 0:33 / /x - 
"""
MAX = "9223372036854771712\n"


def told(
    membership: str, mounts: str, files: Mapping[str, str | OSError]
) -> tuple[GroupMemory, ...]:
    """What is told where /proc says so and there are these files below /sys/fs/cgroup."""
    everything: dict[str, str | OSError] = {
        "/proc/self/cgroup": membership,
        "/proc/self/mountinfo": OTHERS + mounts,
        **{f"/sys/fs/cgroup{path}": text for path, text in files.items()},
    }

    def read(path: str) -> str:
        found = everything.get(path, FileNotFoundError(path))
        if isinstance(found, OSError):
            raise found
        return found

    return Cgroups(read).memory()


def test_a_service_with_a_limit() -> None:
    service = "/system.slice/bulkhead.service"
    found = told(
        f"0::{service}\n",
        UNIFIED,
        {
            f"{service}/memory.max": f"{8 * GB}\n",
            f"{service}/memory.high": "max\n",
            f"{service}/memory.current": f"{6 * GB}\n",
            f"{service}/memory.stat": "anon 2000000000\nfile 3500000000\ninactive_file 3000000000\n"
            "active_file 500000000\nslab_reclaimable 100000000\nslab 200000000\n",
            "/system.slice/memory.max": "max\n",
            "/system.slice/memory.high": "max\n",
        },
    )
    # Pages of files that were read are taken away before anybody is killed.
    file = f"/sys/fs/cgroup{service}/memory.max"
    assert found == (GroupMemory(file, 8 * GB, 2_400_000_000),)


def test_the_limit_that_slows_down_comes_before_the_one_that_kills() -> None:
    files = {
        "/a/memory.max": "8000",
        "/a/memory.high": "7000",
        "/a/memory.current": "5000",
        "/a/memory.stat": "",
    }
    assert told("0::/a\n", UNIFIED, files) == (
        GroupMemory("/sys/fs/cgroup/a/memory.high", 7000, 5000),
    )


def test_the_groups_around_the_own_one_count_as_well() -> None:
    files = {
        "/user.slice/memory.max": "3000",
        "/user.slice/memory.current": "2500",
        "/user.slice/u/app.slice/memory.max": "9000",
        "/user.slice/u/app.slice/memory.current": "100",
        "/elsewhere/memory.max": "1",
    }
    assert told("0::/user.slice/u/app.slice\n", UNIFIED, files) == (
        GroupMemory("/sys/fs/cgroup/user.slice/u/app.slice/memory.max", 9000, 100),
        GroupMemory("/sys/fs/cgroup/user.slice/memory.max", 3000, 2500),
    )


def test_a_container_sees_its_own_group_as_the_root() -> None:
    files = {"/memory.max": "4000", "/memory.high": "max", "/memory.current": "1000"}
    alone = (GroupMemory("/sys/fs/cgroup/memory.max", 4000, 1000),)
    assert told("0::/\n", UNIFIED, files) == alone
    # Without a namespace of its own, the mount shows a part of what /proc tells from the top;
    part = UNIFIED.replace(" / /sys", " /docker/4f2a /sys")
    assert told("0::/docker/4f2a\n", part, files) == alone
    # and a process from outside is somewhere above.
    assert told("0::/../../host.service\n", UNIFIED, files) == alone
    assert told("0::/other\n", part, files) == alone


def mount(root: str, point: str, kind: str = "cgroup2") -> str:
    options = "rw,memory" if kind == "cgroup" else "rw,nsdelegate"
    return f"40 24 0:30 {root} /sys/fs/cgroup{point} ro,nosuid - {kind} cgroup {options}\n"


OWN, HOST = mount("/", ""), mount("/../../..", "/host")
"""As a container sees them that has the host's hierarchy beside its own."""


@pytest.mark.parametrize("mounts", [OWN + HOST, HOST + OWN])
def test_the_host_s_hierarchy_beside_the_own_one_hides_no_limit(mounts: str) -> None:
    files = {
        "/memory.max": "4000",
        "/memory.current": "1000",
        "/host/cgroup.procs": "",  # the root of all has no limit
        "/host/other/memory.max": "1",
    }
    own = GroupMemory("/sys/fs/cgroup/memory.max", 4000, 1000)
    assert told("0::/\n", mounts, files) == (own,)
    # A group above the container's may have a limit as well, and a group in it one of its own.
    more = {**files, "/host/memory.max": "6000", "/a/memory.max": "3000"}
    above = GroupMemory("/sys/fs/cgroup/host/memory.max", 6000, None)
    inner = GroupMemory("/sys/fs/cgroup/a/memory.max", 3000, None)
    assert told("0::/a\n", mounts, more) == (inner, own, above)


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
@pytest.mark.parametrize("order", [1, -1])
def test_two_mounts_that_show_one_group_tell_it_once(kind: str, order: int) -> None:
    """Without a namespace: the container's own part, and all of the host's."""
    mounts = [mount("/docker/4f2a", "", kind), mount("/", "/host", kind)][::order]
    limit, used = (
        ("memory.max", "memory.current")
        if kind == "cgroup2"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    files = {
        f"/host/docker/{limit}": "9000",
        **{f"{each}/{limit}": "4000" for each in ("", "/host/docker/4f2a")},
        **{f"{each}/{used}": "1000" for each in ("", "/host/docker/4f2a")},
    }
    membership = "0::/docker/4f2a\n" if kind == "cgroup2" else "4:memory:/docker/4f2a\n"
    found = told(membership, "".join(mounts), files)
    assert [(each.limit, each.used) for each in found] == [(4000, 1000), (9000, None)]


def test_the_group_is_read_where_it_can_be() -> None:
    """Of two mounts that show it one is hidden by another file system."""
    files = {"/unified/a/memory.max": "7"}
    for mounts in ([mount("/", ""), mount("/", "/unified")], [mount("/", "/unified"), OWN]):
        assert [each.limit for each in told("0::/a\n", "".join(mounts), files)] == [7]
    # and of two at one place the later one is seen.
    files = {"/a/memory.max": "7", "/memory.max": "1"}
    mounts = [mount("/docker", ""), mount("/", "")]
    assert [each.limit for each in told("0::/a\n", "".join(mounts), files)] == [7, 1]
    assert [each.limit for each in told("0::/a\n", "".join(mounts[::-1]), files)] == [1]


@pytest.mark.parametrize("foreign", ["/../../kubepods/pod7", "/other", "/aa", "/a/b/c"])
def test_a_group_of_others_that_is_bound_as_well_is_no_limit(foreign: str) -> None:
    files = {"/memory.max": "9000", "/foreign/memory.max": "1", "/foreign/b/memory.max": "1"}
    for mounts in (OWN + mount(foreign, "/foreign"), mount(foreign, "/foreign") + OWN):
        assert [each.limit for each in told("0::/a/b\n", mounts, files)] == [9000]


def test_a_process_above_the_root_is_found_where_the_host_s_hierarchy_is() -> None:
    files = {"/memory.max": "1", "/host/host.service/memory.max": "8000"}
    mounts = OWN + mount("/../..", "/host")
    found = told("0::/../../host.service\n", mounts, files)
    assert [each.limit for each in found] == [8000]


def test_version_1_beside_an_empty_version_2() -> None:
    unified = UNIFIED.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    membership = "9:name=systemd:/\n4:memory:/docker/4f2a\n1:cpu,cpuacct:/docker/4f2a\n0::/x\n"
    files = {
        "/memory/docker/4f2a/memory.limit_in_bytes": "5000\n",
        "/memory/docker/4f2a/memory.usage_in_bytes": "4000\n",
        "/memory/docker/4f2a/memory.stat": "inactive_file 1\ntotal_inactive_file 700\n"
        "total_active_file 300\n",
        "/memory/docker/memory.limit_in_bytes": MAX,
        "/memory/memory.limit_in_bytes": MAX,
    }
    assert told(membership, unified + V1_MEMORY, files) == (
        GroupMemory("/sys/fs/cgroup/memory/docker/4f2a/memory.limit_in_bytes", 5000, 3000),
    )


def test_a_mount_whose_name_has_a_space() -> None:
    spaced = UNIFIED.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/a\\040b ")
    assert told("0::/\n", spaced, {"/a b/memory.max": "7"}) == (
        GroupMemory("/sys/fs/cgroup/a b/memory.max", 7, None),
    )


@pytest.mark.parametrize(
    ("membership", "mounts", "files"),
    [
        ("0::/a\n", UNIFIED, {"/a/memory.max": "max\n", "/memory.max": "max\n"}),
        ("0::/a\n", UNIFIED, {}),  # the root, or no controller
        ("0::/a\n", UNIFIED, {"/a/memory.max": PermissionError("no")}),
        ("0::/a\n", UNIFIED, {"/a/memory.max": "0\n", "/memory.max": "-5\n"}),
        ("0::/a\n", UNIFIED, {"/a/memory.max": "lots", "/memory.max": "9" * 30}),
        ("0::/a\n", "", {"/a/memory.max": "7"}),
        ("", UNIFIED, {"/memory.max": "7"}),
        ("nonsense\n0\n:::\n", UNIFIED, {"/memory.max": "7"}),
        ("4:memory:/a\n", V1_MEMORY, {"/memory/a/memory.limit_in_bytes": MAX}),
    ],
)
def test_what_is_no_limit_or_cannot_be_read(
    membership: str, mounts: str, files: dict[str, str | OSError]
) -> None:
    assert told(membership, mounts, files) == ()


def test_use_that_cannot_be_read_is_unknown() -> None:
    files: dict[str, str | OSError] = {
        "/a/memory.max": "7",
        "/a/memory.current": PermissionError("no"),
    }
    (found,) = told("0::/a\n", UNIFIED, files)
    assert found.used is None


def test_a_process_that_is_moved_is_found_again() -> None:
    texts = {
        "/proc/self/cgroup": "0::/a\n",
        "/proc/self/mountinfo": UNIFIED,
        "/sys/fs/cgroup/a/memory.max": "5",
        "/sys/fs/cgroup/b/memory.max": "6",
    }
    cgroups = Cgroups(lambda path: texts.get(path, ""))
    assert [each.limit for each in cgroups.memory()] == [5]
    texts["/proc/self/cgroup"] = "0::/b\n"
    assert [each.limit for each in cgroups.memory()] == [6]


def test_the_machine_is_told_with_its_groups() -> None:
    texts: dict[str, str] = {
        "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\n",
        "/proc/self/cgroup": "0::/a\n",
        "/proc/self/mountinfo": UNIFIED,
        "/sys/fs/cgroup/a/memory.max": "512000",
        "/sys/fs/cgroup/a/memory.current": "256000",
    }
    group = GroupMemory("/sys/fs/cgroup/a/memory.max", 512_000, 256_000)
    told = LinuxReader(lambda path: texts.get(path, "")).machine()
    assert told == MachineMemory(physical=1_024_000, used=102_400, groups=(group,))
    assert (told.usable, told.used_percent) == (512_000, 50.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine() -> None:
    for group in Cgroups(read_text).memory():
        assert os.path.isfile(group.file)
        assert group.limit > 0
