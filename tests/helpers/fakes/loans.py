"""The part of an `Engine` that borrows memory, for engines that are not about that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from supervisor.wire.frames import LoanFrame, Recall, Repaid
from worker.engine.thread import Engine


class BorrowsNothing:
    """Has no use for loans, and nothing to give back."""

    def __init__(self) -> None:
        self._news: list[LoanFrame] = []

    def lend(self, size: int) -> None:
        self._news.append(Repaid(size))

    def recall(self, recall: Recall) -> None:
        self._news.append(Repaid(0, recall.number))

    def limit(self, sequences: int) -> None:
        pass

    def allow_prefill(self, allowed: bool) -> None:
        pass

    def news(self) -> Sequence[LoanFrame]:
        news, self._news = self._news, []
        return news

    @property
    def due(self) -> float | None:
        return None

    def tidy(self) -> None:
        pass


class PassesLoansOn:
    """Leaves them to the engine that it stands before."""

    @property
    @abstractmethod
    def _engine(self) -> Engine: ...

    def lend(self, size: int) -> None:
        self._engine.lend(size)

    def recall(self, recall: Recall) -> None:
        self._engine.recall(recall)

    def limit(self, sequences: int) -> None:
        self._engine.limit(sequences)

    def allow_prefill(self, allowed: bool) -> None:
        self._engine.allow_prefill(allowed)

    def news(self) -> Sequence[LoanFrame]:
        return self._engine.news()

    @property
    def due(self) -> float | None:
        return self._engine.due

    def tidy(self) -> None:
        self._engine.tidy()
