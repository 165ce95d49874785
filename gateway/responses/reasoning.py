"""The `encrypted_content` of reasoning items: the reasoning itself, for clients that send it back.

It hides nothing, since the summary beside it tells the same; it lets a stateless client return a
model's thoughts where it does not return summaries. Pure.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "bulkhead-1."


def concealed(text: str) -> str:
    """`text` as content that only `revealed` reads."""
    return _MARK + base64.urlsafe_b64encode(text.encode()).decode()


def revealed(content: str) -> str | None:
    """The text of such a content; None if it is another server's or broken."""
    if not content.startswith(_MARK):
        return None
    try:
        return base64.urlsafe_b64decode(content.removeprefix(_MARK)).decode()
    except (binascii.Error, UnicodeError, ValueError):
        return None
