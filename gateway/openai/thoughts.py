"""A model's thoughts as clients send them back without reading them. Pure.

Anthropic's API has a `signature` for it, OpenAI's an `encrypted_content`. Ours holds the thought
itself, in base64: it is no secret, and lets a stateless client return what it does not show.
"""

from __future__ import annotations

import base64
import binascii

_MARK = b"bulkhead\0"


def seal(thought: str) -> str:
    """ASCII that `unseal` reads; never empty."""
    return base64.b64encode(_MARK + thought.encode("utf-8", "replace")).decode()


def unseal(sealed: str) -> str:
    """The thought that is in it; "" of what is another server's or broken."""
    try:
        plain = base64.b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return plain.removeprefix(_MARK).decode("utf-8", "replace") if plain.startswith(_MARK) else ""
