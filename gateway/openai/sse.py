"""Server-sent events with JSON in them. Pure."""

from __future__ import annotations

EVENT_STREAM = "text/event-stream; charset=utf-8"
PING = b": ping\n\n"
"""A comment that keeps a silent stream open."""
_LINE_BREAKS = {b"\xc2\x85": b"\\u0085", b"\xe2\x80\xa8": b"\\u2028", b"\xe2\x80\xa9": b"\\u2029"}
"""NEL, LINE SEPARATOR and PARAGRAPH SEPARATOR, and JSON's other spelling of each."""


def in_one_line(body: bytes) -> bytes:
    """JSON text that every client takes for one line.

    To the standard only CR and LF end a line, and those JSON escapes. Clients that split at what
    Unicode calls line breaks, as Python's `splitlines` does, would cut an event in two.
    """
    if body.isascii():
        return body
    for letter, escaped in _LINE_BREAKS.items():
        if letter in body:
            body = body.replace(letter, escaped)
    return body


def data_event(body: bytes) -> bytes:
    """An event whose data is JSON text."""
    return b"data: " + in_one_line(body) + b"\n\n"


def named_event(name: str, body: bytes) -> bytes:
    """An event with a name, whose data is JSON text."""
    return b"event: " + name.encode() + b"\n" + data_event(body)


def recoveries_comment(recoveries: int) -> bytes:
    """The comment that tells how often another worker has gone on with a stream; nothing if none
    had to."""
    return b": recoveries %d\n\n" % recoveries if recoveries else b""
