"""Streams that are read while faults happen."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

SECONDS = 120.0
"""For one answer, with all that happens to it."""
_QUESTIONS = (
    "What is Bulkhead?",
    "Tell me about the sea.",
    "Who are you?",
    "What is a worker?",
    "How are you today?",
    "What does the supervisor do?",
    "Tell me a story.",
    "What is memory pressure?",
)
_TOKENS = 240
_TIMES = 40


@dataclass
class Stream:
    """One streamed chat: what came, when (`time.monotonic`), and how it ended."""

    number: int
    is_long: bool = False
    """Whether its prompt takes memory that a worker has not needed before."""
    text: str = ""
    at: list[float] = field(default_factory=list)
    """When each token's event came."""
    code: str = ""
    """Of the typed error that ended it."""
    is_whole: bool = False
    recoveries: int = 0
    lost: str = ""
    """Why it has no end that the contract knows."""

    def body(self) -> bytes:
        """Sampled, but with a seed: the same request has the same answer."""
        question = _QUESTIONS[self.number % len(_QUESTIONS)] * (_TIMES if self.is_long else 1)
        return json.dumps(
            {
                "model": "demo",
                "messages": [{"role": "user", "content": question}],
                "max_tokens": _TOKENS,
                "temperature": 0.8,
                "seed": self.number,
                "stream": True,
                "ignore_eos": True,
            }
        ).encode()

    def run(self, host: str, port: int) -> None:
        """Ask, and read to the end. Never raises for what a server may do."""
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", self.body(), headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    self._refused(json.loads(response.read()))
                    return
                for line in response:
                    self._read_line(line)
            if not (self.is_whole or self.code):
                self.lost = "cut without a word"
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.lost = type(error).__name__
        finally:
            connection.close()

    def pause(self, since: float) -> float:
        """The longest time without a token from then on, seconds; 0 = it had ended."""
        times = [since, *(at for at in self.at if at > since)]
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def _read_line(self, line: bytes) -> None:
        if line.startswith(b": recoveries "):
            self.recoveries = int(line.removeprefix(b": recoveries "))
        elif line == b"data: [DONE]\n":
            self.is_whole = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self._refused(event)
            elif event["choices"] and event["choices"][0]["finish_reason"] is None:
                delta = event["choices"][0]["delta"]
                self.at.append(time.monotonic())
                self.text += delta.get("reasoning_content") or delta.get("content") or ""

    def _refused(self, body: dict[str, Any]) -> None:
        self.code = str(body["error"]["code"])


@dataclass
class Traffic:
    """Several streams at the same time, each on a thread of its own."""

    streams: list[Stream]
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, host: str, port: int) -> None:
        for stream in self.streams:
            thread = threading.Thread(target=stream.run, args=(host, port), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def tokens(self) -> int:
        """That all have got so far."""
        return sum(len(stream.at) for stream in self.streams)

    @property
    def runs(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the ends; who has none is lost."""
        deadline = time.monotonic() + SECONDS
        for stream, thread in zip(self.streams, self._threads, strict=True):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                stream.lost = "no end"
