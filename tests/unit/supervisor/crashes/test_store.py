"""supervisor.crashes.store: reports are bounded, private and found by id alone."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from supervisor.crashes import store as store_module
from supervisor.crashes.store import KEEP, Store, is_id, new_id
from supervisor.wire.crash import (
    CrashReport,
    InFlight,
    LoadedModel,
    MachineSample,
    Outcome,
    Sample,
)


def report(number: int = 0, **more: Any) -> CrashReport:
    """A report of the day's second `number`."""
    at = datetime.fromtimestamp(1_800_000_000 + number, UTC)
    values: dict[str, Any] = {
        "id": f"{at:%Y%m%dT%H%M%SZ}-0000{number % 256:02x}",
        "time": at.isoformat("T", "milliseconds"),
        "process": "worker",
        "model": "coder",
        "generation": 3,
        "how": "SIGABRT",
        "cause": "gpu_out_of_memory",
        "summary": "the GPU ran out of memory",
        "advice": "Lower max_concurrency.",
        "pid": 4711,
        "phase": "ready",
        "signal": "SIGABRT",
        "exit_code": None,
        "permanent": False,
        "memory": True,
        "blame": "suspects",
        "put_down": None,
        "line": "[METAL] Insufficient Memory",
        "exception": None,
        "uptime_seconds": 12.5,
        "in_flight": 3,
        "requests": [
            InFlight(request_id="req-1", prompt_tokens=100, emitted_tokens=7),
            InFlight(request_id="req-2"),
        ],
        "recovery": [Outcome(request_id="req-1", outcome="resumed")],
        "models": [
            LoadedModel(
                name="coder", generation=3, state="ready", memory_bytes=2, in_flight=3, queued=1
            )
        ],
        "machine": [
            MachineSample(seconds=60.2, used_bytes=50 * 10**9, swap_bytes=None),
            MachineSample(seconds=0.2, used_bytes=60 * 10**9, swap_bytes=None),
        ],
        "footprint": [Sample(seconds=0.2, bytes=30 * 10**9)],
        "oom_record": None,
        "ips": None,
        "stderr_file": "/s/logs/worker.coder.x.3.stderr",
        "stderr": "first\nlast words",
        "stacks": "Current thread 0x1 (most recent call first):\n  File x",
        "versions": {"bulkhead": "0.1.0"},
    }
    return CrashReport(**{**values, **more})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "crashes")


def test_a_report_is_kept_whole_and_private(store: Store, tmp_path: Path) -> None:
    assert store.listing() == []
    store.write(report())
    (path,) = (tmp_path / "crashes").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert store.read(report().id) == report()
    store.write(report(in_flight=9))
    assert [brief.id for brief in store.listing()] == [report().id]
    assert store.read(report().id) == report(in_flight=9)


def test_the_newest_are_kept(store: Store, tmp_path: Path) -> None:
    for number in range(KEEP + 3):
        store.write(report(number))
    kept = [brief.time for brief in store.listing()]
    assert kept == [report(number).time for number in reversed(range(3, KEEP + 3))]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../sizes",
        "/etc/passwd",
        "20270115T080000Z-00000g",
        "20270115T080000Z-000000/..",
        "20270115T080000Z-000000\n",
        "20270115T080000Z-000000\0",
        "٢٠٢٧٠١١٥T080000Z-000000",
    ],
)
def test_what_is_no_id_is_no_path(name: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_bytes(store_module.encode(report()))
    assert not is_id(name)
    assert store.read(name) is None


def test_ids_are_unique_and_in_order() -> None:
    ids = {new_id(1_800_000_000) for _ in range(100)}
    assert len(ids) == 100
    assert all(is_id(each) for each in ids)
    assert max(ids) < new_id(1_800_000_001)


def test_foreign_and_broken_files_are_left_out(store: Store, tmp_path: Path) -> None:
    store.write(report())
    folder = tmp_path / "crashes"
    (folder / "notes.json").write_text("{}")
    (folder / f"{new_id(0)}.json").write_text("{")
    (folder / f"{new_id(1)}.json").write_text('{"id": 1}')
    (folder / f"{new_id(2)}.json").mkdir()
    (folder / f"{new_id(3)}.json").write_text('{"x":' * 100_000)
    assert [brief.id for brief in store.listing()] == [report().id]


def test_what_a_later_version_adds_is_no_obstacle(store: Store, tmp_path: Path) -> None:
    store.write(report())
    path = tmp_path / "crashes" / f"{report().id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "new": 1}))
    assert store.read(report().id) == report()


def test_texts_cannot_make_a_file_large() -> None:
    text = "\x00" * store_module.TEXT_MAX  # six bytes each, as JSON
    whole = store_module.encode(report(stderr=text + "end", stacks=text, exception=text))
    assert len(whole) < store_module.REPORT_BYTES
    assert json.loads(whole)["stderr"].endswith("end")


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "crashes").touch()
    with pytest.raises(OSError, match=r"exists|directory"):
        Store(tmp_path / "crashes").write(report())
    assert Store(tmp_path / "crashes").listing() == []
