"""gateway.generation: a request under suspicion tells how it does, and waits for the others."""

from __future__ import annotations

from collections.abc import Callable

from gateway.generation import RECOVERING
from supervisor.wire.frames import Continue, End, Failed, Passed, Pause, Proceed, Token
from tests.staging import Scene, Stage, failure_of, received


def test_a_request_on_trial_says_when_it_has_passed_and_pauses_until_told(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Token(1, "a"), Token(2, "b"))
        frames = [await received(generation) for _ in range(3)]
        assert frames == [Token(1, "a"), Token(2, "b"), RECOVERING]
        assert await lease.receive() == Passed()
        assert await worker.receive() == Pause()
        await lease.send(Proceed())
        assert await worker.receive() == Continue()
        await worker.send(Token(3, "c"), End("stop", 1, 3))
        frames = [await received(generation) for _ in range(2)]
        assert frames == [Token(3, "c"), End("stop", 1, 3)]
        generation.close()
        assert await lease.receive() is None

    play(scene)


def test_a_request_that_ends_on_trial_has_passed_and_one_that_fails_has_not(
    play: Callable[[Scene], None],
) -> None:
    async def scene(stage: Stage) -> None:
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Token(1, "a"), End("stop", 1, 1))
        assert [await received(generation) for _ in range(2)] == [Token(1, "a"), End("stop", 1, 1)]
        generation.close()
        assert await lease.receive() == Passed()
        assert await worker.receive() is None  # not told to pause
        generation, lease, worker = await stage.start(until=2)
        await worker.send(Failed("invalid_value", "bad", None, None))
        await failure_of(generation.receive())
        generation.close()
        assert await lease.receive() is None

    play(scene)
