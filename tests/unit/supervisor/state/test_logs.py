"""supervisor.state.logs: files stay bounded and their last words stay in them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from supervisor import log_handlers
from supervisor.state import logs
from tests.helpers.children import ROOT


def incarnation(folder: Path, model: str, number: int) -> list[Path]:
    """The two files of a worker, as the fleet names them."""
    base = f"worker.{model}.20250101T{number:06}.{number}"
    paths = [folder / f"{base}.{kind}" for kind in ("stdout", "stderr")]
    for path in paths:
        path.write_text("words")
    return paths


def test_the_oldest_incarnations_are_forgotten(tmp_path: Path) -> None:
    files = [incarnation(tmp_path, "a", number) for number in range(logs.CHILD_KEEP + 3)]
    logs.remove_old(tmp_path, "worker.a")
    kept = [path for pair in files[3:] for path in pair]
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    logs.remove_old(tmp_path, "worker.a")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("number", [1, logs.CHILD_KEEP - 2, logs.CHILD_KEEP])
def test_a_model_with_few_incarnations_keeps_them_all(tmp_path: Path, number: int) -> None:
    files = [incarnation(tmp_path, "a", each) for each in range(number)]
    logs.remove_old(tmp_path, "worker.a")
    assert len(list(tmp_path.iterdir())) == 2 * len(files)


@pytest.mark.parametrize("other", ["b", "ab", "a-b", "a.5", "a.b"])
def test_another_models_files_are_not_forgotten(tmp_path: Path, other: str) -> None:
    theirs = [incarnation(tmp_path, other, number) for number in range(logs.CHILD_KEEP)]
    mine = [incarnation(tmp_path, "a", number) for number in range(logs.CHILD_KEEP)]
    (tmp_path / "supervisor.log").write_text("words")
    logs.remove_old(tmp_path, "worker.a")
    assert all(path.exists() for pair in theirs + mine for path in pair)
    assert (tmp_path / "supervisor.log").exists()


def test_the_files_of_a_living_process_are_kept_whatever_their_names_say(tmp_path: Path) -> None:
    """A clock that was set back makes the newest files look like the oldest."""
    files = [incarnation(tmp_path, "a", number) for number in range(logs.CHILD_KEEP + 3)]
    logs.remove_old(tmp_path, "worker.a", set(files[1]))
    kept = [path for pair in [files[1], *files[3:]] for path in pair]
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_names_of_log_files_grow_when_summer_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 01:00 UTC a clock in Berlin is set back from 03:00 to 02:00."""
    before = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)

    class Clock(datetime):
        moment = before

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return cls.moment.astimezone(tz or ZoneInfo("Europe/Berlin"))

    monkeypatch.setattr(logs, "datetime", Clock)
    first = logs.stamped("gateway")
    Clock.moment = before + timedelta(minutes=31)
    assert first == "gateway.20261025T003000"
    assert logs.stamped("gateway") > first


@pytest.mark.parametrize("folder", ["gone", "file"])
def test_upkeep_of_a_folder_that_is_not_there_raises_nothing(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    logs.remove_old(tmp_path / folder, "worker.a")


# ── what children hold open ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "CHILD_BYTES", 100)
    monkeypatch.setattr(logs, "CHILD_TAIL", 10)


@pytest.mark.usefixtures("_small")
def test_a_large_file_is_cut_to_its_tail_and_goes_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "x.stderr"
    with open(path, "ab", buffering=0) as child:
        child.write(b"x" * 100 + b"last words")
        logs.cut_to_tail([path])
        assert path.read_bytes() == b"last words"
        child.write(b" and more")
        assert path.read_bytes() == b"last words and more"
        logs.cut_to_tail([path])
        assert path.read_bytes() == b"last words and more"


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_small_file_is_left_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.stderr"
    path.write_bytes(b"x" * size)
    logs.cut_to_tail([path])
    assert path.stat().st_size == size


@pytest.mark.usefixtures("_small")
def test_a_file_that_is_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "x.stderr"
    path.write_bytes(b"x" * 101)
    logs.cut_to_tail([tmp_path / "gone", path])
    assert path.stat().st_size == 10


@pytest.mark.usefixtures("_small")
def test_a_file_that_is_renamed_while_it_is_cut_stays_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, renamed = tmp_path / "spare.stderr", tmp_path / "worker.stderr"
    path.write_bytes(b"x" * 100 + b"last words")
    truncate = os.ftruncate

    def rename_and_truncate(descriptor: int, size: int) -> None:
        path.rename(renamed)
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", rename_and_truncate)
    logs.cut_to_tail([path])
    assert [each.name for each in tmp_path.iterdir()] == ["worker.stderr"]
    assert renamed.read_bytes() == b"last words"


def test_the_tail_is_long_enough_for_last_words() -> None:
    assert 64 * 1024 <= logs.CHILD_TAIL < logs.CHILD_BYTES


# ── the supervisor's own ─────────────────────────────────────────────────────────────────────────

SPEAK = """
import logging, sys
from pathlib import Path
from supervisor import log_handlers
from supervisor.state import logs
log_handlers.ROTATE_BYTES = 1000
logs.set_up(Path(sys.argv[1]))
for number in range(500):
    logging.getLogger("bulkhead.x").info("line %d", number)
logging.getLogger("bulkhead.x").warning("a warning")
"""


def test_the_log_is_rotated_and_only_warnings_reach_a_stderr_without_a_terminal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "supervisor.log"
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, str(path)],
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "TZ": "UTC"},
    )
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + log_handlers.ROTATE_KEEP
    assert all(file.stat().st_size <= 1000 for file in files)
    assert path.read_text().splitlines()[-1].endswith("WARNING a warning")
    assert "line 499" in path.read_text()
    assert len(done.stderr.splitlines()) == 1
    assert "a warning" in done.stderr


def test_a_stream_that_is_closed_becomes_no_other_file(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from supervisor.state import logs\n"
        "logs.hold_standard_streams()\n"
        "opened = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\n"
        "[os.write(stream, b'to nobody') for stream in (1, 2)]\n"
        "os.write(opened, f'{opened > 2} {os.read(0, 1)}'.encode())\n"
    )
    path = tmp_path / "file"
    shell = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    command = ["sh", "-c", shell, sys.executable, code, str(path)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert path.read_text() == "True b''"
