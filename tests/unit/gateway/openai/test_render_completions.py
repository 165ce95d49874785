"""gateway.openai.render_completions: what OpenAI's own types accept."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from openai.types import Completion

from gateway.dialect import AnswerHead, PromptRenderer
from gateway.openai import render_completions
from gateway.openai.render_completions import TextRenderer
from gateway.openai.schemas import Completion as Documented
from supervisor.errors import InvalidValue
from supervisor.wire.frames import Logprob, Logprobs, PromptLogprobs, Token
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


def _scored(text: str, value: float, *others: tuple[str, float]) -> Logprobs:
    top = tuple(Logprob(9, other, other.encode(), likely) for other, likely in others)
    return Logprobs(Logprob(7, text, text.encode(), value), top)


PROMPT = [
    PromptLogprobs(0, (_scored("Né", 0.0), _scored("xt", -3.5, ("w", -0.125)))),
    PromptLogprobs(2, (_scored(" ", -0.25, (" ", -0.25)),)),
]
SCORED_FORM: dict[str, list[Any]] = {
    "tokens": ["Né", "xt", " ", "a", "b"],
    "token_logprobs": [None, -3.5, -0.25, -1.5, -2.0],
    "top_logprobs": [None, {"w": -0.125, "xt": -3.5}, {" ": -0.25}, {"a": -1.5}, {"b": -2.0}],
    "text_offset": [0, 2, 4, 5, 6],
}
OUTPUT = [Token(1, "a", logprobs=_scored("a", -1.5)), Token(2, "b", logprobs=_scored("b", -2.0))]


def scoring(choices: int = 1) -> TextRenderer:
    made = TextRenderer(AnswerHead(1.5, "m", choices))
    assert isinstance(made, PromptRenderer)
    return made


def test_what_a_prompt_scores_comes_before_the_completions() -> None:
    render = scoring(choices=2)
    for told in PROMPT:
        render.keep_prompt(1, told)
    plain, choice = (buffered(OUTPUT, END, logprobs=True) for _ in range(2))
    choice.echo = "Néxt "
    body = render.answer([plain, choice], USED)

    first, second = json.loads(body)["choices"]
    assert second["logprobs"] == SCORED_FORM
    assert second["text"] == "Néxt ab"
    assert first["logprobs"] == {name: values[-2:] for name, values in SCORED_FORM.items()} | {
        "text_offset": [0, 1]
    }
    # The SDK's type, which it does not enforce, knows no null where OpenAI's own answers have it.
    msgspec.json.decode(body, type=Documented)


def test_of_a_prompt_alone_there_is_nothing_else() -> None:
    render = scoring()
    for told in PROMPT:
        render.keep_prompt(0, told)
    (choice,) = json.loads(render.answer([buffered([], END, logprobs=True)], USED))["choices"]
    assert choice["logprobs"] == {name: values[:3] for name, values in SCORED_FORM.items()}


def test_a_stream_tells_what_the_prompt_scores_with_its_text() -> None:
    render = scoring(choices=2)
    render.echo(1, "Néxt ")
    data = [event for told in PROMPT for event in events(render.prompt(1, told))]
    data += [event for token in OUTPUT for event in events(render.token(1, token))]
    chunks = [json.loads(event)["choices"][0] for event in data]

    assert [chunk["index"] for chunk in chunks] == [1] * 4
    assert [chunk["text"] for chunk in chunks] == ["Néxt ", "", "a", "b"]
    joined = {
        name: [value for chunk in chunks for value in chunk["logprobs"][name]]
        for name in SCORED_FORM
    }
    assert joined == SCORED_FORM


@pytest.mark.parametrize(
    ("prompt", "texts", "offsets"),
    [
        ("a b", ["<s>", "a", " b"], [0, 0, 1]),
        ("a b", ["<s>", " a", " b"], [0, 0, 1]),
        ("a b", [" a", " b"], [0, 1]),
        (" a b", [" a", " b"], [0, 2]),
        ("<s>a", ["<s>", "a"], [0, 3]),
    ],
)
def test_what_a_tokenizer_adds_takes_nothing_of_the_text(
    prompt: str, texts: list[str], offsets: list[int]
) -> None:
    render = scoring()
    render.echo(0, prompt)
    render.keep_prompt(0, PromptLogprobs(0, tuple(_scored(each, -1.0) for each in texts)))
    choice = buffered(OUTPUT, END, logprobs=True)
    choice.echo = prompt
    (told,) = json.loads(render.answer([choice], USED))["choices"]
    assert told["text"] == f"{prompt}ab"
    assert told["logprobs"]["text_offset"] == [*offsets, len(prompt), len(prompt) + 1]


def test_an_answer_keeps_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_completions, "KEPT_MAX", 80)
    render = scoring(choices=2)
    render.keep_prompt(0, PROMPT[0])
    with pytest.raises(InvalidValue, match="80 bytes") as caught:
        render.keep_prompt(1, PROMPT[0])
    assert caught.value.param == "logprobs"
    for told in PROMPT * 9:
        assert render.prompt(1, told)
