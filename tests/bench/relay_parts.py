"""What parts of a token's way cost by themselves, one token at a time and with nothing between."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter

from gateway.dialect import AnswerHead
from gateway.openai.render import OpenAIRenderer
from gateway.openai.render_chat import ChatShape
from gateway.relay.attempt import ChoiceState
from supervisor.wire.codec import encode
from supervisor.wire.frames import FromEngine, Generate, Text, Token
from supervisor.wire.stream import FrameStream
from tests.helpers.fakes.engine import Script, ScriptedEngine
from worker.engine.thread import Job, Prepared
from worker.sink import SocketSink

_TOKENS = 200
"""Of one measurement; the fastest of many counts, since all else is other programs."""
_REPETITIONS = 100
_ASKS_NOTHING = Generate("r", Text("on"), 0.0)


def engine_rate(streams: int, tokens: int) -> float:
    """Tokens a second that the scripted engine makes for nobody."""
    engine = ScriptedEngine(Script(crowd=streams))
    for number in range(streams):
        request = Generate(f"r{number}", Text("on"), 0.0, max_tokens=tokens)
        engine.insert(Job(request, Prepared([0] * 8), _Nobody()))
    begun = time.perf_counter()
    while engine.busy:
        engine.step()
    return streams * tokens / (time.perf_counter() - begun)


def parts() -> dict[str, float]:
    """Seconds a token by part, in the order of its way."""
    token = Token(1234, "w1234 ")
    encoded = encode(token)
    renderer = OpenAIRenderer(ChatShape, AnswerHead(0.0, "crowd001", 1))
    renderer.token(0, token)  # the first is another
    event = renderer.token(0, token)
    noting = ChoiceState(_ASKS_NOTHING)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        sink = SocketSink(ours, lambda _: None)
        sending = _fastest(lambda: sink.send([token]), lambda: theirs.recv(2**20))
    return {
        "worker: encode": _fastest(lambda: encode(token)),
        "worker: send": sending - _fastest(lambda: encode(token)),
        "gateway: decode, hand over": _fastest(_handed_over(encoded)),
        "gateway: note": _fastest(lambda: noting.note(token)),
        "gateway: render": _fastest(lambda: renderer.token(0, token)),
        "gateway: write": _written(event),
    }


class _Nobody:
    """A `Sink` that nobody reads."""

    def send(self, frames: Sequence[FromEngine]) -> None:
        pass

    def close(self) -> None:
        pass


def _handed_over(encoded: bytes) -> Callable[[], object]:
    """From the bytes that have arrived to the reader, who does not have to wait."""
    stream: FrameStream[FromEngine] = FrameStream(FromEngine)

    def one() -> None:
        stream.data_received(encoded)
        stream.take(Token)

    return one


class _Nowhere(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False


def _written(event: bytes) -> float:
    """By aiohttp, down to its transport."""

    async def measure() -> float:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.transport = _Nowhere()
        writer = StreamWriter(protocol, loop)
        writer.enable_chunking()
        await writer.write_headers("HTTP/1.1 200 OK", {})  # type: ignore[arg-type]
        writer.send_headers()

        def one() -> None:
            try:
                writer.write(event).send(None)
            except StopIteration:
                return

        return _fastest(one)

    return asyncio.run(measure())


def _fastest(act: Callable[[], object], between: Callable[[], object] | None = None) -> float:
    """Seconds of one call; `between` measurements the other is called."""
    best = float("inf")
    for _ in range(_REPETITIONS):
        begun = time.perf_counter()
        for _ in range(_TOKENS):
            act()
        best = min(best, time.perf_counter() - begun)
        if between is not None:
            between()
    return best / _TOKENS


if __name__ == "__main__":
    for _name, _seconds in parts().items():
        print(f"{_name:28} {_seconds * 1e6:.2f} us")
