"""supervisor.processes.fatal_signal: a fatal signal is known before the process has ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from supervisor.processes.fatal_signal import FatalSignalReader

DUMP = b"Fatal Python error: %s\n\nThread 0x01 (most recent call first):\n  File x\n"
SECONDS = 20


def heard(tmp_path: Path, *pieces: bytes) -> list[str]:
    """What is told of a child that writes these pieces, the last of them in its last moment."""
    told: list[str] = []

    async def scenario() -> None:
        ours, theirs = os.pipe()
        said = asyncio.Event()

        def on_fatal(how: str) -> None:
            told.append(how)
            said.set()

        reader = FatalSignalReader(ours, tmp_path / "stderr", on_fatal)
        for piece in pieces[:-1]:
            os.write(theirs, piece)
            await asyncio.wait_for(said.wait(), SECONDS)
        os.write(theirs, pieces[-1])
        os.close(theirs)
        reader.close()
        reader.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(ours)

    asyncio.run(scenario())
    return told


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (b"Aborted", "SIGABRT"),
        (b"Segmentation fault", "SIGSEGV"),
        (b"Bus error", "SIGBUS"),
        (b"Illegal instruction", "SIGILL"),
        (b"Something new", "a fatal error"),
    ],
)
def test_the_signal_is_told_once_and_all_text_is_kept(
    tmp_path: Path, words: bytes, name: str
) -> None:
    (tmp_path / "stderr").write_bytes(b"earlier\n")
    assert heard(tmp_path, DUMP % words, b"more\n") == [name]
    assert (tmp_path / "stderr").read_bytes() == b"earlier\n" + DUMP % words + b"more\n"


def test_a_first_line_in_pieces_is_told(tmp_path: Path) -> None:
    """As faulthandler writes it, and as the reader may meet it."""

    async def scenario() -> None:
        ours, theirs = os.pipe()
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        reader = FatalSignalReader(ours, tmp_path / "stderr", told.set_result)
        for piece in (b"Fatal Python error: ", b"Abor", b"ted", b"\n\nThread"):
            os.write(theirs, piece)
            for _ in range(3):  # rounds of the loop, so that each piece is read by itself
                await asyncio.sleep(0)
        assert await asyncio.wait_for(told, SECONDS) == "SIGABRT"
        os.close(theirs)
        reader.close()

    (tmp_path / "stderr").touch()
    asyncio.run(scenario())
    assert (tmp_path / "stderr").read_bytes() == b"Fatal Python error: Aborted\n\nThread"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_costs_the_text_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "stderr").symlink_to("/dev/full")
    assert heard(tmp_path, DUMP % b"Aborted", b"more\n") == ["SIGABRT"]
    assert "last words are lost" in caplog.text


def test_text_that_is_found_after_the_end_is_kept_and_not_told(tmp_path: Path) -> None:
    assert heard(tmp_path, DUMP % b"Aborted") == []
    assert (tmp_path / "stderr").read_bytes() == DUMP % b"Aborted"
