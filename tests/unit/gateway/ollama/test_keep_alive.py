"""gateway.ollama.keep_alive: numbers, durations, and what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.ollama.keep_alive import seconds
from supervisor.errors import ClientError, InvalidType, InvalidValue


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        (0, 0.0),
        ("0", 0.0),
        ("0s", 0.0),
        (300, 300.0),
        (0.5, 0.5),
        ("300", 300.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h0m0.5s", 3600.5),
        ("250ms", 0.25),
        ("+2s", 2.0),
        (".5m", 30.0),
        (-1, -1.0),
        ("-1", -1.0),
        ("-1m", -1.0),
        (-0.1, -1.0),
        ("-5m30s", -1.0),
        ("87600h", 315360000.0),
        ("87601h", -1.0),
        (10**300, -1.0),
        (1e308, -1.0),
        ("999999999999999h", -1.0),
    ],
)
def test_seconds(value: Any, expected: float | None) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, InvalidType),
        (False, InvalidType),
        ([], InvalidType),
        ({}, InvalidType),
        ("soon", InvalidValue),
        ("5", None),
        ("5 m", InvalidValue),
        ("5x", InvalidValue),
        ("m", InvalidValue),
        ("-", InvalidValue),
        ("1m-1s", InvalidValue),
        ("nan", InvalidValue),
        ("inf", InvalidValue),
        ("1e3", InvalidValue),
        ("١m", InvalidValue),
        ("1s" * 5000, InvalidValue),
    ],
)
def test_what_is_no_time(value: Any, kind: type[ClientError] | None) -> None:
    if kind is None:
        assert seconds(value) == 5.0
        return
    with pytest.raises(kind) as caught:
        seconds(value)
    assert caught.value.param == "keep_alive"
