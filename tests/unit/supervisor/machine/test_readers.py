from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import psutil
import pytest

from supervisor.machine.readers import (
    LinuxReader,
    MachineMemory,
    MacReader,
    SystemPressure,
    for_platform,
    working_set,
)
from supervisor.machine.readers.command import run
from supervisor.machine.readers.linux import pressure
from supervisor.machine.readers.macos import Use, integer, process_memory, swap_used, vm_stat

MEMINFO = """\
MemTotal:       24684092 kB
MemFree:        22117504 kB
MemAvailable:   23878308 kB
Buffers:           52036 kB
SwapTotal:       2097148 kB
SwapFree:        2000000 kB
HugePages_Total:       0
"""
ROLLUP = """\
55d7d27f5000-7ffe71872000 ---p 00000000 00:00 0                          [rollup]
Rss:                1696 kB
Pss:                 407 kB
Pss_Dirty:           116 kB
Swap:                 32 kB
SwapPss:              16 kB
"""
STATUS = "Name:\tpython\nVmPeak:\t  900000 kB\nVmRSS:\t    1696 kB\nThreads:\t3\n"
PAGES = (
    "RssAnon:\t    1100 kB\nRssFile:\t     506 kB\nRssShmem:\t      90 kB\nVmSwap:\t       7 kB\n"
)
CALM = (
    "some avg10=0.00 avg60=0.12 avg300=0.00 total=1\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
)

