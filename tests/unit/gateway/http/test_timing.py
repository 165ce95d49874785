"""gateway.http.timing: what clients announce, and what follows from it."""

from __future__ import annotations

import pytest

from gateway.http.timing import Timing, announced_timeout

TIMING = Timing()


@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("600", 600),
        ("600.0", 600),
        ("12.5", 12.5),
        (" 7 ", 7),
        ("1e3", 1000),
        ("1e300", 1e300),
        ("0", None),
        ("-1", None),
        ("-0.0", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("", None),
        ("None", None),
        ("10s", None),
        ("1,5", None),
    ],
)
def test_what_a_client_says_it_waits(name: str, text: str, seconds: float | None) -> None:
    assert announced_timeout({name: text}) == seconds


def test_who_says_nothing_and_who_says_two_things() -> None:
    both = {"x-stainless-read-timeout": "5", "x-stainless-timeout": "3"}
    assert announced_timeout({}) is None
    assert announced_timeout(both) == 3
    assert announced_timeout({**both, "x-stainless-timeout": "nan"}) == 5


@pytest.mark.parametrize(
    ("announced", "hold"), [(None, 240), (600, 240), (300, 240), (100, 80), (12, 9.6), (1e300, 240)]
)
def test_the_hold_ends_before_the_client_gives_up(announced: float | None, hold: float) -> None:
    assert TIMING.hold(240, announced) == pytest.approx(hold)


@pytest.mark.parametrize(
    ("accepted", "announced", "due"),
    [
        (0, None, 5),  # no load, nobody before it
        (100, None, 105),  # it has waited, and then there is work again for 5 s
        (0, 600, 5),
        (0, 12, 5),
        (0, 4, 2),
        (3, 12, 6),  # of 12 s that the client waits in all, 3 are over
        (9, 12, 6),  # at once
    ],
)
def test_when_headers_are_due(accepted: float, announced: float | None, due: float) -> None:
    assert TIMING.headers_due(1000, 1000 + accepted, announced) == 1000 + due


@pytest.mark.parametrize(
    ("announced", "silence"), [(None, 10), (600, 10), (20, 10), (12, 6), (1, 0.5), (0.001, 0.1)]
)
def test_how_long_a_stream_may_be_silent(announced: float | None, silence: float) -> None:
    assert TIMING.longest_silence(announced) == silence


def test_the_limits_are_the_promised_ones() -> None:
    assert (TIMING.headers, TIMING.silence) == (5, 10)
    assert (TIMING.request_head, TIMING.keep_alive, TIMING.reading) == (30, 75, 60)
    assert (TIMING.body, TIMING.body_share) == (30, 30 * 1024)
