"""What Anthropic's context management does to a conversation, as far as it is done here. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from gateway.openai.validation import StrictStruct

_EDITS_MAX = 16


class ThinkingTurns(StrictStruct, frozen=True, tag_field="type", tag="thinking_turns"):
    """So many of the last turns that hold thoughts."""

    value: Annotated[int, Meta(ge=1)]


class AllTurns(StrictStruct, frozen=True, tag_field="type", tag="all"):
    """As `"all"`."""


class ClearThinking(StrictStruct, frozen=True, tag_field="type", tag="clear_thinking_20251015"):
    """Thoughts of earlier turns are left out but for the last ones; without `keep` but for the
    last. What a template leaves out of itself stays out."""

    keep: Literal["all"] | AllTurns | ThinkingTurns | None = None


class ClearToolUses(StrictStruct, frozen=True, tag_field="type", tag="clear_tool_uses_20250919"):
    """Without effect: conversations are cut by no server here."""

    trigger: dict[str, Any] | None = None
    keep: dict[str, Any] | None = None
    clear_at_least: dict[str, Any] | None = None
    clear_tool_inputs: bool | list[str] | None = None
    exclude_tools: list[str] | None = None


class Compact(StrictStruct, frozen=True, tag_field="type", tag="compact_20260112"):
    """Without effect, as above."""

    trigger: dict[str, Any] | None = None
    instructions: str | None = None
    pause_after_compaction: bool | None = None


class ContextManagement(StrictStruct, frozen=True):
    """What is to be left out of a conversation."""

    edits: (
        Annotated[list[ClearThinking | ClearToolUses | Compact], Meta(max_length=_EDITS_MAX)] | None
    ) = None

    def ignored(self) -> tuple[str, ...]:
        """The types of edits that are not made."""
        return tuple(
            f"context_management.{edit.__struct_config__.tag}"
            for edit in self.edits or ()
            if not isinstance(edit, ClearThinking)
        )


def managed(
    messages: Sequence[dict[str, Any]], management: ContextManagement
) -> list[dict[str, Any]]:
    """The messages as chat templates take them, edited."""
    edited = list(messages)
    for edit in management.edits or ():
        if isinstance(edit, ClearThinking) and not isinstance(edit.keep, str | AllTurns):
            edited = _without_thoughts(edited, 1 if edit.keep is None else edit.keep.value)
    return edited


def _without_thoughts(messages: Sequence[dict[str, Any]], keep: int) -> list[dict[str, Any]]:
    """Without the thoughts but those of the last `keep` turns that have any. A turn ends where the
    user says something."""
    edited, turns, in_turn = [], 0, False
    for message in reversed(messages):
        if message["role"] == "user":
            in_turn = False
        elif "reasoning_content" in message:
            if not in_turn:
                turns, in_turn = turns + 1, True
            if turns > keep:
                message = {k: each for k, each in message.items() if k != "reasoning_content"}
        edited.append(message)
    return edited[::-1]
