"""gateway.http.access_log: what one line tells of a request."""

from __future__ import annotations

import pytest

from gateway.http.access_log import CLIENT_LEFT, AccessRecord


def record(**known: object) -> AccessRecord:
    told = AccessRecord(100.0, "POST", "/v1/chat/completions", "127.0.0.1")
    for name, value in known.items():
        assert hasattr(told, name)
        setattr(told, name, value)
    return told


def test_a_line_has_all_that_is_known_in_a_fixed_order() -> None:
    told = record(
        key="laptop",
        model="coder",
        worker="coder#3",
        stream=True,
        status=200,
        finish="stop",
        granted_at=100.25,
        first_at=101.0,
        prompt_tokens=20,
        cached_tokens=4,
        completion_tokens=41,
        recoveries=1,
    )
    assert told.line("req-1", 105.0) == (
        "req-1 client=127.0.0.1 key=laptop method=POST path=/v1/chat/completions status=200 "
        "model=coder worker=coder#3 stream=yes finish=stop prompt=20 cached=4 completion=41 "
        "queue_s=0.250 ttft_s=1.000 total_s=5.000 tokens_per_s=10.0 recoveries=1"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert record(status=404, code="model_not_found", model="nope").line("r", 100.0) == (
        "r client=127.0.0.1 method=POST path=/v1/chat/completions status=404 "
        "code=model_not_found model=nope total_s=0.000"
    )


def test_a_client_that_left_has_no_status_unless_the_headers_had_gone_out() -> None:
    assert f" status=- code={CLIENT_LEFT} " in record(code=CLIENT_LEFT).line("r", 101.0)
    assert f" status=200 code={CLIENT_LEFT} " in record(status=200, code=CLIENT_LEFT).line("r", 1.0)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("org/model:latest", "org/model:latest"),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("\x1b[31m", r'"\u001b[31m"'),
        ("модель", r'"\u043c\u043e\u0434\u0435\u043b\u044c"'),
        ("\udcff", r'"\udcff"'),
        ("\u2028", r'"\u2028"'),
    ],
)
def test_no_value_breaks_the_line(value: str, shown: str) -> None:
    line = record(status=403, refused={"host": value}, model=value).line("r", 101.0)
    assert f" host={shown} model={shown} " in line
    assert line.isascii()
    assert line.isprintable()


def test_a_long_value_is_cut() -> None:
    line = record(status=404, model="x" * 5000).line("r", 101.0)
    assert f'model="{"x" * 100}' in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("completion", "first"), [(None, 101.0), (0, 101.0), (1, 101.0), (5, None), (5, 105.0)]
)
def test_there_is_no_speed_of_less_than_two_tokens(
    completion: int | None, first: float | None
) -> None:
    told = record(completion_tokens=completion, first_at=first)
    assert "tokens_per_s" not in told.line("r", 105.0)
