"""gateway.relay.preconnect: one connection a socket is open before it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.relay.preconnect import Preconnect
from supervisor.wire.control_frames import ToGateway
from supervisor.wire.stream import FrameStream
from tests.helpers.relay_peers import Peers, Scenario


def test_a_connection_is_taken_once_and_opened_anew(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        early: Preconnect[ToGateway] = Preconnect(ToGateway)
        assert early.take(peers.control) is None
        for _ in range(2):
            early.refill(peers.control)
            early.refill(peers.control)  # which is under way
            peer = await peers.connected(peers.control)
            stream = await _taken(early, peers.control)
            stream.close()
            assert await peer.receive() is None
            assert early.take(peers.control) is None
        early.refill(peers.control)
        last = await peers.connected(peers.control)
        early.close()
        assert await last.receive() is None

    run_scenario(scenario)


def test_a_connection_that_the_far_end_closed_is_not_given(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        early: Preconnect[ToGateway] = Preconnect(ToGateway)
        early.refill(peers.control)
        peer = await peers.connected(peers.control)
        await asyncio.gather(*early._opening.values())
        peer.close()
        assert await early._open[peers.control].receive() is None
        assert early.take(peers.control) is None

    run_scenario(scenario)


def test_a_socket_where_nobody_listens_is_no_error(
    run_scenario: Callable[[Scenario], None],
) -> None:
    async def scenario(peers: Peers) -> None:
        early: Preconnect[ToGateway] = Preconnect(ToGateway)
        early.refill(peers.control + ".gone")
        await asyncio.gather(*early._opening.values())
        assert early.take(peers.control + ".gone") is None

    run_scenario(scenario)


async def _taken(early: Preconnect[ToGateway], path: str) -> FrameStream[ToGateway]:
    await asyncio.gather(*early._opening.values())
    stream = early.take(path)
    assert stream is not None
    return stream
