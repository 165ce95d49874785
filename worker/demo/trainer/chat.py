"""The chat format: the Jinja template that ships, and the same in Python for the trainer.

ChatML with Hermes tool calls. Thinking follows Qwen3: when it is off, the prompt already holds an
empty think block; when it is on, the model writes the block itself. Earlier answers are rendered
with the block they had, so a conversation's next prompt starts with the previous prompt plus its
answer, which lets a prefix cache hit. A test holds the two renderings equal.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from worker.demo import MODEL_DIR

START: Final = "<|im_start|>"
END: Final = "<|im_end|>"
DOCUMENT_END: Final = "<|endoftext|>"
SPECIAL_TOKENS: Final = (
    DOCUMENT_END, START, END, "<think>", "</think>", "<tool_call>", "</tool_call>",
)  # fmt: skip
EMPTY_THINK: Final = "<think>\n\n</think>\n\n"
CONTEXT_WEIGHT: Final = 0.1
"""Loss weight of what the model reads, against 1 for what it has to write."""

TOOLS_HEAD: Final = "# Tools\n\nYou may call these functions:\n<tools>"
TOOLS_TAIL: Final = (
    "\n</tools>\n\nTo call one, answer with\n<tool_call>\n"
    '{"name": <name>, "arguments": <arguments>}\n</tool_call>'
)

TEMPLATE: Final = (MODEL_DIR / "chat_template.jinja").read_text(encoding="utf-8")


class Conversation(NamedTuple):
    """One training document. Messages have the shape that chat templates take."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()


class Segment(NamedTuple):
    """A piece of a document that is tokenized alone, with its loss weight."""

    text: str
    weight: float


def render(conversation: Conversation) -> list[Segment]:
    """What the template renders, in segments; their texts joined are the whole document."""
    out: list[Segment] = []
    messages = list(conversation.messages)
    if conversation.tools:
        system = ""
        if messages[0]["role"] == "system":
            system = f"{messages.pop(0)['content']}\n\n"
        lines = "".join("\n" + json.dumps(t, ensure_ascii=False) for t in conversation.tools)
        text = f"{START}system\n{system}{TOOLS_HEAD}{lines}{TOOLS_TAIL}{END}\n"
        out.append(Segment(text, CONTEXT_WEIGHT))
    for message in messages:
        if message["role"] != "assistant":
            text = f"{START}{message['role']}\n{message['content']}{END}\n"
            out.append(Segment(text, CONTEXT_WEIGHT))
            continue
        out.append(Segment(f"{START}assistant\n", CONTEXT_WEIGHT))
        body = message["content"] or ""
        for i, call in enumerate(message.get("tool_calls", ())):
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            head = "\n" if body or i else ""
            name = call["function"]["name"]
            body += (
                f'{head}<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
            )
        if reasoning := message.get("reasoning_content"):
            out.append(Segment(f"<think>\n{reasoning}\n</think>\n\n{body}{END}", 1.0))
        else:
            out.append(Segment(EMPTY_THINK, 0.0))
            out.append(Segment(f"{body}{END}", 1.0))
        out.append(Segment("\n", CONTEXT_WEIGHT))
    return out
