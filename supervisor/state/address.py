"""The address of the running instance, which it leaves in its state directory for commands."""

from __future__ import annotations

from pathlib import Path

import msgspec

from supervisor.state.files import write_atomically

_NAME = "address.json"


class Address(msgspec.Struct, frozen=True):
    """How a running instance is reached. `api_keys_file` has its keys, "" = it asks for none."""

    url: str
    api_keys_file: str = ""


def announce(root: Path, address: Address) -> None:
    """Leave the address in the state directory `root`. Raises OSError."""
    write_atomically(root / _NAME, msgspec.json.encode(address))


def withdraw(root: Path) -> None:
    """Remove the address, if there is one. Raises OSError."""
    (root / _NAME).unlink(missing_ok=True)


def find(root: Path) -> Address | None:
    """The address that was left in `root`; None when there is none that can be read."""
    try:
        return msgspec.json.decode((root / _NAME).read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return None
