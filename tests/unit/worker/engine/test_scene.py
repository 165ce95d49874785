"""worker.engine.scene: sequences as plain values."""

from __future__ import annotations

from tests.helpers.scenes import decoding, member
from worker.engine.scene import Scene, oldest, youngest


def test_who_is_under_way_decodes_or_is_a_prompt() -> None:
    scene = Scene((decoding(member(1), member(2)), decoding(member(3))), (member(4),), (member(5),))
    assert [each.key for each in scene.live] == [1, 2, 3, 4]
    assert scene.batches[0].span == (1000, 1000)


def test_when_the_longest_leaves_the_rows_of_its_batch_are_shifted() -> None:
    longest, other = member(1, 1000), member(2, 700)
    scene = Scene((decoding(longest, other, room=1024), decoding(member(3))))
    left = scene.without(longest)
    assert (left.batches[0].members, left.batches[0].room) == ((other,), 724)
    assert left.batches[1] == scene.batches[1]
    assert scene.without(other).batches[0].room == 1024


def test_a_batch_without_members_is_none() -> None:
    alone = member(1)
    scene = Scene((decoding(alone),), (member(2),), (member(3),), places=7)
    assert scene.without(alone) == Scene((), (member(2),), (member(3),), places=7)
    assert scene.without(member(2)).prompts == ()


def test_age_is_when_a_request_came_and_then_its_place() -> None:
    members = [member(2), member(1), member(3)]
    assert (oldest(members).key, youngest(members).key) == (1, 3)
