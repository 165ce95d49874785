"""The content blocks of Anthropic's messages. Pure types.

Members that no type here has are ignored, as in chats: clients send answers back with what their
frameworks have noted in them. `cache_control` is one of them: prompts are cached as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

BLOCKS_MAX = 10_000
"""Far above any message: each costs time on the loop that all streams share."""
_BETWEEN = "\n\n"


class Block(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of all: told apart by their `type`."""


class TextBlock(Block, frozen=True, tag="text"):
    """Text."""

    text: str


class TextSource(Block, frozen=True, tag="text"):
    """A document that is plain text."""

    data: str


class ContentSource(Block, frozen=True, tag="content"):
    """A document of text blocks."""

    content: str | Annotated[list[TextBlock], Meta(max_length=BLOCKS_MAX)]


class DocumentBlock(Block, frozen=True, tag="document"):
    """A document of text; others, such as PDFs, are refused."""

    source: TextSource | ContentSource
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Block, frozen=True, tag="search_result"):
    """What a client has found, as text."""

    content: Annotated[list[TextBlock], Meta(max_length=BLOCKS_MAX)]
    source: str = ""
    title: str = ""


class ToolReferenceBlock(Block, frozen=True, tag="tool_reference"):
    """A tool that a client's search has found. All tools are shown from the beginning."""

    tool_name: str


class CompactionBlock(Block, frozen=True, tag="compaction"):
    """A summary that stands for earlier messages; null = it failed, and stands for none."""

    content: str | None = None


class ThinkingBlock(Block, frozen=True, tag="thinking"):
    """A thought of the assistant's. Its signature may be anybody's."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Block, frozen=True, tag="redacted_thinking"):
    """A thought that its maker alone can read: it is passed over."""

    data: str | None = None


class ToolUseBlock(Block, frozen=True, tag="tool_use"):
    """A call that the assistant has made."""

    id: str
    name: str
    input: dict[str, Any]


ResultPart = TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolResultBlock(Block, frozen=True, tag="tool_result"):
    """What a call came to."""

    tool_use_id: str
    content: str | Annotated[list[ResultPart], Meta(max_length=BLOCKS_MAX)] | None = None
    is_error: bool | None = None


class PassedBlock(Block, frozen=True):
    """Base of what Anthropic's own servers have done in a conversation, and of marks that no model
    sees: without effect."""


class ServerToolUse(PassedBlock, frozen=True, tag="server_tool_use"): ...


class WebSearchResult(PassedBlock, frozen=True, tag="web_search_tool_result"): ...


class WebFetchResult(PassedBlock, frozen=True, tag="web_fetch_tool_result"): ...


class CodeExecutionResult(PassedBlock, frozen=True, tag="code_execution_tool_result"): ...


class BashCodeExecutionResult(PassedBlock, frozen=True, tag="bash_code_execution_tool_result"): ...


class EditorExecutionResult(
    PassedBlock, frozen=True, tag="text_editor_code_execution_tool_result"
): ...


class ToolSearchResult(PassedBlock, frozen=True, tag="tool_search_tool_result"): ...


class AdvisorResult(PassedBlock, frozen=True, tag="advisor_tool_result"): ...


class MCPToolUse(PassedBlock, frozen=True, tag="mcp_tool_use"): ...


class MCPToolResult(PassedBlock, frozen=True, tag="mcp_tool_result"): ...


class MCPToolListing(PassedBlock, frozen=True, tag="mcp_tool_listing"): ...


class Fallback(PassedBlock, frozen=True, tag="fallback"): ...


Passed = (
    ServerToolUse
    | WebSearchResult
    | WebFetchResult
    | CodeExecutionResult
    | BashCodeExecutionResult
    | EditorExecutionResult
    | ToolSearchResult
    | AdvisorResult
    | MCPToolUse
    | MCPToolResult
    | MCPToolListing
    | Fallback
)
ContentBlock = (
    TextBlock
    | DocumentBlock
    | SearchResultBlock
    | CompactionBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | Passed
)
TextLike = TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock | CompactionBlock


def text_of(block: TextLike) -> str:
    """What the model reads of a block that is text, whatever else it says of itself."""
    match block:
        case TextBlock(text=text):
            return text
        case DocumentBlock(source=source):
            parts = (block.title, block.context, _source(source))
        case SearchResultBlock(content=content):
            parts = (block.title, block.source, joined(content))
        case ToolReferenceBlock(tool_name=name):
            return name
        case CompactionBlock(content=summary):
            return summary or ""
    return "\n".join(each for each in parts if each)


def _source(source: TextSource | ContentSource) -> str:
    if isinstance(source, TextSource):
        return source.data
    return source.content if isinstance(source.content, str) else joined(source.content)


def joined(blocks: Sequence[TextLike]) -> str:
    """Blocks are texts of their own: an empty line stands between them."""
    return _BETWEEN.join(text for each in blocks if (text := text_of(each)))
