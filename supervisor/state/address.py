"""The address of the running instance, which it leaves in its state directory for commands."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from supervisor.state.files import read_json, write_atomically

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
    """Leave it again if somebody has removed it. Raises OSError."""
    if not (root / _NAME).exists():
        announce(root, address)


def withdraw(root: Path) -> None:
    """Remove the address, if there is one. One that can't be removed leads commands to a server
    that does not answer, which they say."""
    try:
        (root / _NAME).unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", root / _NAME, error.strerror)


def find(root: Path) -> Address | None:
    """The address that was left in `root`; None when there is none that can be read."""
    try:
        return read_json(root / _NAME, Address)
    except (OSError, ValueError):
        return None
