from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.models.size_cache import MAX_ENTRIES, MeasuredLoad, SizeCache, SizesFile, key
from supervisor.state.files import MAX_FILE_BYTES

SEEN = MeasuredLoad("coder", 18_000_000_000, 21.5, 1_769_000_000.0)


def test_a_measurement_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    SizeCache.load(path).remember("a", SEEN)
    assert SizeCache.load(path).get("a") == SEEN
    assert SizeCache.load(path).get("b") is None


def test_a_new_measurement_replaces_the_old(tmp_path: Path) -> None:
    sizes = SizeCache(tmp_path / "sizes.json")
    sizes.remember("a", SEEN)
    newer = MeasuredLoad("coder", 17_000_000_000, 20.0, 1_769_000_100.0)
    sizes.remember("a", newer)
    assert (sizes.get("a"), len(sizes)) == (newer, 1)
    assert SizeCache.load(tmp_path / "sizes.json").get("a") == newer


def test_the_least_recently_measured_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    sizes = SizeCache(path, SizesFile(1, {str(i): SEEN for i in range(MAX_ENTRIES)}))
    sizes.remember("0", SEEN)  # no longer the oldest
    sizes.remember("new", SEEN)
    for seen in (sizes, SizeCache.load(path)):
        assert len(seen) == MAX_ENTRIES
        assert seen.get("1") is None
        assert seen.get("0") == seen.get("2") == seen.get("new") == SEEN


def test_a_full_file_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    long_names = MeasuredLoad("m" * 200, 2**49, 999_999.5, 1_769_000_000.123)
    full = {f"{i:032}": long_names for i in range(MAX_ENTRIES)}
    sizes = SizeCache(path, SizesFile(1, full))
    sizes.save_use_counts({f"{i:0200}": 2**53 - 1 for i in range(MAX_ENTRIES)})
    sizes.remember("last", SEEN)
    assert path.stat().st_size < MAX_FILE_BYTES
    again = SizeCache.load(path)
    assert len(again) == MAX_ENTRIES
    assert again.use_count("0" * 200) == 2**53 - 1


def test_uses_survive_a_restart_and_are_written_when_they_are_news(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    sizes = SizeCache.load(path)
    sizes.save_use_counts({"coder": 0})
    assert not path.exists()
    sizes.save_use_counts({"coder": 7, "fast": 1})
    sizes.remember("a", SEEN)
    again = SizeCache.load(path)
    assert [again.use_count(name) for name in ("coder", "fast", "other")] == [7, 1, 0]
    path.unlink()
    again.save_use_counts({"coder": 7})
    assert not path.exists()


def test_the_uses_that_changed_least_recently_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    sizes = SizeCache.load(path)
    sizes.save_use_counts({str(i): 1 for i in range(MAX_ENTRIES)})
    sizes.save_use_counts({"0": 2, "new": 1})
    for seen in (sizes, SizeCache.load(path)):
        assert [seen.use_count(name) for name in ("0", "1", "2", "new")] == [2, 0, 1, 1]


def test_what_cannot_be_a_count_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    uses = {"a": -1, "b": 2**53, "c": 3}
    path.write_text(json.dumps({"version": 1, "sizes": {}, "uses": uses}))
    assert [SizeCache.load(path).use_count(name) for name in "abc"] == [0, 0, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b" " * (MAX_FILE_BYTES + 1),
        b'{"version": 2, "sizes": {}}',
        b'{"version": 1, "sizes": {"a": {"model": "x"}}}',
        b'{"version": 1, "sizes": {"a": 7}}',
        b'{"version": 1, "sizes": {}, "uses": {"a": "many"}}',
    ],
)
def test_a_corrupt_file_is_as_good_as_none(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sizes.json"
    path.write_bytes(content)
    sizes = SizeCache.load(path)
    assert len(sizes) == 0
    assert "forgot the measured model sizes" in caplog.text
    sizes.remember("a", SEEN)
    assert SizeCache.load(path).get("a") == SEEN


def test_a_missing_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(SizeCache.load(tmp_path / "sizes.json")) == 0
    assert not caplog.records


@pytest.mark.parametrize("size", [0, -1, 2**20 - 1, 2**50])
def test_what_cannot_be_a_size_is_not_believed(size: int, tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    entry = {"model": "a", "memory_bytes": size, "load_seconds": 1.0, "at": 1.0}
    path.write_text(json.dumps({"version": 1, "sizes": {"a": entry}}))
    assert SizeCache.load(path).get("a") is None
    sizes = SizeCache(tmp_path / "other.json")
    sizes.remember("a", MeasuredLoad("a", size, 1.0, 1.0))
    assert len(sizes) == 0


def test_a_directory_that_cannot_be_written_costs_only_the_memory_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = SizeCache(tmp_path / "gone" / "sizes.json")
    sizes.remember("a", SEEN)
    sizes.save_use_counts({"m": 3})
    assert sizes.get("a") == SEEN
    assert sizes.use_count("m") == 3
    assert caplog.text.count("sizes.json") == 1
    (tmp_path / "gone").mkdir()
    sizes.save_use_counts({"m": 4})
    assert SizeCache.load(tmp_path / "gone/sizes.json").get("a") == SEEN


def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    assert len(SizeCache.load(tmp_path)) == 0


def test_the_key_changes_with_files_and_settings_alone() -> None:
    files = ("config.json 10 1", "model.safetensors 20 2")
    settings = {"draft": "", "adapter": "", "context": 0}
    same = key(files, settings)
    assert key(list(files), dict(reversed(settings.items()))) == same
    others = {
        key((*files, "x 1 1"), settings),
        key(("config.json 10 1", "model.safetensors 20 3"), settings),
        key(files, {**settings, "draft": "small"}),
        key(files, {**settings, "context": 4096}),
        key(files, {}),
        key((), settings),
    }
    assert len(others) == 6
    assert same not in others


def test_a_file_of_before_there_was_growth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    old = {"model": "m", "memory_bytes": 2**30, "load_seconds": 1.5, "at": 1_769_000_000.0}
    path.write_text(
        json.dumps({"version": 1, "sizes": {"a": old, "b": old | {"excess_bytes": -1}}})
    )
    sizes = SizeCache.load(path)
    assert sizes.get("a") == MeasuredLoad("m", 2**30, 1.5, 1_769_000_000.0, excess_bytes=0)
    assert sizes.get("b") is None
    grown = MeasuredLoad("m", 2**30, 1.5, 1_769_000_000.0, excess_bytes=5)
    sizes.remember("a", grown)
    assert SizeCache.load(path).get("a") == grown
