"""Tokenizers of the models that were counted for last, each with a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from supervisor.wire.frames import Chat, Count, Generate
from worker.engine.load_faults import told_of
from worker.prompt.template import PromptBuilder
from worker.prompt.tokenizer import ModelTokenizer

MOST = 3
"""Tokenizers that are kept: 50 MB each for a vocabulary of 65,000 tokens, 200 MB for 260,000. As
many counts run at once."""
LONG_BYTES = 2**20
"""A chat of that many bytes takes a second, and memory: one such at a time."""
_UNLIMITED = 2**62
"""No context ends a count: how far a prompt is above it is what some want to know."""
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".npz")

Stamp = tuple[tuple[str, int, int, int, int], ...]


class Tokens(Protocol):
    """Counts for one model, on one thread at a time."""

    def count(self, chat: Chat, now: float, request_id: str) -> int:
        """Tokens of the prompt. Raises BulkheadError, and what a tokenizer raises."""


class PromptTokens:
    """`Tokens` of a real tokenizer: as many as a worker would accept the same request with."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._prompts = PromptBuilder(tokenizer, _UNLIMITED, _UNLIMITED)

    def count(self, chat: Chat, now: float, request_id: str) -> int:
        return len(self._prompts.tokens(Generate(request_id, chat, now)))


@dataclass(slots=True, eq=False)
class _Model:
    """One model's place. All but `users` belongs to the thread."""

    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokenizer"))
    users: int = 0
    """Counts on the thread, or waiting for it."""
    tokens: Tokens | None = None
    stamp: Stamp = ()


class Tokenizers:
    """At most `most` models' tokenizers. To be used on one event loop.

    `load` makes a model's from its folder; it blocks, and raises what cannot be loaded. It is
    called again when files there have changed.
    """

    def __init__(self, load: Callable[[Path], Tokens], most: int = MOST) -> None:
        self._load = load
        self._most = most
        self._models: OrderedDict[str, _Model] = OrderedDict()
        """By folder, the one that was used last at the end."""
        self._slots = asyncio.Semaphore(most)
        """As many as models, so that one of them is idle when room is wanted."""
        self._loading = threading.Lock()
        self._long = threading.Lock()

    async def count(self, request: Count) -> int:
        """Tokens of the request's prompt. Raises what loading and counting raise. What runs on a
        thread goes on when this is cancelled, and keeps its place until it ends."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        model = self._place(request.folder)
        model.users += 1
        try:
            work = model.thread.submit(self._count_on_thread, model, request)
        except RuntimeError as error:  # no thread is to be had
            self._ended(model)
            raise OSError(errno.EAGAIN, str(error)) from error
        work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, model))
        return await asyncio.wrap_future(work)

    def _ended(self, model: _Model) -> None:
        model.users -= 1
        self._slots.release()

    def _place(self, folder: str) -> _Model:
        if folder not in self._models:
            idle = [name for name, model in self._models.items() if not model.users]
            for name in idle[: len(self._models) - self._most + 1]:
                self._models.pop(name).thread.shutdown(wait=False)
            self._models[folder] = _Model()
        self._models.move_to_end(folder)
        return self._models[folder]

    # ── on the model's thread ────────────────────────────────────────────────────────────────────

    def _count_on_thread(self, model: _Model, request: Count) -> int:
        tokens = self._current(model, Path(request.folder))
        is_long = len(msgspec.msgpack.encode(request.chat)) > LONG_BYTES
        if not is_long:
            return tokens.count(request.chat, request.now, request.request_id)
        with self._long:
            return tokens.count(request.chat, request.now, request.request_id)

    def _current(self, model: _Model, folder: Path) -> Tokens:
        """Of the files as they are now."""
        with told_of(folder):
            # Before the files are read: what changes meanwhile is seen by the next count.
            stamp = stamp_of(folder)
        if model.tokens is None or model.stamp != stamp:
            model.tokens = None  # two of them would be one too many
            with self._loading:
                model.tokens, model.stamp = self._load(folder), stamp
        return model.tokens


def stamp_of(folder: Path) -> Stamp:
    """Changes with any file that a tokenizer or a template may be made of. Blocks on the disk.
    Raises OSError."""
    return tuple(sorted(_stamps(folder)))


def _stamps(folder: Path) -> Iterator[tuple[str, int, int, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == _TEMPLATES and entry.is_dir():
                yield from _stamps(Path(entry.path))
            elif not entry.name.endswith(_WEIGHTS):
                yield _stamp(entry)


def _stamp(entry: os.DirEntry[str]) -> tuple[str, int, int, int, int]:
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing
        return (entry.name, 0, 0, 0, 0)
    return (entry.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