# Recorded on a Mac with 24 GiB while its own tools showed 68.59 to 68.93 % in use.
MAC_PHYSICAL = 25_769_803_776
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                    17490.
Pages active:                                 468148.
Pages inactive:                               468488.
Pages speculative:                              4916.
Pages wired down:                             251554.
Pages purgeable:                                6528.
"Translation faults":                     6471500977.
Pages occupied by compressor:                 320058.
Swapins:                                    39900738.
"""
SWAP = "total = 13312.00M  used = 11625.69M  free = 1686.31M  (encrypted)\n"
MIG_ERROR = "host_statistics64(HOST_VM_INFO64) syscall failed: (ipc/mig) array not large enough"


class TestLinux:
    def test_the_machine(self) -> None:
        told = linux({"/proc/meminfo": MEMINFO, "/proc/pressure/memory": CALM}).machine()
        assert told == MachineMemory(
            physical=24_684_092 * 1024,
            used=(24_684_092 - 23_878_308) * 1024,
            swap_used=97_148 * 1024,
            level=SystemPressure.NORMAL,
        )
        assert told.used_percent == pytest.approx(3.264, abs=0.001)

    def test_a_process_has_its_share_of_shared_pages_and_what_is_swapped(self) -> None:
        reader = linux({"/proc/7/smaps_rollup": ROLLUP, "/proc/7/status": STATUS})
        assert reader.footprint(7) == (407 + 16) * 1024
        assert reader.wired(7) is None

    def test_without_a_rollup_all_of_its_pages_count(self) -> None:
        assert linux({"/proc/7/status": STATUS}).footprint(7) == 1696 * 1024
        assert linux({"/proc/7/status": STATUS + PAGES}).footprint(7) == 1696 * 1024

    def test_a_glance_counts_what_is_its_own(self) -> None:
        assert linux({"/proc/7/status": STATUS + PAGES}).glance(7) == (1100 + 90 + 7) * 1024
        assert linux({"/proc/7/status": STATUS}).glance(7) == 1696 * 1024  # an old kernel
        assert linux({}).glance(7) is None
        assert linux({"/proc/7/status": "Name:\tpython\nState:\tZ (zombie)\n"}).glance(7) is None

    @pytest.mark.parametrize("text", ["", "MemTotal: lots", "MemTotal:   5 MB\n", "\0" * 99])
    def test_odd_output_is_unknown(self, text: str) -> None:
        reader = linux({path: text for path in ("/proc/meminfo", "/proc/7/smaps_rollup")})
        assert reader.machine() == MachineMemory()
        assert reader.machine().used_percent is None
        assert reader.footprint(7) is None

    def test_missing_files_are_unknown(self) -> None:
        assert linux({}).machine() == MachineMemory()
        assert linux({}).footprint(7) is None

    def test_more_available_than_there_is_counts_as_none_used(self) -> None:
        odd = "MemTotal:   100 kB\nMemAvailable:   200 kB\n"
        assert linux({"/proc/meminfo": odd}).machine().used == 0

    @pytest.mark.parametrize(
        ("some", "full", "level"),
        [
            ("9.99", "9.99", SystemPressure.NORMAL),
            ("10.00", "0.00", SystemPressure.WARN),
            ("80.00", "19.99", SystemPressure.WARN),
            ("20.00", "20.00", SystemPressure.CRITICAL),
        ],
    )
    def test_stalls_are_pressure(self, some: str, full: str, level: SystemPressure) -> None:
        text = f"some avg10={some} avg60=99.00 total=1\nfull avg10={full} avg60=99.00 total=1\n"
        assert pressure(text) is level

    @pytest.mark.parametrize("text", ["", "some avg10=much\n", "full avg10=99.00 avg60=0\n"])
    def test_no_pressure_stall_information(self, text: str) -> None:
        assert pressure(text) is None

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_this_machine(self) -> None:
        reader = for_platform("linux")
        told = reader.machine()
        assert told.physical == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert told.used is not None
        assert 0 < told.used < (told.physical or 0)
        assert 2**20 < (reader.footprint(os.getpid()) or 0) <= psutil.Process().memory_info().rss
        assert reader.footprint(2**30) is None
        before = reader.glance(os.getpid()) or 0
        with mmap.mmap(-1, 50_000_000) as held:  # of its own: the heap may have as much at hand
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
            assert 45_000_000 < (reader.glance(os.getpid()) or 0) - before < 60_000_000


class TestMac:
    def test_the_machine(self) -> None:
        told = mac(use=lambda: Use(17_000_000_000, 4_000_000_000)).machine()
        assert told == MachineMemory(
            physical=MAC_PHYSICAL,
            used=17_000_000_000,
            wired=4_000_000_000,
            swap_used=12_190_464_000,
            level=SystemPressure.WARN,
        )

    def test_where_psutil_fails_vm_stat_tells(self) -> None:
        told = mac(use=failing(RuntimeError(MIG_ERROR))).machine()
        # 25769803776 - (17490 + 4916 + 468488) x 16384
        assert told.used == 17_726_996_480
        assert told.wired == 251_554 * 16_384
        assert told.used_percent == pytest.approx(68.76, abs=0.2)

    @pytest.mark.parametrize(
        "error", [psutil.Error(), OSError(), AttributeError("wired"), ValueError()]
    )
    def test_psutil_may_fail_in_any_way(self, error: Exception) -> None:
        assert mac(use=failing(error)).machine().used == 17_726_996_480

    def test_where_libc_fails_the_command_tells(self) -> None:
        for error in (OSError(2, "no such sysctl"), AttributeError("sysctlbyname")):
            told = mac(sysctl=failing(error)).machine()
            assert (told.physical, told.level) == (MAC_PHYSICAL, SystemPressure.WARN)
            assert told.swap_used == int(11_625.69 * 2**20)

    @pytest.mark.parametrize(
        ("value", "level"),
        [
            (1, SystemPressure.NORMAL),
            (2, SystemPressure.WARN),
            (4, SystemPressure.CRITICAL),
            (0, None),
            (3, None),
            (8, None),
        ],
    )
    def test_levels(self, value: int, level: SystemPressure | None) -> None:
        assert mac({"kern.memorystatus_vm_pressure_level": value}).machine().level is level

    @pytest.mark.parametrize(
        "error",
        [FileNotFoundError(), PermissionError(), subprocess.TimeoutExpired("sysctl", 2)],
    )
    def test_when_everything_fails_all_is_unknown(self, error: Exception) -> None:
        reader = MacReader(
            run=failing(error),
            sysctl=failing(OSError()),
            use=failing(RuntimeError()),
            rusage=failing(OSError(3, "No such process")),
        )
        told = reader.machine()
        assert told == MachineMemory(physical=told.physical)
        assert reader.footprint(7) is None
        assert reader.wired(7) is None

    def test_odd_output_is_unknown(self) -> None:
        reader = MacReader(
            run=lambda *_: "???\n",
            sysctl=lambda name: b"\1\2\3",
            use=failing(RuntimeError()),
            rusage=lambda pid: b"short",
        )
        told = reader.machine()
        assert told == MachineMemory(physical=told.physical)
        assert reader.footprint(7) is None

    def test_a_process_is_read_where_libproc_puts_it(self) -> None:
        info = bytearray(512)
        for offset, value in ((56, 5), (64, 193 * 2**20), (72, 30 * 2**30), (80, 99)):
            struct.pack_into("<Q", info, offset, value)
        reader = mac(rusage=lambda pid: bytes(info) if pid == 7 else bytes(512))
        assert reader.footprint(7) == 30 * 2**30
        assert reader.wired(7) == 5
        assert reader.footprint(8) is None

    def test_libproc_and_libc_are_not_everywhere(self) -> None:
        if sys.platform == "darwin":
            pytest.skip("they are here")
        reader = for_platform("darwin")
        assert reader.footprint(os.getpid()) is None
        assert reader.machine().physical

    def test_the_helper_has_a_deadline_and_its_status_counts(self) -> None:
        assert run((sys.executable, "-c", "print('x')"), 30) == "x\n"
        with pytest.raises(subprocess.CalledProcessError):
            run((sys.executable, "-c", "raise SystemExit(1)"), 30)
        with pytest.raises(subprocess.TimeoutExpired):
            run((sys.executable, "-c", "import signal; signal.pause()"), 0.05)

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            (SWAP, int(11_625.69 * 2**20)),
            ("total = 2.00G  used = 1.50G  free = 0.50G", int(1.5 * 2**30)),
            ("vm.swapusage: total = 0.00M  used = 0.00M  free = 0.00M  (encrypted)", 0),
            ("", None),
            ("used = muchM", None),
        ],
    )
    def test_swap(self, text: str, value: int | None) -> None:
        assert swap_used(text) == value

    @pytest.mark.parametrize(
        ("text", "use"),
        [
            ("", Use()),
            (VM_STAT.replace("page size of 16384 bytes", "?"), Use()),
            (VM_STAT.replace("Pages free", "Pages gone"), Use(None, 251_554 * 16_384)),
            (VM_STAT.replace("16384", "4096"), Use(MAC_PHYSICAL - 490_894 * 4096, 251_554 * 4096)),
        ],
    )
    def test_vm_stat_without_what_is_needed(self, text: str, use: Use) -> None:
        assert vm_stat(text, MAC_PHYSICAL) == use
        assert vm_stat(VM_STAT, None) == Use(None, 251_554 * 16_384)

    @pytest.mark.parametrize(
        ("text", "value"), [("4\n", 4), ("", None), ("-1", None), ("²", None), ("9" * 20, None)]
    )
    def test_integers(self, text: str, value: int | None) -> None:
        assert integer(text) == value

    def test_a_process_that_was_never_filled_in(self) -> None:
        assert process_memory(bytes(512)) is None
        assert process_memory(b"") is None


class TestWorkingSet:
    def test_is_read_in_a_child(self) -> None:
        calls: list[tuple[Sequence[str], float]] = []

        def run(command: Sequence[str], seconds: float) -> str:
            calls.append((command, seconds))
            return "some warning\nworking-set 115448725504\n"

        told = working_set(platform="darwin", run=run)

        assert told == 115_448_725_504
        (command, seconds) = calls[0]
        assert (command[0], command[1], seconds) == (sys.executable, "-c", 30)
        compile(command[2], "child", "exec")
        assert "max_recommended_working_set_size" in command[2]

    @pytest.mark.parametrize(
        "output", ["", "working-set\n", "working-set 0\n", "working-set -5\n", "working-set 1e9\n"]
    )
    def test_odd_output_is_unknown(self, output: str) -> None:
        assert working_set(platform="darwin", run=lambda *_: output) is None

    @pytest.mark.parametrize(
        "error",
        [
            FileNotFoundError(),
            subprocess.CalledProcessError(-6, "python"),
            subprocess.TimeoutExpired("python", 30),
        ],
    )
    def test_a_child_that_fails_is_unknown(self, error: Exception) -> None:
        assert working_set(platform="darwin", run=failing(error)) is None

    def test_linux_has_none_and_starts_nothing(self) -> None:
        assert working_set(platform="linux", run=failing(AssertionError())) is None

    def test_the_real_child(self) -> None:
        # MLX without Metal has no such figure; the child and its parsing are real.
        if sys.platform == "darwin":
            assert (working_set() or 0) > 2**30
        else:
            assert working_set(platform="darwin") is None


def linux(files: Mapping[str, str]) -> LinuxReader:
    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return LinuxReader(read)


def mac(
    values: Mapping[str, int] = MappingProxyType({}),
    *,
    sysctl: Callable[[str], bytes] | None = None,
    use: Callable[[], Use] = Use,
    rusage: Callable[[int], bytes] = lambda pid: bytes(512),
) -> MacReader:
    """A MacReader over recorded figures, some of them replaced by `values`."""
    integers = {"hw.memsize": MAC_PHYSICAL, "kern.memorystatus_vm_pressure_level": 2, **values}
    widths = {"hw.memsize": 8, "kern.memorystatus_vm_pressure_level": 4}

    def kernel(name: str) -> bytes:
        if name == "vm.swapusage":
            used = 12_190_464_000
            return struct.pack("<QQQII", 13_958_643_712, 1_768_179_712, used, 16_384, 1)
        return integers[name].to_bytes(widths[name], "little")

    def run(command: Sequence[str], seconds: float) -> str:
        if command[0].endswith("vm_stat"):
            return VM_STAT
        return SWAP if command[-1] == "vm.swapusage" else f"{integers[command[-1]]}\n"

    return MacReader(run=run, sysctl=sysctl or kernel, use=use, rusage=rusage)


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail
