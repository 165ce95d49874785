"""A lease: what it may use of the places that it is given."""

import pytest

from supervisor.scheduler.lease import Lease


@pytest.mark.parametrize(
    ("places", "at_once", "wants"), [(1, 0, 1), (32, 0, 32), (32, 8, 8), (5, 8, 5), (0, 8, 0)]
)
def test_a_lease_wants_as_many_places_as_it_can_use(places: int, at_once: int, wants: int) -> None:
    assert Lease(1, "r", 0.0, places=places, at_once=at_once).wants == wants
