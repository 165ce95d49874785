"""KV cache on loan, end to end: real workers under a budget that is too small for all of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.serving import Deadline, Server, Streaming, serving
from tests.helpers.tiny_llama import make_model

FAT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 512,
}
"""32 KiB of KV cache a token: 8 MB for a short conversation, 67 MB in what a load is charged."""
ROWS, WORDS = 12, 24
LENT = 45_000_000
"""Bytes of the budget beyond what both models are charged at their load. Twelve conversations take
34 MB more than that, with what their steps take, and two times twelve more than there is."""


class Charges:
    """What `/health` said while something ran."""

    def __init__(self, server: Server) -> None:
        self.seen: list[dict[str, Any]] = []
        self._server = server

    @contextmanager
    def noted(self) -> Iterator[None]:
        over = threading.Event()

        def note() -> None:
            while not over.wait(0.02):
                self.seen.append(self._server.health())

        thread = threading.Thread(target=note)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def highest(self, model: str) -> int:
        return max(
            int(entry["charge_bytes"])
            for health in self.seen
            for entry in health["cached_models"]
            if entry["name"] == model
        )

    def over_budget(self) -> int:
        """How often all charges together exceeded it."""
        memories = [health["memory"] for health in self.seen]
        return sum(each["charged_bytes"] > each["budget_bytes"] for each in memories)


def crowd(server: Server, model: str, rows: int = ROWS) -> list[Streaming]:
    """Conversations of four different beginnings, each as long as a step of the cache."""
    return [
        server.stream(model, f"{row % 4} " + "chat " * 30, max_tokens=WORDS, ignore_eos=True)
        for row in range(rows)
    ]


def texts(streams: Sequence[Streaming]) -> list[str]:
    answers = [stream.answer() for stream in streams]
    assert [answer.status for answer in answers] == [200] * len(answers)
    return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The models `a` and `b`, as settings."""
    folder = tmp_path_factory.mktemp("models")
    return "".join(
        f'[models.{name}]\nsource = "{make_model(folder / name, "llama", seed=seed, more=FAT)}"\n'
        for seed, name in enumerate("ab", 1)
    )


def charge(server: Server, model: str) -> int:
    return int(server.loaded(model)["charge_bytes"])


def test_two_models_borrow_from_one_budget(tmp_path: Path, models: str) -> None:
    state = tmp_path / "s"
    with serving(state, config=models) as server:
        alone = {name: texts(crowd(server, name, 1) + crowd(server, name, 4)[1:]) for name in "ab"}
        base = {name: charge(server, name) for name in "ab"}
    wanted = {name: [alone[name][row % 4] for row in range(ROWS)] for name in "ab"}
    budget = sum(base.values()) + LENT
    with serving(state, "--ram-budget", f"{budget // 1000}KB", config=models) as server:
        for name in "ab":
            assert server.chat(name, max_tokens=1).status == 200
        charges = Charges(server)
        with charges.noted():
            # One after the other: what the first does not need any more is the second's.
            assert texts(crowd(server, "a")) == wanted["a"]
            assert texts(crowd(server, "b")) == wanted["b"]
            # Both at once, which is more than there is.
            streams = {name: crowd(server, name) for name in "ab"}
            assert {name: texts(streams[name]) for name in "ab"} == wanted
        assert charges.over_budget() == 0
        assert charges.highest("a") > base["a"]
        assert charges.highest("b") > base["b"]
        # The borrower dies, and its loan is free again.
        streams_of_a = crowd(server, "a")
        deadline = Deadline()
        while charge(server, "a") <= base["a"]:
            deadline.check("a to borrow")
        pid = server.loaded("a")["pid"]
        with charges.noted():
            os.kill(pid, signal.SIGKILL)
            server.wait_for("a", generation=2)
            assert charge(server, "a") <= base["a"] + LENT
            assert texts(streams_of_a) == wanted["a"]
        assert charges.over_budget() == 0
        assert {name: server.loaded(name)["generation"] for name in "ab"} == {"a": 2, "b": 1}
        # Nobody needs it any more.
        deadline = Deadline()
        while any(charge(server, name) > base[name] for name in "ab"):
            deadline.check("the loans to be given back")
