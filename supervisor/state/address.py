"""The address of the running instance, which it leaves in its state directory for commands."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from supervisor.state.files import read_json, write_atomically
from supervisor.wire.text import reason

log = logging.getLogger("bulkhead.supervisor")

_NAME = "address.json"


class Address(msgspec.Struct, frozen=True):
    """How a running instance is reached. `api_keys_file` has its keys, "" = it asks for none."""

    url: str
    api_keys_file: str = ""


def announce(root: Path, address: Address) -> None:
    """Leave the address in the state directory `root`. Raises OSError."""
    write_atomically(root / _NAME, msgspec.json.encode(address))


def keep(root: Path, address: Address) -> None:
    """Leave it again if somebody has removed or broken it. Raises OSError."""
    try:
        is_there = find(root) == address
    except Unreadable:
        is_there = False
    if not is_there:
        announce(root, address)


def withdraw(root: Path) -> None:
    """Remove the address, if there is one. One that can't be removed leads commands to a server
    that does not answer, which they say."""
    try:
        (root / _NAME).unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", root / _NAME, error.strerror)


class Unreadable(Exception):
    """What is in the address's place cannot be read; the message says which and why."""


def find(root: Path) -> Address | None:
    """The address that was left in `root`; None when there is none. Raises Unreadable."""
    path = root / _NAME
    try:
        return read_json(path, Address)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise Unreadable(f"cannot read {path}: {reason(error)}") from None
