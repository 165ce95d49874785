"""How long clients may take, and how long they are left without a word. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_ANNOUNCED = ("x-stainless-read-timeout", "x-stainless-timeout")
"""OpenAI's SDKs: Python tells how long it waits for the next bytes, JavaScript how long for the
headers, in whole seconds."""
_HOLD_SHARE = 0.8
_WORD_SHARE = 0.5
_LEAST_SILENCE = 0.1
"""However impatient a client is, its pings cost no more than so many seconds apart."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Limits, in seconds where nothing else is said. A client that announces a timeout makes two of
    them shorter, see `headers_due` and `longest_silence`."""

    headers: float = 5.0
    """The headers of a stream that is worked on leave after so long, token or not."""
    silence: float = 10.0
    """A stream that has begun is never silent for longer."""
    request_head: float = 30.0
    """From the first byte of a request, or the connection's beginning, to the end of its
    headers."""
    keep_alive: float = 75.0
    """Between two requests of a connection. Proxies that keep connections for a minute, as nginx
    does, must not find them closed."""
    body: float = 30.0
    """In each such time a body grows by `pace` bytes a second, until it is whole."""
    pace: float = 1024.0
    reading: float = 60.0
    """A client that has read nothing for so long, though there is something, is let go; it may
    take twice as long until that is seen."""
    stalling: float = 1.0
    """Whose request is not here whole after so long may have to make room for others; of many who
    come at once nobody's can be."""

    announced: float = 5.0
    """A body counts with the size that was announced for so long, then with what has come of it."""
    lingering: float = 10.0
    """How long a client may go on with a large body whose request is answered already."""

    def hold(self, configured: float, announced: float | None) -> float:
        """How long a request may wait before it is refused: less than its client waits, so that
        this gets our answer and not its own timeout."""
        return configured if announced is None else min(configured, _HOLD_SHARE * announced)

    def headers_due(self, begun: float, accepted: float, announced: float | None) -> float:
        """When a stream's headers leave at the latest, of a request that has `begun` and was
        `accepted` by a worker at these times."""
        due = accepted + self.headers
        return due if announced is None else min(due, begun + _WORD_SHARE * announced)

    def longest_silence(self, announced: float | None) -> float:
        """How long the client may be left without a word once its stream has begun."""
        if announced is None:
            return self.silence
        return max(_LEAST_SILENCE, min(self.silence, _WORD_SHARE * announced))

    @property
    def body_share(self) -> float:
        """The bytes of a body that have to come in the time of `body`."""
        return self.pace * self.body


def announced_timeout(headers: Mapping[str, str]) -> float | None:
    """How many seconds the client says that it waits; None when it says nothing of use."""
    announced = [_seconds(headers[name]) for name in _ANNOUNCED if name in headers]
    return min((each for each in announced if each is not None), default=None)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
