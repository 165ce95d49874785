"""supervisor.state.quarantine: what is quarantined outlives the supervisor."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest

from supervisor.background import Latest
from supervisor.state import files
from supervisor.state.quarantine import Quarantine
from tests.helpers.serving import DEADLINE


def test_quarantined_requests_survive_a_restart_with_their_time(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.json"
    first = Quarantine.load(path)
    digest = first.keyed(b"a request")
    expires = time.monotonic() + 100.0
    first.save([(digest, expires)])
    again = Quarantine.load(path)
    assert again.keyed(b"a request") == digest
    ((restored, at),) = again.quarantined()
    assert restored == digest
    assert at == pytest.approx(expires, abs=1.0)
    again.save([])
    assert Quarantine.load(path).quarantined() == []
    assert Quarantine.load(path).keyed(b"a request") == digest


def test_a_digest_is_known_to_whoever_has_the_key_alone(tmp_path: Path) -> None:
    ours, theirs = Quarantine.load(tmp_path / "ours"), Quarantine.load(tmp_path / "theirs")
    assert ours.keyed(b"a request") == ours.keyed(b"a request")
    assert ours.keyed(b"a request") != theirs.keyed(b"a request")
    assert ours.keyed(b"a request") != ours.keyed(b"another")
    assert b"a request" not in ours.keyed(b"a request")
    assert ours.keyed(b"") == b""
    ours.save([])
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"version": 2, "key": "AAAAAAAAAAAAAAAAAAAAAA==", "guilty": []}',
        b'{"version": 1, "key": "AAAA", "guilty": []}',
        b'{"version": 1, "key": "AAAAAAAAAAAAAAAAAAAAAA==", "guilty": [7]}',
    ],
)
def test_a_corrupt_file_is_as_good_as_none(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.json"
    path.write_bytes(content)
    quarantine = Quarantine.load(path)
    assert quarantine.quarantined() == []
    assert "forgot the quarantine" in caplog.text
    quarantine.save([(b"x", 1.0)])
    assert len(Quarantine.load(path).quarantined()) == 1


def test_a_missing_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Quarantine.load(tmp_path / "quarantine.json").quarantined() == []
    assert not caplog.records


def test_a_disk_that_cannot_be_written_costs_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = Quarantine.load(tmp_path / "gone" / "quarantine.json")
    quarantine.save([(b"x", 1.0)])
    assert "cannot write" in caplog.text


def test_a_disk_that_hangs_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, write = threading.Event(), files.write_atomically

    def hang(path: Path, data: bytes) -> None:
        assert answers.wait(DEADLINE)
        write(path, data)

    monkeypatch.setattr("supervisor.state.quarantine.write_atomically", hang)
    path, writer = tmp_path / "quarantine.json", Latest("x")
    quarantine = Quarantine.load(path, writer)
    quarantine.save([(b"x", 1.0)])
    quarantine.save([(b"x", 1.0), (b"y", 2.0)])
    answers.set()
    assert writer.wait(DEADLINE)
    assert [digest for digest, _ in Quarantine.load(path).quarantined()] == [b"x", b"y"]
