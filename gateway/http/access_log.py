"""The access log: one line a request, at its end. Pure.

A line begins with the request's id; all else is `name=value`, and a value that holds anything but
printable ASCII without spaces and quotes is a JSON string. No line holds a key, a query or
anything of a body but the model's name. docs/operations.md lists the names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

_BARE = re.compile(r"[!#-&(-<>-\[\]-~]+")
"""Values that need no quotes: printable ASCII without space, quotes, `=` and backslash."""
_LONGEST = 100
"""Characters of a value that a client chose."""
CLIENT_LEFT = "client_left"
"""The code of a request whose client left before its end."""


@dataclass(slots=True)
class AccessRecord:
    """What is known of one request; handlers fill it in. Times in monotonic seconds."""

    begun: float
    method: str
    path: str
    client: str
    key: str = ""
    """The name of the key that was presented."""
    model: str = ""
    """As asked for, then as served."""
    worker: str = ""
    stream: bool | None = None
    status: int | None = None
    """None = the client left before it was known."""
    code: str = ""
    """Of the error, also of one inside a stream whose status says 200."""
    finish: str = ""
    """The reasons of the choices' ends."""
    granted_at: float | None = None
    """When a worker had it: until then it waited."""
    first_at: float | None = None
    """When the first token came."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    recoveries: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """What was refused before any handler: `host`, `origin`."""

    def line(self, request_id: str, now: float) -> str:
        """The line of a request that has ended."""
        said: list[tuple[str, object]] = [
            ("client", self.client),
            ("key", self.key or None),
            ("method", self.method),
            ("path", self.path),
            ("status", self.status or "-"),
            ("code", self.code or None),
            *self.refused.items(),
            ("model", self.model or None),
            ("worker", self.worker or None),
            ("stream", None if self.stream is None else "yes" if self.stream else "no"),
            ("finish", self.finish or None),
            ("prompt", self.prompt_tokens),
            ("cached", self.cached_tokens),
            ("completion", self.completion_tokens),
            ("queue_s", _seconds(self.begun, self.granted_at)),
            ("ttft_s", _seconds(self.begun, self.first_at)),
            ("total_s", _seconds(self.begun, now)),
            ("tokens_per_s", self._speed(now)),
            ("recoveries", self.recoveries or None),
        ]
        pairs = (f"{name}={_quoted(str(value))}" for name, value in said if value is not None)
        return " ".join((request_id, *pairs))

    def _speed(self, now: float) -> str | None:
        """Tokens a second from the first one on; None of fewer than two."""
        count, first = self.completion_tokens, self.first_at
        if count is None or count < 2 or first is None or now <= first:
            return None
        return f"{(count - 1) / (now - first):.1f}"


def _seconds(begun: float, at: float | None) -> str | None:
    return None if at is None else f"{at - begun:.3f}"


def _quoted(value: str) -> str:
    if len(value) > _LONGEST:
        value = value[:_LONGEST] + "…"
    return value if _BARE.fullmatch(value) else json.dumps(value)
