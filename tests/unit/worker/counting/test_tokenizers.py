"""worker.counting.tokenizers: a few models' tokenizers, each with a thread, as their files are."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from supervisor.wire.frames import Chat, Count
from tests.helpers.serving import DEADLINE
from worker.counting.tokenizers import LONG_BYTES, Tokenizers, stamp_of
from worker.engine.thread import Unloadable

CHAT = Chat([{"role": "user", "content": "hi"}])


class World:
    """Models whose tokenizers count the letters of the first message, when their gate is open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loads: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.begun: dict[str, threading.Semaphore] = {}
        self.threads: dict[str, set[str]] = {}
        self.alone: list[bool | None] = []
        """Of each count that has begun, if it is a long one, whether no other can be inside."""
        self.tokenizers = Tokenizers(self._load, 2)

    def model(self, name: str, *, gated: bool = False) -> None:
        (self.root / name).mkdir()
        (self.root / name / "tokenizer.json").write_text("1")
        self.gates[name], self.begun[name] = threading.Event(), threading.Semaphore(0)
        self.threads[name] = set()
        if not gated:
            self.gates[name].set()

    def _load(self, folder: Path) -> Letters:
        if not (folder / "tokenizer.json").read_text().isdigit():
            raise Unloadable("broken")
        self.loads.append(folder.name)
        return Letters(self, folder.name)

    async def count(self, name: str, chat: Chat = CHAT) -> int:
        return await self.tokenizers.count(Count("r", name, str(self.root / name), chat, 1.0))

    async def has_begun(self, name: str) -> None:
        begun = self.begun[name]
        assert await asyncio.to_thread(begun.acquire, timeout=DEADLINE)


class Letters:
    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def count(self, chat: Chat, now: float, request_id: str) -> int:
        world, name = self._world, self._name
        world.threads[name].add(threading.current_thread().name)
        is_long = len(chat.messages[0]["content"]) >= LONG_BYTES
        world.alone.append(world.tokenizers._long.locked() if is_long else None)
        world.begun[name].release()
        assert world.gates[name].wait(DEADLINE)
        if chat.messages[0]["content"] == "raise":
            raise ValueError
        return len(chat.messages[0]["content"])


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(story: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            world = World(tmp_path)
            try:
                async with asyncio.timeout(DEADLINE):
                    await story(world)
            finally:
                for gate in world.gates.values():
                    gate.set()

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[World], Awaitable[None]]], None]


def test_a_tokenizer_is_loaded_once_and_kept_for_the_models_used_last(play: Play) -> None:
    async def story(world: World) -> None:
        for name in "abc":
            world.model(name)
        for name in ("a", "b", "a", "b", "a"):
            assert await world.count(name) == 2
        assert world.loads == ["a", "b"]
        await world.count("c")  # in the place of b, which was used longest ago
        await world.count("a")
        assert world.loads == ["a", "b", "c"]
        await world.count("b")
        assert world.loads == ["a", "b", "c", "b"]

    play(story)


def test_one_thread_a_tokenizer_and_nobody_waits_for_another_models(play: Play) -> None:
    async def story(world: World) -> None:
        world.model("slow", gated=True)
        world.model("quick")
        slow = [asyncio.create_task(world.count("slow"))]
        await world.has_begun("slow")
        assert await world.count("quick") == await world.count("quick") == 2
        assert not slow[0].done()
        world.gates["slow"].set()
        assert await asyncio.gather(*slow, *(world.count("slow") for _ in range(4))) == [2] * 5
        assert [len(world.threads[name]) for name in ("slow", "quick")] == [1, 1]

    play(story)


def test_counts_above_the_number_of_tokenizers_wait(play: Play) -> None:
    """Else there would be more tokenizers at once than there may be."""

    async def story(world: World) -> None:
        for name in "abc":
            world.model(name, gated=True)
        counts = [asyncio.create_task(world.count(name)) for name in "abc"]
        await world.has_begun("a")
        await world.has_begun("b")
        assert world.loads in (["a", "b"], ["b", "a"])
        world.gates["b"].set()
        await world.has_begun("c")  # in the place of b, for a is in use
        assert [Path(each).name for each in world.tokenizers._models] == ["a", "c"]
        world.gates["a"].set()
        world.gates["c"].set()
        assert await asyncio.gather(*counts) == [2, 2, 2]
        await world.count("a")
        assert sorted(world.loads) == ["a", "b", "c"]

    play(story)


