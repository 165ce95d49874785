"""worker.engine.loan: what is asked for, how it comes back, and what is told of it."""

from __future__ import annotations

import pytest

from supervisor.wire.frames import Needs, Repaid
from worker.engine.loan import IDLE_SECONDS, LARGEST_STEP, LEAST_STEP, Loan, Usage

MB = 2**20
ROOM = 100 * MB


def loan(*, limit: int = 0, ever: int = 10**12) -> Loan:
    return Loan(ROOM, limit, ever)


def fits(size: int) -> Usage:
    return Usage(held=size, live=size, least=size, ahead=size)


# ── steps ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ever", "in_use", "step"),
    [
        (10**12, 0, LARGEST_STEP),
        (10**12, 4000 * MB, 1000 * MB),
        (800 * MB, 0, 100 * MB),
        (3 * MB, 0, LEAST_STEP),
    ],
)
def test_a_step_is_as_large_as_suits_the_model(ever: int, in_use: int, step: int) -> None:
    assert loan(ever=ever).step(in_use) == step


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


def test_within_the_room_nothing_is_told() -> None:
    account = loan()
    assert account.needs(fits(ROOM)) is None
    assert account.needs(Usage()) is None


def test_what_is_lacking_is_asked_for_in_whole_steps() -> None:
    usage = Usage(live=ROOM, least=ROOM + 7, ahead=ROOM + 300 * MB, since=5.0)
    assert loan().needs(usage) == Needs(7, 512 * MB, 5.0)


def test_what_will_be_of_use_is_asked_for_before_it_is_needed() -> None:
    usage = Usage(live=ROOM, least=ROOM, ahead=ROOM + 1, since=5.0)
    assert loan().needs(usage) == Needs(0, 256 * MB, 5.0)


def test_no_more_is_asked_for_than_may_ever_be_lent() -> None:
    account = loan(limit=ROOM + 10 * MB)
    assert account.needs(Usage(least=2 * ROOM, ahead=3 * ROOM, since=1.0)) == Needs(
        10 * MB, 10 * MB, 1.0
    )
    account.lend(10 * MB)
    assert account.final
    told = account.needs(Usage(least=2 * ROOM, ahead=3 * ROOM))
    assert told == Needs(idle=10 * MB, heard=10 * MB)


def test_more_than_may_ever_be_lent_comes_back_at_once_and_is_never_asked_for() -> None:
    account = loan(limit=ROOM + 10 * MB)
    assert account.lend(8 * MB) == 0
    assert account.lend(8 * MB) == 6 * MB
    told = account.needs(Usage(live=ROOM, least=3 * ROOM, ahead=3 * ROOM, since=1.0))
    assert told is not None
    assert (told.least, told.most, told.heard) == (0, 0, 16 * MB)
    assert account.repay(6 * MB) == Repaid(6 * MB)
    assert account.final
    assert account.budget == ROOM + 10 * MB


def test_without_a_limit_there_is_always_more() -> None:
    account = loan()
    account.lend(10**12)
    assert not account.final


def test_the_same_is_told_once_and_again_when_it_was_lent_too_little() -> None:
    account = loan()
    usage = Usage(live=ROOM, least=ROOM + 50 * MB, ahead=ROOM + 50 * MB, since=5.0)
    assert account.needs(usage) == Needs(50 * MB, 256 * MB, 5.0)
    assert account.needs(usage) is None
    account.lend(20 * MB)
    told = account.needs(usage)
    assert told == Needs(30 * MB, 256 * MB, 5.0, idle=20 * MB, heard=20 * MB)


def test_what_is_lent_comes_off_what_was_asked_for_whichever_word_it_answers() -> None:
    """The first loan answers the first word, the second one what was left of the second."""
    account = loan()
    account.needs(Usage(live=ROOM, least=ROOM + 10 * MB, ahead=ROOM + 10 * MB, since=5.0))
    second = account.needs(
        Usage(live=ROOM, least=ROOM + 300 * MB, ahead=ROOM + 300 * MB, since=4.0)
    )
    assert second == Needs(300 * MB, 512 * MB, 4.0)
    account.lend(256 * MB)
    usage = Usage(live=ROOM + 256 * MB, least=ROOM + 300 * MB, ahead=ROOM + 300 * MB, since=4.0)
    assert account.needs(usage) is None  # the other half stands
    assert account.needs(fits(ROOM + 256 * MB)) == Needs(heard=256 * MB)  # and is taken back


