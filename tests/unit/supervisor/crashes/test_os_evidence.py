"""supervisor.crashes.os_evidence: what the kernel and macOS write, as it was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from supervisor.crashes.os_evidence import SystemEvidence, kernel_log

V2 = {
    "/proc/self/cgroup": "0::/user.slice/user-1000.slice/bulkhead.service\n",
    "/sys/fs/cgroup/user.slice/user-1000.slice/bulkhead.service/memory.events": (
        "low 0\nhigh 12\nmax 231\noom 3\noom_kill 2\noom_group_kill 0\n"
    ),
    "/proc/vmstat": "nr_free_pages 100\noom_kill 9\n",
}
V1 = {
    "/proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/ac80\n1:cpu,cpuacct:/\n0::/\n",
    "/sys/fs/cgroup/memory/docker/ac80/memory.oom_control": (
        "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"
    ),
    "/proc/vmstat": "oom_kill 9\n",
}
KERNEL = [
    "6,900,41,-;usb 1-1: new device\n SUBSYSTEM=usb\n",
    "4,1184,8231442,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,"
    "mems_allowed=0,task_memcg=/b,task=python,pid=4711,uid=1000\n",
    "3,1185,8231450,-;Memory cgroup out of memory: Killed process 4711 (python) "
    "total-vm:41236404kB, anon-rss:33321100kB, file-rss:9216kB, shmem-rss:0kB, UID:1000 "
    "pgtables:66412kB oom_score_adj:0\n SUBSYSTEM=memory\n",
    "3,1190,9231450,-;Out of memory: Killed process 47110 (python) total-vm:1kB\n",
]


def linux(texts: Mapping[str, str] | None = None, records: object = ()) -> SystemEvidence:
    def read(path: str) -> str:
        try:
            return (texts or {})[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def log() -> Iterator[str]:
        if isinstance(records, OSError):
            raise records
        assert isinstance(records, list)
        return iter(records)

    return SystemEvidence("linux", read, log)


@pytest.mark.parametrize(
    ("texts", "kills"),
    [
        (V2, 2),
        (V1, 4),
        ({"/proc/vmstat": V2["/proc/vmstat"]}, 9),
        ({"/proc/self/cgroup": "0::/\n"}, None),
        ({}, None),
    ],
)
def test_kills_are_counted_where_we_live(texts: Mapping[str, str], kills: int | None) -> None:
    assert linux(texts).oom_kills() == kills


def test_the_kernels_record_names_the_process() -> None:
    assert linux(records=KERNEL).oom_record(4711) == (
        "Memory cgroup out of memory: Killed process 4711 (python) total-vm:41236404kB, "
        "anon-rss:33321100kB, file-rss:9216kB, shmem-rss:0kB, UID:1000 pgtables:66412kB "
        "oom_score_adj:0"
    )
    assert linux(records=KERNEL[:2]).oom_record(4711) is not None
    assert linux(records=KERNEL).oom_record(471) is None


def test_a_log_that_may_not_be_read_says_nothing() -> None:
    assert linux(records=PermissionError()).oom_record(1) is None


def test_the_kernels_log_is_read_without_waiting(tmp_path: Path) -> None:
    """A FIFO gives what is in it and no more, as /dev/kmsg does."""
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    try:
        os.write(writer, b"5,1,2,-;hello\n")
        times = iter([0.0, 0.1, 0.2])  # nobody asks for the time, and so for more, after that
        assert list(kernel_log(str(fifo), lambda: next(times))) == ["5,1,2,-;hello\n"]
        os.write(writer, b"5,1,2,-;never reached\n")
        times = iter([0.0, 9.0])
        assert list(kernel_log(str(fifo), lambda: next(times))) == []
    finally:
        os.close(writer)


HEAD = (
    '{"app_name":"Python","timestamp":"2026-11-21 18:08:12.00 +0100","bug_type":"309",'
    '"os_version":"macOS 27.0 (26A5353q)","name":"Python"}\n'
)


def body(pid: int) -> str:
    return (
        '{\n  "uptime" : 220000,\n  "procRole" : "Unspecified",\n  "captureTime" : "2026",\n'
        f'  "pid" : {pid},\n  "procName" : "Python",\n  "parentPid" : 4711,\n'
        '  "exception" : {"type":"EXC_CRASH","signal":"SIGABRT"}\n}\n'
    )


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Written at 1000, 2000, …"""
    for at, (name, pid) in enumerate(
        {
            "Python-2026-11-20-090000.ips": 4711,
            "python3.12-2026-11-21-180812.ips": 4711,
            "Python-2026-11-21-180900.ips": 47110,
            "Safari-2026-11-21-181000.ips": 4711,
            "Python-2026-11-21-181000.diag": 4711,
        }.items(),
        1,
    ):
        (tmp_path / name).write_text(HEAD + body(pid))
        os.utime(tmp_path / name, (at * 1000, at * 1000))
    return tmp_path


def test_macos_report_is_the_newest_of_that_process(reports: Path) -> None:
    mac = SystemEvidence("darwin", reports=reports)
    assert mac.ips(4711, 500) == str(reports / "python3.12-2026-11-21-180812.ips")
    assert mac.ips(47110, 500) == str(reports / "Python-2026-11-21-180900.ips")
    assert mac.ips(12, 500) is None
    # A pid comes again: a report from before the process was born is another's.
    assert mac.ips(4711, 2500) is None


def test_nothing_is_asked_of_the_wrong_system(reports: Path) -> None:
    assert linux(V2).ips(4711, 0) is None
    mac = SystemEvidence("darwin", lambda path: V2[path], lambda: KERNEL, reports)
    assert (mac.oom_kills(), mac.oom_record(4711)) == (None, None)


def test_no_folder_and_no_home_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SystemEvidence("darwin", reports=tmp_path / "none").ips(1, 0) is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SystemEvidence("darwin").ips(1, 0) is None


def test_this_machine_answers() -> None:
    here = SystemEvidence()
    kills = here.oom_kills()
    assert kills is None or kills >= 0
    assert here.oom_record(2**22 + 1) is None