def test_one_that_is_given_up_keeps_its_place_until_it_ends(play: Play) -> None:
    async def story(world: World) -> None:
        world.model("a", gated=True)
        world.model("b")
        running, waiting = (asyncio.create_task(world.count("a")) for _ in range(2))
        await world.has_begun("a")
        running.cancel()
        waiting.cancel()
        await asyncio.wait([running, waiting])
        assert world.tokenizers._models[str(world.root / "a")].users == 1
        assert await world.count("b") == 2
        world.gates["a"].set()
        assert await world.count("a") == 2
        # The one that had not begun never did.
        assert world.begun["a"].acquire(blocking=False)
        assert not world.begun["a"].acquire(blocking=False)

    play(story)


def test_long_chats_come_one_after_another_and_hold_up_no_short_one(play: Play) -> None:
    async def story(world: World) -> None:
        long = Chat([{"role": "user", "content": "x" * LONG_BYTES}])
        world.model("a", gated=True)
        world.model("b", gated=True)
        first = asyncio.create_task(world.count("a", long))
        await world.has_begun("a")
        world.gates["b"].set()
        assert await world.count("b") == 2
        second = asyncio.create_task(world.count("b", long))
        world.gates["a"].set()
        assert [await first, await second] == [LONG_BYTES, LONG_BYTES]
        assert world.alone == [True, None, True]
        assert not world.tokenizers._long.locked()

    play(story)


def test_changed_files_are_read_again(play: Play) -> None:
    async def story(world: World) -> None:
        world.model("a")
        await world.count("a")
        (world.root / "a" / "model.safetensors").write_text("weights change nothing")
        await world.count("a")
        assert world.loads == ["a"]
        (world.root / "a" / "chat_template.jinja").write_text("x")
        await world.count("a")
        assert world.loads == ["a", "a"]
        (world.root / "a" / "tokenizer.json").write_text("broken")
        for _ in range(2):
            with pytest.raises(Unloadable, match="broken"):
                await world.count("a")
        (world.root / "a" / "tokenizer.json").write_text("2")
        assert await world.count("a") == 2
        (world.root / "a" / "tokenizer.json").unlink()
        (world.root / "a" / "chat_template.jinja").unlink()
        (world.root / "a" / "model.safetensors").unlink()
        (world.root / "a").rmdir()
        with pytest.raises(Unloadable, match="cannot be read"):
            await world.count("a")

    play(story)


def test_what_raises_leaves_no_place_taken(play: Play) -> None:
    async def story(world: World) -> None:
        world.model("a")
        for _ in range(5):
            with pytest.raises(ValueError):  # noqa: PT011
                await world.count("a", Chat([{"role": "user", "content": "raise"}]))
        assert await world.count("a") == 2

    play(story)


def test_no_thread_is_what_the_machine_lacks_for_now(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: World) -> None:
        world.model("a")

        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(5):
                with pytest.raises(OSError, match="new thread"):
                    await world.count("a")
        world.tokenizers._models.clear()
        assert await world.count("a") == 2

    play(story)


def test_any_change_of_what_a_tokenizer_is_made_of_changes_the_stamp(tmp_path: Path) -> None:
    stamps = [stamp_of(tmp_path)]
    (tmp_path / "tokenizer.json").write_text("x")
    stamps.append(stamp_of(tmp_path))
    os.utime(tmp_path / "tokenizer.json", (1, 1))
    stamps.append(stamp_of(tmp_path))
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("x")
    stamps.append(stamp_of(tmp_path))
    (tmp_path / "link.json").symlink_to(tmp_path / "nothing")
    stamps.append(stamp_of(tmp_path))
    assert len(set(stamps)) == len(stamps)
    (tmp_path / "model-00001.safetensors").write_text("x")
    assert stamp_of(tmp_path) == stamps[-1]
