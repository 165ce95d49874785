"""gateway.anthropic.context: what is left out of a conversation, and what is not done."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types.beta import beta_context_management_config_param as sdk

from tests.helpers.anthropic_bodies import USER, parsed, refusal, said, sdk_types

CALL = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}


def thought(what: str, *more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "thinking", "thinking": what}, *more]}


HISTORY = [
    USER, thought("a"), USER, thought("b", CALL), RESULT, thought("c"), USER,
    {"role": "assistant", "content": "no thought"}, USER,
]  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({}, "bc"),
        ({"keep": "all"}, "abc"),
        ({"keep": {"type": "all"}}, "abc"),
        ({"keep": {"type": "thinking_turns", "value": 1}}, "bc"),
        ({"keep": {"type": "thinking_turns", "value": 2}}, "abc"),
    ],
)
def test_thoughts_of_earlier_turns_are_left_out(keep: dict[str, Any], left: str) -> None:
    edit = {"type": "clear_thinking_20251015", **keep}
    told = said(*HISTORY, context_management={"edits": [edit]})
    assert "".join(each.get("reasoning_content", "") for each in told) == left
    assert len(told) == len(HISTORY)


def test_without_management_all_stay() -> None:
    assert said(*HISTORY) == said(*HISTORY, context_management={"edits": []})
    assert len([each for each in said(*HISTORY) if "reasoning_content" in each]) == 3


def test_every_edit_of_the_sdk_is_made_or_named() -> None:
    types = sdk_types(sdk.Edit)
    assert len(types) == 3
    asked = parsed(context_management={"edits": [{"type": each} for each in sorted(types)]})
    assert asked.ignored() == (
        "context_management.clear_tool_uses_20250919",
        "context_management.compact_20260112",
    )


@pytest.mark.parametrize(
    ("managed", "param"),
    [
        ({"edits": [{"type": "forget_all"}]}, "context_management.edits[0].type"),
        ({"edits": 1}, "context_management.edits"),
        ({"unheard_of": 1}, "context_management.unheard_of"),
        (
            {"edits": [{"type": "clear_thinking_20251015", "keep": "some"}]},
            "context_management.edits[0].keep",
        ),
    ],
)
def test_what_is_malformed(managed: Any, param: str) -> None:
    assert refusal(context_management=managed).param == param
