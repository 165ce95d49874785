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
ROWS, WORDS = 12, 12
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
            while not over.wait(0.1):
                self.seen.append(self._server.health())

        thread = threading.Thread(target=note)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def over_budget(self) -> int:
        """How often all charges together exceeded it."""
        memories = [health["memory"] for health in self.seen]
        return sum(each["charged_bytes"] > each["budget_bytes"] for each in memories)


def crowd(server: Server, model: str, rows: int = ROWS) -> list[Streaming]:
    """Conversations of four different beginnings, each of which takes a whole step of the cache."""
    return [
        server.stream(model, f"{row % 4} " + "chat " * 8, max_tokens=WORDS, ignore_eos=True)
        for row in range(rows)
    ]


def texts(streams: Sequence[Streaming]) -> list[str]:
    answers = [stream.answer() for stream in streams]
    assert [answer.status for answer in answers] == [200] * len(answers)
    return [answer.text for answer in answers]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The models `a` and `b`, as settings. An idle model that is not pinned would have to go for
    the other's requests."""
    folder = tmp_path_factory.mktemp("models")
    return "".join(
        f"[models.{name}]\npin = true\n"
        f'source = "{make_model(folder / name, "llama", seed=seed, more=FAT)}"\n'
        for seed, name in enumerate("ab", 1)
    )


def until_lent(server: Server, model: str) -> None:
    """Return once the model has a loan."""
    deadline = Deadline()
    while not server.loaded(model)["lent_bytes"]:
        deadline.check(f"{model} to borrow")


def test_two_models_borrow_from_one_budget(tmp_path: Path, models: str) -> None:
    state = tmp_path / "s"
    with serving(state, config=models) as server:
        alone = {name: texts(crowd(server, name, rows=4)) for name in "ab"}
        base = sum(server.loaded(name)["charge_bytes"] for name in "ab")
    budget = (base + LENT) * 20 // 19  # the gateway keeps a twentieth
    wanted = {name: [alone[name][row % 4] for row in range(ROWS)] for name in "ab"}
    with serving(state, "--ram-budget", f"{budget // 1000}KB", config=models) as server:
        assert server.chat("b", max_tokens=1).status == 200
        charges = Charges(server)
        with charges.noted():
            # What the first does not need any more is the second's.
            assert texts(crowd(server, "a")) == wanted["a"]
            assert server.loaded("a")["lent_bytes"] > 0
            of_b = crowd(server, "b")
            until_lent(server, "b")
            # Now both want more than there is.
            of_a = crowd(server, "a")
            assert texts(of_b) == wanted["b"]
            assert texts(of_a) == wanted["a"]
            # What a dead one had is free again.
            of_b = crowd(server, "b")
            until_lent(server, "b")
            os.kill(server.loaded("b")["pid"], signal.SIGKILL)
            assert texts(of_b) == wanted["b"]
        assert charges.over_budget() == 0
        loading = [
            entry["lent_bytes"]
            for health in charges.seen
            for entry in health["cached_models"]
            if (entry["name"], entry["generation"], entry["state"]) == ("b", 2, "loading")
        ]
        assert set(loading) == {0}
        assert {name: server.loaded(name)["generation"] for name in "ab"} == {"a": 1, "b": 2}
