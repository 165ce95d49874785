"""gateway.openai.fates: what a parameter that is none of our own becomes."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai.fates import Fate, Ignored, Mapped, Nested, Neutral, Refused, translate
from supervisor.errors import BulkheadError, InvalidType, InvalidValue, UnsupportedParameter

OWN = frozenset({"stop", "heat", "chat_template_kwargs"})


def _positive(value: Any) -> dict[str, Any]:
    if not isinstance(value, int):
        raise ValueError("expected a number")
    return {"heat": value}


FATES: dict[str, Fate] = {
    "cache": Ignored(),
    "mirostat": Neutral((0, [1]), "no such sampler"),
    "grammar": Refused("use a schema"),
    "temp": Mapped("`heat`", _positive),
    "stops": Mapped("`stop`", lambda value: {"stop": value}),
    "think": Mapped("templates", lambda value: {"chat_template_kwargs": {"thinking": value}}),
    "options": Nested(frozenset({"heat"}), {"cache": Mapped("`stop`", lambda v: {"stop": v})}),
}


@pytest.mark.parametrize(
    ("raw", "members", "ignored"),
    [
        ({"heat": 1}, {"heat": 1}, []),
        ({"cache": {"any": ["thing"]}}, {}, ["cache"]),
        ({"mirostat": 0.0}, {}, ["mirostat"]),
        ({"mirostat": [1]}, {}, ["mirostat"]),
        ({"temp": 2}, {"heat": 2}, []),
        ({"temp": 2, "heat": 1}, {"heat": 1}, ["temp"]),
        ({"temp": 1, "heat": 1}, {"heat": 1}, []),
        ({"think": True}, {"chat_template_kwargs": {"thinking": True}}, []),
        (
            {"think": True, "chat_template_kwargs": {"thinking": False, "more": 1}},
            {"chat_template_kwargs": {"thinking": False, "more": 1}},
            ["think"],
        ),
        (
            {"options": {"heat": 3, "mirostat": 0, "cache": "x"}},
            {"heat": 3, "stop": "x"},
            ["options.mirostat"],
        ),
        ({"options": {"heat": 3}, "heat": 1}, {"heat": 1}, ["options.heat"]),
        ({"options": {"heat": 3}, "temp": 1}, {"heat": 1}, ["options.heat"]),
        ({"options": {}}, {}, []),
        ({"unknown": 1}, {"unknown": 1}, []),
    ],
)
def test_what_becomes_of_it(raw: Any, members: Any, ignored: list[str]) -> None:
    done = translate(raw, OWN, FATES)
    assert (done.members, done.ignored) == (members, ignored)


@pytest.mark.parametrize(
    ("raw", "kind", "param"),
    [
        ({"mirostat": 1}, UnsupportedParameter, "mirostat"),
        ({"mirostat": False}, UnsupportedParameter, "mirostat"),
        ({"grammar": "secret"}, UnsupportedParameter, "grammar"),
        ({"temp": "secret"}, InvalidType, "temp"),
        ({"options": "secret"}, InvalidType, "options"),
        ({"options": {"grammar": 1}}, UnsupportedParameter, "options.grammar"),
        ({"options": {"unknown": 1}}, UnsupportedParameter, "options.unknown"),
        ({"options": {"options": {}}}, UnsupportedParameter, "options.options"),
        ({"options": {"temp": "secret"}}, InvalidType, "options.temp"),
    ],
)
def test_what_is_refused_is_named_and_not_quoted(
    raw: Any, kind: type[BulkheadError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        translate(raw, OWN, FATES)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message
    assert "secret" not in caught.value.message


def test_what_would_change_the_answer_is_refused_with_a_reason_and_a_pointer() -> None:
    with pytest.raises(UnsupportedParameter, match=r"use a schema.*docs/api\.md#settings-of"):
        translate({"grammar": "x"}, OWN, FATES)


def test_errors_use_the_clients_words() -> None:
    done = translate({"options": {"heat": 3}, "stops": ["a", ""]}, OWN, FATES)
    for param, told in (("heat", "options.heat"), ("stop[1]", "stops[1]"), ("other", "other")):
        error = done.in_the_clients_words(InvalidValue(f"Invalid `{param}`.", param=param))
        assert (error.param, error.message) == (told, f"Invalid `{told}`.")
