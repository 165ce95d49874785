"""supervisor.scheduler.blame: strikes and verdicts by digest."""

from __future__ import annotations

from supervisor.scheduler.blame import QUARANTINE_SECONDS, STRIKES, BlameRecords


def test_strikes_are_counted_by_digest_and_forgotten_in_time() -> None:
    docket = BlameRecords()
    assert docket.strikes(b"a", 0.0) == 0
    assert [docket.strike(b"a", at) for at in (0.0, 10.0)] == [1, 2]
    assert docket.strike(b"b", 10.0) == 1
    assert docket.strikes(b"a", 9.9 + QUARANTINE_SECONDS) == 2  # the last one counts
    assert docket.strikes(b"a", 10.0 + QUARANTINE_SECONDS) == 0
    assert docket.strike(b"a", 10.0 + QUARANTINE_SECONDS) == 1


def test_a_request_that_got_further_has_a_clean_record() -> None:
    docket = BlameRecords()
    docket.strike(b"a", 0.0)
    docket.strike(b"b", 0.0)
    docket.clear(b"a")
    docket.clear(b"never seen")
    assert (docket.strikes(b"a", 0.0), docket.strikes(b"b", 0.0)) == (0, 1)


def test_strikes_alone_are_no_verdict() -> None:
    docket = BlameRecords()
    for _ in range(STRIKES + 1):
        docket.strike(b"a", 5.0)
    assert not docket.guilty(b"a", 5.0)
    assert docket.verdicts(5.0) == []
    docket.convict(b"a")
    assert docket.guilty(b"a", 5.0)
    assert not docket.guilty(b"b", 5.0)
    assert docket.verdicts(5.0) == [(b"a", 5.0 + QUARANTINE_SECONDS)]
    assert docket.verdicts(5.0 + QUARANTINE_SECONDS) == []
    assert not docket.guilty(b"a", 5.0 + QUARANTINE_SECONDS)


def test_verdicts_of_an_earlier_run_hold_as_long_as_they_held_there() -> None:
    docket = BlameRecords()
    docket.restore([(b"a", 7.0), (b"b", 9.0)])
    assert docket.guilty(b"a", 6.9)
    assert not docket.guilty(b"a", 7.0)
    assert docket.verdicts(8.0) == [(b"b", 9.0)]
    assert docket.strike(b"b", 8.0) == STRIKES + 1


def test_the_oldest_of_a_thousand_is_forgotten() -> None:
    docket = BlameRecords()
    for number in range(1000):
        docket.strike(b"%d" % number, 0.0)
    docket.strike(b"0", 0.0)  # no longer the oldest
    docket.strike(b"new", 0.0)
    kept = [docket.strikes(digest, 0.0) for digest in (b"0", b"1", b"2", b"new")]
    assert kept == [2, 0, 1, 1]
