"""gateway.openai.render_completions: what OpenAI's own types accept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest
from openai.types import Completion

from supervisor.wire.frames import Token
from tests.helpers.openai_answers import (
    END,
    LOGPROB_TOKENS,
    NAMES,
    TEXTS,
    USAGE,
    USED,
    buffered,
    events,
    renderer,
    tokens_of,
)


@pytest.mark.parametrize("model", NAMES)
def test_a_text_answer_is_what_the_sdk_expects(model: str) -> None:
    choice = buffered(tokens_of(["te", "xt"]), END)
    body = renderer(chat=False, model=model).answer([choice], USED)
    answer = Completion.model_validate_json(body, strict=True)
    assert (answer.id, answer.model, answer.object) == (answer.id, model, "text_completion")
    assert re.fullmatch("cmpl-[0-9a-f]{24}", answer.id)
    (one,) = answer.choices
    assert (one.index, one.text, one.finish_reason, one.logprobs) == (0, "text", "length", None)
    assert answer.usage is not None
    assert answer.usage.to_dict() == USAGE


def text_chunks(data: Sequence[str]) -> list[Completion]:
    """Chunks of a completion; the SDK's type knows no null where OpenAI's own streams have it."""
    chunks = []
    for each in map(json.loads, data):
        for choice in each["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        chunks.append(Completion.model_validate_json(json.dumps(each), strict=True))
    return chunks


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("model", NAMES)
def test_a_text_stream_is_what_the_sdk_expects(model: str, include_usage: bool) -> None:
    render = renderer(chat=False, model=model, include_usage=include_usage)
    data = [event for token in tokens_of(TEXTS) for event in events(render.token(0, token))]
    assert len(data) == len(TEXTS)
    data += events(render.finish(0, END) + render.done(USED, 0))
    assert data.pop() == "[DONE]"
    reasons = [each["finish_reason"] for event in data for each in json.loads(event)["choices"]]
    assert reasons == [None] * len(TEXTS) + ["length"]
    chunks = text_chunks(data)
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert {chunk.model for chunk in chunks} == {model}
    if include_usage:
        last = chunks.pop()
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.to_dict() == USAGE
    assert [chunk.choices[0].text for chunk in chunks] == [*TEXTS, ""]


def test_the_prompt_comes_before_the_completion() -> None:
    choice = buffered(tokens_of(["a", "b"]), END)
    choice.echo = "prompt "
    body = renderer(chat=False).answer([choice], USED)
    assert Completion.model_validate_json(body).choices[0].text == "prompt ab"


@pytest.mark.parametrize("texts", [[], ["a"], ["", "b"]])
def test_a_stream_begins_with_the_prompt(texts: list[str]) -> None:
    render = renderer(chat=False, choices=2)
    render.echo(1, "prompt ")
    data = [event for token in tokens_of(texts) for event in events(render.token(1, token))]
    assert len(data) == len(texts)
    data += events(render.finish(1, END))
    assert "".join(chunk.choices[0].text for chunk in text_chunks(data)) == "prompt " + "".join(
        texts
    )
    other = text_chunks(events(render.token(0, Token(1, "x")) + render.finish(0, END)))
    assert "".join(chunk.choices[0].text for chunk in other) == "x"


LEGACY_FORM = {
    "tokens": ["Hé", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "!"],
    "token_logprobs": [-0.5, -1.0, -2.0, -9999.0],
    "top_logprobs": [
        {"Ha": -0.25, "Hé": -0.5},
        {"x": -9999.0, "bytes:\\xf0\\x9f": -1.0},
        {"bytes:\\x98\\x80": -2.0},
        {"!": -9999.0},
    ],
    "text_offset": [0, 2, 2, 3],
}


def test_log_probabilities_of_a_completion() -> None:
    body = renderer(chat=False).answer([buffered(LOGPROB_TOKENS, END, logprobs=True)], USED)
    told = Completion.model_validate_json(body, strict=True).choices[0].logprobs
    assert told is not None
    assert told.to_dict() == LEGACY_FORM


def test_log_probabilities_of_a_completion_stream() -> None:
    render = renderer(chat=False)
    data = [event for token in LOGPROB_TOKENS for event in events(render.token(0, token))]
    forms = [chunk.choices[0].logprobs for chunk in text_chunks(data)]
    assert len(forms) == len(LOGPROB_TOKENS)
    for name, expected in LEGACY_FORM.items():
        joined = [value for form in forms for value in getattr(form, name)]
        assert joined == expected
