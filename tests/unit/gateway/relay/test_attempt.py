"""gateway.relay.attempt: how many choices run at once, and what a choice needs to go on."""

from __future__ import annotations

import resource

import pytest

from gateway.relay.attempt import AT_ONCE, ChoiceState, choices_at_once
from supervisor.models.catalog import DEFAULT_CONCURRENCY
from supervisor.wire.frames import (
    Accepted,
    Embed,
    End,
    Logprob,
    Logprobs,
    PromptLogprobs,
    Token,
    Vector,
)
from tests.helpers.relay_peers import REQUEST


@pytest.mark.parametrize(
    ("files", "choices"),
    [(16384, 64), (2**20, 64), (4096, 16), (1024, 4), (255, 1), (resource.RLIM_INFINITY, 64)],
)
def test_fewer_choices_run_at_once_where_few_files_may_be_open(files: int, choices: int) -> None:
    assert choices_at_once(files) == choices


def test_one_request_may_have_all_places_of_a_worker() -> None:
    """Unless configured otherwise; the supervisor says how many it has."""
    assert AT_ONCE == DEFAULT_CONCURRENCY


def test_a_request_goes_on_behind_its_tokens() -> None:
    choice = ChoiceState(REQUEST)
    assert choice.remaining() is REQUEST
    for frame in (Accepted(3), Token(5, "a"), Token(6, "b")):
        assert choice.note(frame)
    assert getattr(choice.remaining(), "emitted", None) == (5, 6)
    assert not choice.ended
    assert choice.note(End("stop", 3, 2))
    assert choice.ended


def test_a_prompts_text_is_new_only_once() -> None:
    """The frame itself is handed out again: the request is worked on."""
    choice = ChoiceState(REQUEST)
    echo = Accepted(3, "the prompt")
    assert [choice.note(echo) for _ in range(2)] == [echo, Accepted(3)]


def test_a_request_goes_on_behind_what_its_prompt_has_scored() -> None:
    choice = ChoiceState(REQUEST)
    one = Logprobs(Logprob(5, "a", b"a", -1.0), ())
    for frame in (PromptLogprobs(0, (one, one)), PromptLogprobs(2, (one,))):
        assert choice.note(frame) is frame
    rest = choice.remaining()
    assert (getattr(rest, "scored", None), getattr(rest, "emitted", None)) == (3, ())
    choice.note(Token(6, "b"))
    rest = choice.remaining()
    assert (getattr(rest, "scored", None), getattr(rest, "emitted", None)) == (3, (6,))


def test_vectors_that_the_next_worker_sends_again_are_not_new() -> None:
    choice = ChoiceState(Embed("r", ("a", "b", "c")))
    vector = Vector(b"")
    assert [choice.note(vector) for _ in range(2)] == [vector, vector]
    assert choice.remaining() is choice.request
    assert [choice.note(vector) for _ in range(3)] == [None, None, vector]
