"""Signatures of thoughts. Pure.

Anthropic's API gives each thought a signature, with which clients send it back. Ours holds the
thought itself where the client did not want to see it; it is no secret of this machine's.
"""

from __future__ import annotations

import base64
import binascii

_MARK = b"bulkhead\0"


def sign(thought: str) -> str:
    """The signature that holds `thought`; of "" for one that the client has been shown."""
    return base64.b64encode(_MARK + thought.encode("utf-8", "replace")).decode()


def thought_in(signature: str) -> str:
    """The thought that a signature of ours holds; "" for any other's."""
    try:
        plain = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return plain.removeprefix(_MARK).decode("utf-8", "replace") if plain.startswith(_MARK) else ""
