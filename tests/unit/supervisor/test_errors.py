"""supervisor.errors: the tree, and what each error tells a client."""

from __future__ import annotations

import inspect
import math
import re
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import errors
from supervisor.errors import (
    BulkheadError,
    ClientError,
    InternalError,
    RequestTimeout,
    TransientError,
    clamp_retry_after,
    restore,
)

_LINE = re.compile(r"^[│├└─ ]*(?P<name>[A-Z]\w+)(?:  +(?P<rest>.*))?$")


def descendants(cls: type[BulkheadError]) -> list[type[BulkheadError]]:
    return [each for child in cls.__subclasses__() for each in (child, *descendants(child))]


LEAVES = [cls for cls in descendants(BulkheadError) if not cls.__subclasses__()]


def drawn_tree() -> dict[str, str]:
    """Names in the docstring's tree with what stands behind them."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if line[:1] in "│├└"]
    found = filter(None, map(_LINE.match, lines))
    return {match["name"]: match["rest"] or "" for match in found}


def test_the_docstring_draws_the_tree() -> None:
    assert list(drawn_tree()) == [cls.__name__ for cls in descendants(BulkheadError)]


@pytest.mark.parametrize("cls", LEAVES)
def test_the_docstring_tells_status_and_code(cls: type[BulkheadError]) -> None:
    assert drawn_tree()[cls.__name__] == f"{cls.status} {cls.code}"


def test_a_code_tells_the_error() -> None:
    assert len({cls.code for cls in LEAVES}) == len(LEAVES)


@pytest.mark.parametrize("cls", LEAVES)
def test_an_sdk_retries_by_itself_what_may_succeed_later_and_nothing_else(
    cls: type[BulkheadError],
) -> None:
    sdk: Any = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:1")
    error = cls("Text.")
    headers = {name.lower(): value for name, value in error.headers().items()}
    retried = sdk._should_retry(SimpleNamespace(status_code=error.status, headers=headers))
    assert retried is issubclass(cls, (TransientError, InternalError, RequestTimeout))


@pytest.mark.parametrize("cls", LEAVES)
def test_the_type_says_whose_fault_it_is(cls: type[BulkheadError]) -> None:
    assert cls.type == ("invalid_request_error" if cls.status < 500 else "server_error")
    assert issubclass(cls, (ClientError, RequestTimeout)) == (cls.status < 500)


@pytest.mark.parametrize("cls", LEAVES)
def test_an_error_crosses_the_wire_as_plain_values(cls: type[BulkheadError]) -> None:
    error = cls("What happened. What to do.", param="model", retry_after=7.2)
    again = restore(error.code, error.message, param=error.param, retry_after=error.retry_after)
    assert type(again) is cls
    assert (again.body(), again.headers()) == (error.body(), error.headers())


@pytest.mark.parametrize("code", ["", "no_such_code", "BulkheadError"])
def test_an_unknown_code_is_a_bug_of_ours(code: str) -> None:
    error = restore(code, "text", param=None, retry_after=None)
    assert (error.status, error.code, error.message) == (500, "internal_error", "text")


@pytest.mark.parametrize("cls", LEAVES)
def test_a_body_has_the_four_members_always(cls: type[BulkheadError]) -> None:
    assert cls("Text.").body() == {
        "error": {"message": "Text.", "type": cls.type, "param": None, "code": cls.code}
    }
    assert cls("Text.", param="a[0].b").body()["error"]["param"] == "a[0].b"


@pytest.mark.parametrize("cls", LEAVES)
def test_only_what_may_succeed_later_tells_when_to_come_back(cls: type[BulkheadError]) -> None:
    headers = cls("Text.").headers()
    assert ("Retry-After" in headers) == issubclass(cls, TransientError)
    assert headers.get("Retry-After", "5") == "5"
    expected = {None: None, True: "true", False: "false"}[cls.should_retry]
    assert headers.get("x-should-retry") == expected


@pytest.mark.parametrize(
    ("seconds", "header"),
    [
        (-5.0, 1),
        (0.0, 1),
        (0.2, 1),
        (1.0, 1),
        (1.1, 2),
        (58.5, 59),
        (59.0, 59),
        (1e9, 59),
        (math.inf, 59),
        (math.nan, 59),
    ],
)
def test_retry_after_is_what_every_sdk_obeys(seconds: float, header: int) -> None:
    assert clamp_retry_after(seconds) == header
    assert TransientError("Text.", retry_after=seconds).headers()["Retry-After"] == str(header)


@settings(deadline=None)
@given(st.floats())
def test_retry_after_is_an_integer_from_1_to_59(seconds: float) -> None:
    assert clamp_retry_after(seconds) in range(1, 60)


def test_nothing_is_429() -> None:
    assert 429 not in {cls.status for cls in descendants(BulkheadError)}


def test_every_error_of_the_module_is_in_the_tree() -> None:
    classes = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, BaseException)
    }
    assert classes == {BulkheadError, *descendants(BulkheadError)}
