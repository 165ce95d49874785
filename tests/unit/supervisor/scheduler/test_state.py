"""supervisor.scheduler.state: which model a name means, and which end is a crash."""

from __future__ import annotations

from dataclasses import replace

import pytest

from supervisor.errors import ModelNotFound
from supervisor.scheduler.effects import Refuse
from supervisor.scheduler.model import NextCharge, Spec
from supervisor.scheduler.pool import Pool
from supervisor.scheduler.state import UNSURE, UNSURE_SHARE
from tests.helpers.pools import GB, HOLD, Told, make_pool, told

NAMED = (
    Spec("fast", aliases=("small", "qwen")),
    Spec("mlx-community/Qwen3-4B-4bit", aliases=("qwen:latest",)),
    Spec("llama3:8b"),
    Spec("phi:latest"),
)


@pytest.mark.parametrize(
    ("requested", "name"),
    [
        ("fast", "fast"),
        ("small", "fast"),
        ("fast:latest", "fast"),
        ("small:latest", "fast"),
        ("qwen", "fast"),
        ("qwen:latest", "mlx-community/Qwen3-4B-4bit"),  # exact wins over dropping the suffix
        ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit"),
        ("mlx-community/Qwen3-4B-4bit:latest", "mlx-community/Qwen3-4B-4bit"),
        ("llama3:8b", "llama3:8b"),
        ("llama3:8b:latest", "llama3:8b"),
        ("phi:latest", "phi:latest"),
        ("", "llama3:8b"),
        ("default_model", "llama3:8b"),
    ],
)
def test_a_name_means_its_model(requested: str, name: str) -> None:
    assert make_pool(*NAMED, default_model="llama3:8b").state.resolve(requested).spec.name == name


@pytest.mark.parametrize(
    "requested", ["llama3", "Fast", "fast ", "fast:8b", "phi", ":latest", "latest", "qwen3/4b"]
)
def test_an_unknown_name_is_refused_as_such(requested: str) -> None:
    pool = make_pool(*NAMED, default_model="fast")
    with pytest.raises(ModelNotFound) as caught:
        pool.state.resolve(requested)
    assert caught.value.param == "model"
    assert caught.value.message.startswith(
        f"The model `{requested}` does not exist or you do not have access to it."
    )
    lease, effects = pool.acquire("r", requested, HOLD, 0.0)
    assert told(effects) == [Told(Refuse, lease, "model_not_found")]
    assert pool.release(lease, 1.0) == []


@pytest.mark.parametrize("requested", ["", "default_model"])
def test_without_a_default_a_request_must_name_its_model(requested: str) -> None:
    with pytest.raises(ModelNotFound, match="default_model") as caught:
        Pool(NAMED).state.resolve(requested)
    assert caught.value.param == "model"


def test_a_default_may_be_an_alias_and_a_model_may_be_called_default_model() -> None:
    assert make_pool(*NAMED, default_model="small").state.resolve("").spec.name == "fast"
    pool = make_pool(Spec("a"), Spec("b", aliases=("default_model",)), default_model="a")
    assert pool.state.resolve("default_model").spec.name == "b"
    assert pool.state.resolve("").spec.name == "a"


def test_an_end_is_a_crash_unless_it_was_asked_for() -> None:
    pool = make_pool(Spec("m"))
    assert pool.state.crashing("m", 0) is None  # nothing runs
    pool.acquire("r", "m", HOLD, 0.0)
    assert pool.state.crashing("m", 1) is pool.models["m"]
    assert pool.state.crashing("m", 2) is None
    pool.broken("m", 1, "it is at fault", 1.0)
    assert pool.state.crashing("m", 1) is pool.models["m"]
    pool.exited("m", 1, "SIGKILL", 2.0)
    assert pool.state.crashing("m", 1) is None
    pool.acquire("r", "m", HOLD, 3.0)
    assert pool.state.crashing("m", 2) is pool.models["m"]
    pool.shutdown(4.0)
    assert pool.state.crashing("m", 2) is None


def test_all_that_a_model_may_be_lent_is_what_the_pinned_ones_leave() -> None:
    a, b, c = (Spec(name, estimate_bytes=3 * GB, headroom_bytes=GB) for name in "abc")
    pool = make_pool(a, replace(b, pin=True), c)
    pool.state.ledger.budget = 10 * GB
    assert pool.state.next_charge("a") == NextCharge(3 * GB, GB, 7 * GB - UNSURE)
    assert pool.state.next_charge("b") == NextCharge(3 * GB, GB, 10 * GB - UNSURE)
    pool.pin("c", 0.0)
    assert pool.state.next_charge("a").most == 4 * GB - UNSURE
    assert pool.state.next_charge("b").most == 7 * GB - UNSURE
    pool.state.ledger.budget = 5 * GB  # it could not be loaded beside them, and is told its size
    assert pool.state.next_charge("a").most == 3 * GB
    pool.state.ledger.budget = None
    assert pool.state.next_charge("a").most is None


def test_of_a_small_model_a_small_part_is_not_promised() -> None:
    """Its next load may take that much more than it is known to take."""
    pool = make_pool(Spec("a", estimate_bytes=GB // 5))
    pool.state.ledger.budget = GB
    assert pool.state.next_charge("a").most == GB - GB // 5 // UNSURE_SHARE
