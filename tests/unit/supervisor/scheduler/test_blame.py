"""supervisor.scheduler.blame: deaths and quarantines by digest."""

from __future__ import annotations

from supervisor.scheduler.blame import DEATHS_MAX, QUARANTINE_SECONDS, BlameRecords


def test_deaths_are_counted_by_digest_and_forgotten_in_time() -> None:
    records = BlameRecords()
    assert records.deaths(b"a", 0.0) == 0
    assert [records.add_death(b"a", at, alone=True) for at in (0.0, 10.0)] == [1, 2]
    assert records.add_death(b"b", 10.0, alone=True) == 1
    assert records.deaths(b"a", 9.9 + QUARANTINE_SECONDS) == 2  # the last one counts
    assert records.deaths(b"a", 10.0 + QUARANTINE_SECONDS) == 0
    assert records.add_death(b"a", 10.0 + QUARANTINE_SECONDS, alone=True) == 1


def test_a_request_that_got_further_has_a_clean_record() -> None:
    records = BlameRecords()
    records.add_death(b"a", 0.0, alone=True)
    records.add_death(b"b", 0.0, alone=True)
    records.clear(b"a")
    records.clear(b"never seen")
    assert (records.deaths(b"a", 0.0), records.deaths(b"b", 0.0)) == (0, 1)


def test_deaths_are_no_quarantine_yet() -> None:
    records = BlameRecords()
    for _ in range(DEATHS_MAX + 1):
        records.add_death(b"a", 5.0, alone=True)
    assert not records.is_quarantined(b"a", 5.0)
    assert records.quarantined(5.0) == []
    records.quarantine(b"a")
    assert records.is_quarantined(b"a", 5.0)
    assert not records.is_quarantined(b"b", 5.0)
    assert records.quarantined(5.0) == [(b"a", 5.0 + QUARANTINE_SECONDS)]
    assert records.quarantined(5.0 + QUARANTINE_SECONDS) == []
    assert not records.is_quarantined(b"a", 5.0 + QUARANTINE_SECONDS)


def test_quarantines_of_an_earlier_run_hold_as_long_as_they_held_there() -> None:
    records = BlameRecords()
    records.restore([(b"a", 7.0), (b"b", 9.0)])
    assert records.is_quarantined(b"a", 6.9)
    assert not records.is_quarantined(b"a", 7.0)
    assert records.quarantined(8.0) == [(b"b", 9.0)]
    assert records.add_death(b"b", 8.0, alone=True) == DEATHS_MAX + 1


def test_the_oldest_of_a_thousand_is_forgotten() -> None:
    records = BlameRecords()
    for number in range(1000):
        records.add_death(b"%d" % number, 0.0, alone=True)
    records.add_death(b"0", 0.0, alone=True)  # no longer the oldest
    records.add_death(b"new", 0.0, alone=True)
    kept = [records.deaths(digest, 0.0) for digest in (b"0", b"1", b"2", b"new")]
    assert kept == [2, 0, 1, 1]


def test_the_last_of_two_deaths_must_be_alone() -> None:
    records = BlameRecords()
    assert not records.is_guilty(b"a", 0.0)
    for alone, guilty in ((True, False), (False, False), (True, True), (False, False)):
        records.add_death(b"a", 0.0, alone=alone)
        assert records.is_guilty(b"a", 0.0) is guilty
    records.add_death(b"a", 0.0, alone=True)
    assert not records.is_guilty(b"a", QUARANTINE_SECONDS)
