"""gateway.http.keys: keys that change while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from gateway.http import keys
from gateway.http.keys import APIKeys
from supervisor.errors import InvalidAPIKey


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """As editors do: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    os.replace(new, path)


def named(accepted: APIKeys, key: str) -> str | None:
    """The name of the key; None when it is not accepted."""
    try:
        return asyncio.run(accepted.check({"api-key": key}))
    except InvalidAPIKey:
        return None


def test_without_a_file_anyone_may_come_in() -> None:
    everybody = APIKeys("")
    assert not everybody.required
    assert named(everybody, "anything") == ""


def test_a_revoked_key_stops_working_at_once_and_a_new_one_works(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, "sk-old # old\nsk-kept # kept\n")
    accepted = APIKeys(str(path))
    assert accepted.required
    assert [named(accepted, key) for key in ("sk-old", "sk-kept")] == ["old", "kept"]
    write(path, "sk-kept # kept\nsk-new # new\n")
    told = [named(accepted, key) for key in ("sk-old", "sk-kept", "sk-new")]
    assert told == [None, "kept", "new"]


def test_a_file_of_the_same_size_written_in_place_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write(path, "sk-1\n")
    accepted = APIKeys(str(path))
    assert named(accepted, "sk-1") == "line-1"
    path.write_text("sk-2\n")
    os.utime(path, ns=(1, 1))
    assert [named(accepted, key) for key in ("sk-1", "sk-2")] == [None, "line-1"]


@pytest.mark.parametrize("how", ["removed", "empty", "open to others", "a folder"])
def test_a_file_that_cannot_be_used_lets_nobody_in_until_it_can(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "_REWRITE_SECONDS", 0.0)
    path = tmp_path / "keys"
    write(path, "sk-1 # one\n")
    accepted = APIKeys(str(path))
    assert named(accepted, "sk-1") == "one"
    match how:
        case "removed":
            path.unlink()
        case "empty":
            write(path, "")
        case "open to others":
            path.chmod(0o644)
        case "a folder":
            path.unlink()
            path.mkdir()
    with caplog.at_level(logging.INFO):
        assert named(accepted, "sk-1") is None
        assert named(accepted, "sk-1") is None
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert str(path) in line
    assert "sk-1" not in caplog.text
    if path.is_dir():
        path.rmdir()
    write(path, "sk-1 # one\n")
    assert named(accepted, "sk-1") == "one"


def test_a_gateway_that_begins_without_the_file_serves_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_REWRITE_SECONDS", 0.0)
    accepted = APIKeys(str(tmp_path / "keys"))
    assert named(accepted, "sk-1") is None
    write(tmp_path / "keys", "sk-1\n")
    assert named(accepted, "sk-1") == "line-1"


def test_a_file_that_is_being_written_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    write(path, "sk-1\n")
    accepted = APIKeys(str(path))

    async def finish(_seconds: float) -> None:
        path.write_text("sk-2\n")

    async def scenario() -> str:
        await accepted.check({"api-key": "sk-1"})
        path.write_text("")
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", finish)
            return await accepted.check({"api-key": "sk-2"})

    assert asyncio.run(scenario()) == "line-1"


def test_a_file_that_cannot_be_used_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    write(path, "sk-1\n")
    accepted, waits = APIKeys(str(path)), 0

    async def wait(_seconds: float) -> None:
        nonlocal waits
        waits += 1

    async def scenario() -> None:
        await accepted.check({"api-key": "sk-1"})
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", wait)
            for _ in range(3):
                with pytest.raises(InvalidAPIKey):
                    await accepted.check({"api-key": "sk-1"})

    asyncio.run(scenario())
    assert waits == 1
