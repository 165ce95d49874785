"""gateway.responses.reasoning"""

from __future__ import annotations

import pytest

from gateway.responses.reasoning import concealed, revealed


@pytest.mark.parametrize("text", ["", "hm", "naïve 模型 😀\n\0"])
def test_what_is_sent_back_is_read(text: str) -> None:
    assert revealed(concealed(text)) == text
    assert concealed(text).isascii()


@pytest.mark.parametrize(
    "content", ["", "gAAAAABo", "bulkhead-1.%", "bulkhead-1._w==", "bulkhead-1.é"]
)
def test_what_is_another_servers_is_not(content: str) -> None:
    assert revealed(content) in (None, "")
