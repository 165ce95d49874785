"""From a parsed request to its tokens: connections to the supervisor and to workers.

`Relay.start` takes a lease and hands the request to the granted worker; the `Generation` it
returns yields frames until exactly one end: an `End` frame of every choice, or an error of the
contract.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import closing
from typing import TypeVar

from gateway.relay.attempt import AT_ONCE, WorkerStream, WorkerUnreachable
from gateway.relay.control import (
    ANSWER_SECONDS,
    LACKING,
    ControlStream,
    receive_answer,
    supervisor_gone,
    too_many_connections,
    unexpected_answer,
    unsendable,
)
from gateway.relay.counting import Counting
from gateway.relay.generation import Generation, WaitForEnd
from gateway.relay.preconnect import Preconnect
from supervisor.wire.codec import ProtocolError
from supervisor.wire.control_frames import (
    Acquire,
    Action,
    AskCrashes,
    Counter,
    Crashes,
    Expire,
    Granted,
    Happened,
    Inquire,
    Manage,
    Managed,
    Report,
    ToGateway,
    UseCounter,
    Warm,
    WatchEvents,
)
from supervisor.wire.frames import Chat, Embed, Frame, FromEngine, Generate
from supervisor.wire.listener import reach

log = logging.getLogger("bulkhead.gateway")

A = TypeVar("A", bound=Frame)

_CONNECT_SECONDS = 2.0
"""How long a granted worker may refuse connections before it counts as faulty."""
_MISSING_SECONDS = 10.0
"""How long a socket may be missing. Somebody has removed it, and it is made again in a second."""
_RETRY_SECONDS = 0.02
START_SECONDS = 90.0
"""How long the supervisor may take to have a process that counts."""


class Relay:
    """Connects to the supervisor's control socket and to workers, anew for each request."""

    def __init__(self, control: str, at_once: int = AT_ONCE) -> None:
        """`at_once` is how many choices of a request its worker is given at the same time."""
        self._control = control
        self._at_once = at_once
        self._leases: Preconnect[ToGateway] = Preconnect(ToGateway)
        self._workers: Preconnect[FromEngine] = Preconnect(FromEngine)
        self._counting = Counting()

    async def start(
        self,
        choices: Sequence[Generate | Embed],
        model: str,
        hold: float,
        digest: bytes = b"",
        keep_alive: float | None = None,
    ) -> Generation:
        """Wait up to `hold` seconds for a worker and give it the request's choices. Raises
        BulkheadError.

        One lease holds them all, for which the first one's id stands; each has a connection of its
        own to the worker. Equal requests have an equal `digest`. `keep_alive` is as `Acquire`'s.
        Cancelling gives the place back.
        """
        lease = await self._connect_control()
        generation = Generation(choices, lease, hold, self._connect_worker, self._at_once)
        try:
            places, at_once = len(choices), self._at_once if self._at_once < len(choices) else 0
            lease.send(
                Acquire(choices[0].request_id, model, hold, digest, keep_alive, places, at_once)
            )
            await generation.begin()
            # uvloop sends at the end of a turn: what follows here would hold the request back.
            await asyncio.sleep(0)
        except BaseException as error:
            generation.close()
            if isinstance(error, ProtocolError):
                raise unsendable(choices[0].request_id, error) from None
            raise
        # Not before: this request's own frames go first.
        self._leases.refill(self._control)
        self._workers.refill(generation.socket)
        return generation

    async def close(self) -> None:
        """Close the connections that were opened early."""
        self._leases.close()
        self._workers.close()

    async def report(self, model: str = "", *, files: bool = False) -> Report:
        """The state of the server, or of a model; with what is known of all models' files on
        request. Raises BulkheadError, also ModelNotFound."""
        return await self._ask(Inquire(model, files), Report)

    async def count(self, chat: Chat, model: str, now: float, request_id: str = "-") -> int:
        """Tokens of the prompt that a worker would make of the chat at the time `now` (seconds
        since the epoch). Loads no model; waits for the model's tokenizer to be read the first time.
        Raises BulkheadError. Cancelling gives up."""
        with self._counting.place(), closing(await self._connect_control()) as use:
            use.send(UseCounter(model))
            counter = await receive_answer(use, START_SECONDS)
            if not isinstance(counter, Counter):
                raise unexpected_answer()
            return await self._counting.count(use, counter, chat, now, request_id)

    async def manage(self, request_id: str, action: Action, model: str, hold: float) -> Managed:
        """Load, unload, pin or unpin by hand; only a load waits, up to `hold` seconds. Raises
        BulkheadError. Cancelling gives the wait up, and cancels no load."""
        return await self._ask(Manage(request_id, action, model, hold), Managed, hold)

    async def warm(
        self, request_id: str, model: str, hold: float, keep_alive: float | None
    ) -> Managed:
        """Have the model loaded, and wait for that up to `hold` seconds; `keep_alive` is as
        `Acquire`'s. Raises BulkheadError. Cancelling gives the wait up, and cancels no load."""
        return await self._ask(Warm(request_id, model, hold, keep_alive), Managed, hold)

    async def expire(self, model: str) -> Managed:
        """Have the model unloaded once nobody uses it, unless it is pinned. Raises
        BulkheadError."""
        return await self._ask(Expire(model), Managed)

    async def crashes(self, name: str = "") -> bytes:
        """JSON: the crash report with that id, or the list of all. Raises BulkheadError."""
        return (await self._ask(AskCrashes(name), Crashes)).body

    async def watch(self) -> ControlStream:
        """A stream of `Happened`, of all that happens from now on; the caller closes it. Raises
        BulkheadError."""
        stream = await self._connect_control()
        try:
            stream.send(WatchEvents())
            if not isinstance(await receive_answer(stream, ANSWER_SECONDS), Happened):
                raise unexpected_answer()
        except BaseException:
            stream.close()
            raise
        return stream

    async def _ask(self, question: Frame, kind: type[A], hold: float = 0.0) -> A:
        """The supervisor's one answer, which has to be of that kind. Raises BulkheadError."""
        with closing(await self._connect_control()) as stream:
            stream.send(question)
            answer = await receive_answer(stream, hold + ANSWER_SECONDS)
        if not isinstance(answer, kind):
            raise unexpected_answer()
        return answer

    async def _connect_control(self) -> ControlStream:
        if (open_already := self._leases.take(self._control)) is not None:
            return open_already
        deadline = asyncio.get_running_loop().time() + _MISSING_SECONDS
        while True:
            try:
                return await reach(self._control, ToGateway)
            except OSError as error:
                if error.errno in LACKING:
                    raise too_many_connections() from None
                if asyncio.get_running_loop().time() > deadline:
                    log.error("cannot reach the supervisor: %s", error.strerror or error)
                    raise supervisor_gone() from None
            await asyncio.sleep(_RETRY_SECONDS)

    async def _connect_worker(self, granted: Granted, wait_for_end: WaitForEnd) -> WorkerStream:
        """Connect to the granted worker, again and again for a while: its backlog may be full.

        Raises WorkerUnreachable when it goes on refusing, what `wait_for_end` raises when it has
        died since, and QueueFull for what this process lacks, which is not the worker's fault.
        """
        if (open_already := self._workers.take(granted.socket)) is not None:
            return open_already
        begun = asyncio.get_running_loop().time()
        while True:
            try:
                return await reach(granted.socket, FromEngine)
            except OSError as error:
                if error.errno in LACKING:
                    log.error("cannot connect to worker %s: %s", granted.worker, error.strerror)
                    raise too_many_connections() from None
                is_there = isinstance(error, (BlockingIOError, ConnectionRefusedError))
                patience = _CONNECT_SECONDS if is_there else _MISSING_SECONDS
                symptom = f"it does not accept connections: {error.strerror}"
            if asyncio.get_running_loop().time() > begun + patience:
                raise WorkerUnreachable(symptom)
            await wait_for_end(_RETRY_SECONDS)
