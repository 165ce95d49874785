"""gateway.openai.embeddings: the forms of input, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.openai.embeddings import EMBEDDING_BODY, INPUTS_MAX
from supervisor.errors import BulkheadError
from supervisor.wire.frames import Embed


@pytest.mark.parametrize(
    ("input", "inputs"),
    [
        ("a", ("a",)),
        (["a"], ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1], "a"], ((1,), "a")),
        ([7] * (INPUTS_MAX + 1), ((7,) * (INPUTS_MAX + 1),)),
        (["a"] * INPUTS_MAX, ("a",) * INPUTS_MAX),
    ],
)
def test_forms_of_input(input: Any, inputs: tuple[Any, ...]) -> None:
    parsed = EMBEDDING_BODY.parse({"model": "m", "input": input, "user": "u"})
    assert parsed.embed("r", 4.5) == Embed("r", inputs, now=4.5)
    assert parsed.encoding_format == "float"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": [[1], []]}, "invalid_value", "input[1]"),
        ({"input": [[1], [-1]]}, "invalid_value", "input[1][0]"),
        ({"input": [2**31]}, "invalid_value", "input[0]"),
        ({"input": [2**70]}, "invalid_value", "input[0]"),
        ({"input": ["a", 1]}, "invalid_type", "input[1]"),
        ({"input": [1.5]}, "invalid_type", "input[0]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": {"text": "a"}}, "invalid_type", "input"),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "invalid_value", "input"),
        ({"input": [[1]] * (INPUTS_MAX + 1)}, "invalid_value", "input"),
        ({"input": "a", "encoding_format": "int8"}, "unsupported_value", "encoding_format"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": "9"}, "invalid_type", "dimensions"),
        ({"input": "a", "model": 1}, "invalid_type", "model"),
        ({"input": "a", "task": True}, "unsupported_parameter", "task"),
    ],
)
def test_requests_that_are_refused(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(BulkheadError) as caught:
        EMBEDDING_BODY.parse(body).embed("r", 0.0)
    assert (caught.value.code, caught.value.param) == (code, param)
