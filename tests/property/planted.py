"""Bugs that are planted in the scheduler to see that the random walk and its oracle find them.

Every bug replaces one named function or method by a wrong one, which breaks a promise; without it
the same walk finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import pytest

from tests.property.recoveries import Violation
from tests.property.scheduling import walk

STEPS = 2_500
Wrong = TypeVar("Wrong", bound=Callable[..., object])


class Bug(NamedTuple):
    promise: str
    owner: type | ModuleType
    name: str
    """What is replaced in `owner`."""
    wrong: Any
    seed: int
    violation: str
    """A regular expression for all that the oracle says."""


class Bugs(list[Bug]):
    """Those of one subject."""

    def plant(
        self, promise: str, owner: type | ModuleType, name: str, seed: int, violation: str
    ) -> Callable[[Wrong], Wrong]:
        """The function replaces `name` of `owner`. The seed is the first that finds it by this
        violation."""

        def add(wrong: Wrong) -> Wrong:
            self.append(Bug(promise, owner, name, wrong, seed, violation))
            return wrong

        return add


def promise(planted: Bug) -> str:
    return planted.promise


def violation_of(planted: Bug, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the oracle says of the walk with the bug. Raises AssertionError where it says anything
    without."""
    assert _walk_unbroken(planted.seed) == (STEPS, None)
    replaced = vars(planted.owner)[planted.name]
    wrong = property(planted.wrong) if isinstance(replaced, property) else planted.wrong
    monkeypatch.setattr(planted.owner, planted.name, wrong)
    _, violation = walk(planted.seed, STEPS)
    return str(violation)


@cache
def _walk_unbroken(seed: int) -> tuple[int, Violation | None]:
    return walk(seed, STEPS)