def test_after_a_recall_it_is_said_anew_though_something_was_lent_since() -> None:
    account = loan()
    account.lend(10 * MB)
    assert account.needs(fits(ROOM)) == Needs(idle=10 * MB, heard=10 * MB)
    account.repay(0, 4)
    account.lend(10 * MB)
    assert account.needs(fits(ROOM + 20 * MB)) == Needs(heard=20 * MB)


def test_what_is_given_back_was_idle() -> None:
    account = loan()
    account.lend(1024 * MB)
    account.needs(fits(ROOM))
    account.repay(512 * MB)
    assert account.needs(fits(ROOM)) is None
    assert account.needs(fits(ROOM + 512 * MB)) == Needs(heard=1024 * MB)


def test_what_somebody_waits_for_is_not_given_back() -> None:
    account = loan()
    account.lend(1024 * MB)
    waits = Usage(least=ROOM + 1300 * MB, ahead=ROOM + 1300 * MB, since=5.0)
    assert account.surplus(waits, 0.0) == 0
    assert account.surplus(waits, IDLE_SECONDS) == 0
    account.surplus(Usage(), IDLE_SECONDS)
    assert account.surplus(Usage(), 2 * IDLE_SECONDS) > 0


def test_what_is_needed_no_longer_is_taken_back() -> None:
    account = loan()
    account.needs(Usage(least=2 * ROOM, ahead=2 * ROOM))
    assert account.needs(Usage()) == Needs()


def test_an_older_request_that_waits_is_news() -> None:
    account = loan()
    account.needs(Usage(least=2 * ROOM, ahead=2 * ROOM, since=5.0))
    told = account.needs(Usage(least=2 * ROOM, ahead=2 * ROOM, since=4.0))
    assert told is not None
    assert told.since == 4.0


def test_small_moves_of_what_is_idle_are_no_news() -> None:
    account = loan()
    account.lend(512 * MB)
    assert account.needs(fits(ROOM)) == Needs(idle=512 * MB, heard=512 * MB)
    assert account.needs(fits(ROOM + 100 * MB)) is None
    assert account.needs(fits(ROOM + 200 * MB)) == Needs(idle=312 * MB, heard=512 * MB)
    assert account.needs(fits(ROOM + 512 * MB)) == Needs(heard=512 * MB)


def test_what_parking_would_free_is_told_of_the_loan_alone() -> None:
    account = loan()
    usage = Usage(live=ROOM, least=ROOM, ahead=ROOM, youngest=3.0, parkable=80 * MB)
    assert account.needs(usage) is None
    account.lend(50 * MB)
    told = account.needs(usage)
    assert told == Needs(idle=50 * MB, youngest=3.0, parkable=50 * MB, heard=50 * MB)


# ── giving back ──────────────────────────────────────────────────────────────────────────────────


def test_idle_bytes_come_back_after_a_while_down_to_a_step() -> None:
    account = loan()
    account.lend(1000 * MB)
    assert account.surplus(fits(ROOM), 10.0) == 0
    assert account.due(11.0) == IDLE_SECONDS - 1
    assert account.surplus(fits(ROOM), 10.0 + IDLE_SECONDS - 0.1) == 0
    size = account.surplus(fits(ROOM), 10.0 + IDLE_SECONDS)
    assert size == (1000 - 256) * MB
    assert account.repay(size) == Repaid(size)
    assert account.budget == ROOM + 256 * MB
    assert account.surplus(fits(ROOM), 100.0) == 0
    assert account.due(100.0) is None


def test_use_in_between_starts_the_while_anew() -> None:
    account = loan()
    account.lend(1000 * MB)
    account.surplus(fits(ROOM), 10.0)
    assert account.surplus(fits(ROOM + 1000 * MB), 12.0) == 0
    assert account.due(12.0) is None
    assert account.surplus(fits(ROOM), 10.0 + IDLE_SECONDS) == 0


def test_a_little_more_than_a_step_is_kept() -> None:
    account = loan()
    account.lend(300 * MB)
    account.surplus(fits(ROOM), 0.0)
    assert account.surplus(fits(ROOM), 100.0) == 0


def test_no_more_comes_back_than_was_lent() -> None:
    account = loan()
    account.lend(10)
    assert account.repay(20, 4) == Repaid(10, 4)
    assert account.repay(1, 5) == Repaid(0, 5)
    assert account.budget == ROOM
