"""supervisor.cli.launch: which model a program gets."""

from __future__ import annotations

import pytest

from supervisor.cli.health import Configured, Health, Loaded
from supervisor.cli.launch import choose, context_of

A = Configured("a", aliases=["first", "default"], context=1000)
B = Configured("b", context=2000)
BROKEN = Configured("x", state="failed", reason="no files")


def health(*models: Configured, loaded: tuple[str, ...] = ()) -> Health:
    return Health("ok", models=list(models), cached_models=[Loaded(name) for name in loaded])


@pytest.mark.parametrize(
    ("told", "wanted", "chosen"),
    [
        (health(A, B), "b", B),
        (health(A, B), "first", A),
        (health(A), None, A),
        (health(A, BROKEN), None, A),
        (health(A, B, loaded=("b",)), None, B),
        (health(A, BROKEN), "x", BROKEN),  # the program will be told why
    ],
)
def test_the_model_is_the_wanted_or_the_plain_one(
    told: Health, wanted: str | None, chosen: Configured
) -> None:
    assert choose(told, wanted) == chosen


@pytest.mark.parametrize(
    ("told", "wanted", "why"),
    [
        (health(A, B), None, "several models; choose one with `--model`: a, b"),
        (health(A, B, loaded=("a", "b")), None, "several models"),
        (health(A, B), "c", "no model c"),
        (health(), None, "no model can be served"),
        (health(BROKEN), None, "no model can be served"),
    ],
)
def test_where_the_choice_is_not_plain_the_person_chooses(
    told: Health, wanted: str | None, why: str
) -> None:
    said = choose(told, wanted)
    assert isinstance(said, str)
    assert why in said


def test_a_loaded_worker_knows_its_context_better() -> None:
    loaded = Health("ok", models=[A], cached_models=[Loaded("a", context=900)])
    assert context_of(loaded, A) == 900
    assert context_of(health(A), A) == 1000
    assert context_of(health(BROKEN), BROKEN) is None
