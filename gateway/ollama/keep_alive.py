"""Ollama's `keep_alive`: how long a model stays loaded after a request. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from gateway.openai.validation import invalid_value
from supervisor.errors import InvalidType

FOR_EVER = -1.0
_LONGEST = 10 * 365 * 86400.0
"""Seconds; what is longer never ends, and fits any clock."""
_UNITS: Final[Mapping[str, float]] = MappingProxyType(
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
)
_PART = r"(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})"
_NUMBER = re.compile(rf"[+-]?{_PART}")
_DURATION = re.compile(rf"(?P<sign>[+-]?)(?P<parts>(?:{_PART}(?:ns|us|µs|μs|ms|s|m|h)){{1,16}})")
_PIECE = re.compile(rf"({_PART})(ns|us|µs|μs|ms|s|m|h)")


def seconds(value: Any) -> float | None:
    """Seconds, 0 = none, negative = for ever; None = nothing was said.

    Numbers are seconds, and so are texts that hold no more than a number; other texts are durations
    as Go writes them: "5m", "1h30m", "-1s". Raises InvalidType or InvalidValue.
    """
    match value:
        case None | "":
            return None
        case bool():
            pass
        case int() | float():
            return _bounded(value)
        case str() if _NUMBER.fullmatch(value):
            return _bounded(float(value))
        case str() if found := _DURATION.fullmatch(value):
            length = sum(
                float(number) * _UNITS[unit] for number, unit in _PIECE.findall(found["parts"])
            )
            return _bounded(-length if found["sign"] == "-" else length)
        case str():
            raise invalid_value(
                "keep_alive", 'expected seconds, or a duration such as "5m", "1h30m" or "-1".'
            )
    raise InvalidType(
        "Invalid type for `keep_alive`: expected a number or a string.", param="keep_alive"
    )


def _bounded(value: float) -> float:
    return FOR_EVER if value < 0 or value > _LONGEST else float(value)
