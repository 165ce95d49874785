"""Strict parsing of what came over a client's connection, after the fact.

An answer that HTTP does not end properly is not `whole`; a body that is no SSE where SSE is
announced, or a malformed chunk, raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_EVENT = re.compile(rb"(event: [a-z._]+\n)?data: (?P<data>[^\n]*)")


class Failed(Exception):
    """The server did not answer as HTTP or the contract has it; the message says how."""


@dataclass(frozen=True, slots=True)
class Event:
    """One SSE event, or a line of an NDJSON stream: when its last byte arrived, and its data."""

    at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer. `whole` = it ended exactly where HTTP says that it ends."""

    status: int
    headers: dict[str, str]
    body: bytes
    events: list[Event]
    whole: bool

    def json(self) -> Any:
        return json.loads(self.body)

    def objects(self) -> list[dict[str, Any]]:
        """The events' JSON objects, without `[DONE]`."""
        return [json.loads(event.data) for event in self.events if event.data != b"[DONE]"]

    @property
    def done(self) -> bool:
        return bool(self.events) and self.events[-1].data == b"[DONE]"

    @property
    def contents(self) -> list[Event]:
        """The events that carry a token, even one whose text is empty so far."""
        return [
            event
            for event in self.events
            if (b'"content":' in event.data or b'"delta":{}' in _dense(event.data))
            and b'"finish_reason":null' in _dense(event.data)
        ]

    def text(self) -> str:
        return "".join(
            choice["delta"].get("content") or ""
            for chunk in self.objects()
            for choice in chunk.get("choices", ())
        )

    def usages(self) -> list[dict[str, int]]:
        """What the chunks with usage say; an orderly stream has one, a cut one none."""
        return [chunk["usage"] for chunk in self.objects() if chunk.get("usage")]

    def usage(self) -> dict[str, int]:
        """The one usage chunk's counts. Raises Failed when there is none, or more."""
        found = self.usages()
        if len(found) != 1:
            raise Failed(f"{len(found)} usage chunks; status {self.status}, {self.body[-300:]!r}")
        return found[0]


def _dense(data: bytes) -> bytes:
    """mlx_lm.server puts spaces into its JSON."""
    return data.replace(b": ", b":")


def parse(pieces: Iterable[tuple[float, bytes]], *, closed: bool, fault: str) -> Answer:
    """The answer in `pieces`, each with its arrival time. `closed` = the server closed the
    connection, `fault` = what else ended it. Raises Failed when not even a head came."""
    parser = _Parser()
    for at, data in pieces:
        parser.feed(at, data)
    return parser.finish(closed, fault)


class _Parser:
    """Bytes with their arrival times to an Answer."""

    def __init__(self) -> None:
        self._raw = b""
        self._head: tuple[int, dict[str, str]] | None = None
        self._body: list[bytes] = []
        self._rest = b""
        self._events: list[Event] = []
        self._ended = False

    def feed(self, at: float, data: bytes) -> None:
        self._raw += data
        if self._head is None:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                return
            self._head, self._raw = parse_head(head), rest
        if self._head[1].get("transfer-encoding") == "chunked":
            self._dechunk(at)
        else:
            body, self._raw = self._raw, b""
            self._add(at, body)

    def finish(self, closed: bool, fault: str) -> Answer:
        if self._head is None:
            raise Failed(f"no answer: {fault or 'closed'}, {self._raw[:200]!r}")
        status, headers = self._head
        body = b"".join(self._body)
        if headers.get("transfer-encoding") == "chunked":
            whole = self._ended and not self._raw
        elif "content-length" in headers:
            whole = len(body) == int(headers["content-length"])
        else:
            whole = closed and not fault
        return Answer(status, headers, body, self._events, whole and not self._rest)

    def _dechunk(self, at: float) -> None:
        while not self._ended:
            line, found, rest = self._raw.partition(b"\r\n")
            if not found:
                return
            try:
                size = int(line, 16)
            except ValueError:
                raise Failed(f"a chunk of size {line[:40]!r}") from None
            if len(rest) < size + 2:
                return
            if rest[size : size + 2] != b"\r\n":
                raise Failed("a chunk without its end")
            self._raw = rest[size + 2 :]
            if size:
                self._add(at, rest[:size])
            else:
                self._ended = True

    def _add(self, at: float, body: bytes) -> None:
        assert self._head is not None
        self._body.append(body)
        kind = self._head[1].get("content-type", "")
        if kind.startswith("text/event-stream"):
            end = b"\n\n"
        elif kind.startswith("application/x-ndjson"):
            end = b"\n"
        else:
            return
        self._rest += body
        while end in self._rest:
            event, _, self._rest = self._rest.partition(end)
            if end == b"\n":
                self._events.append(Event(at, event))
            elif found := _EVENT.fullmatch(event):
                self._events.append(Event(at, found["data"]))
            elif not event.startswith(b":"):
                raise Failed(f"no SSE event: {event[:80]!r}")


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case."""
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(first.split()[1]), headers
