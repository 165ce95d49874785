"""Numbers in JSON Schemas: what they must be, and bounds that llguidance would get wrong."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

EXACT = 2**53
"""llguidance computes with doubles: integers beyond are rounded."""
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_MULTIPLES = 1000
_NEXT = 1e-9


def count(value: object) -> int | None:
    """The whole number that a schema's `maxLength` and its like must be: 2.0 is one. None = it is
    not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if whole else None  # type: ignore[return-value]


def digits(value: float) -> int:
    """All significant digits of a number, as an integer: 0.25 → 25."""
    mantissa = re.sub(r"[eE].*", "", repr(value)).replace(".", "").strip("0")
    whole = isinstance(value, int) or value.is_integer()
    return int(value) if whole else int(mantissa or 0)


def list_multiples(schema: dict[str, Any]) -> None:
    """Where few multiples of `multipleOf` lie within the bounds, put them in place of both, as an
    `enum`; elsewhere move the bounds to multiples. llguidance divides doubles (0.3 / 0.1 < 3), and
    takes 0.1 for no number above 0.05, which has more digits."""
    low, high = _range(schema)
    step = schema.get("multipleOf")
    if step is None or (low is None and high is None):
        return
    each = Fraction(repr(step))
    first = None if low is None else math.ceil(low[0] / each)
    last = None if high is None else math.floor(high[0] / each)
    if low is not None and first is not None:
        first += low[1] and first * each == low[0]
    if high is not None and last is not None:
        last -= high[1] and last * each == high[0]
    if first is not None and last is not None:
        if first > last:
            return
        alone = (
            schema.get("type") in ("number", "integer") and not {"enum", "const"} & schema.keys()
        )
        if alone and last - first < _MAX_MULTIPLES:
            found = [each * number for number in range(first, last + 1)]
            if schema["type"] == "integer":
                found = [value for value in found if value.denominator == 1]
            for keyword in (*LIMITS, "multipleOf"):
                schema.pop(keyword, None)
            schema["enum"] = [_number(value) for value in found]
            return
    for keyword, number in (("minimum", first), ("maximum", last)):
        if number is not None:
            schema.pop(f"exclusive{keyword.capitalize()}", None)
            schema[keyword] = _number(each * number)


def close_bounds(schema: dict[str, Any], *, merged: bool) -> None:
    """Make exclusive bounds inclusive where llguidance would let them pass: a whole number, if the
    other bound lies within the same unit, as in 0 < x ≤ 0.5. `merged`: another schema may add
    one."""
    low, high = _range(schema)
    narrow = low is not None and high is not None and high[0] - low[0] < 1
    for keyword, tightest, sign, other in (
        ("exclusiveMinimum", low, 1, "minimum"),
        ("exclusiveMaximum", high, -1, "maximum"),
    ):
        value = schema.get(keyword)
        if value is None or not (narrow or merged) or schema.get("type") == "integer":
            continue
        if (
            tightest is not None
            and tightest == (Fraction(repr(value)), True)
            and value == int(value)
        ):
            del schema[keyword]
            schema[other] = value + sign * max(_NEXT, math.ulp(value))


def _range(
    schema: dict[str, Any],
) -> tuple[tuple[Fraction, bool] | None, tuple[Fraction, bool] | None]:
    """The lower and the upper bound, and whether each is exclusive."""
    low, high = (
        [
            (Fraction(repr(schema[keyword])), exclusive)
            for keyword, exclusive in ((name, False), (f"exclusive{name.capitalize()}", True))
            if keyword in schema
        ]
        for name in ("minimum", "maximum")
    )
    return (
        max(low, default=None),
        min(high, key=lambda bound: (bound[0], not bound[1]), default=None),
    )


def _number(value: Fraction) -> float:
    return int(value) if value.denominator == 1 and abs(value) <= EXACT else float(value)
