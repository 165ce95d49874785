"""The chat format: the Jinja template that ships, and the same in Python for the trainer.

ChatML with Hermes tool calls. Thinking follows Qwen3: when it is off, the prompt already holds an
empty think block; when it is on, the model writes the block itself. Earlier answers are rendered
with the block they had, so a conversation's next prompt starts with the previous prompt plus its
answer, which lets a prefix cache hit. A test holds the two renderings equal.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

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

TEMPLATE: Final = (
    """\
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is sequence and content is not mapping -%}
        {%- for part in content -%}
            {%- if part is string -%}
                {{- part -}}
            {%- elif part is mapping and part.text is string -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set first = messages[0] if messages else {} -%}
{%- set opening = first.role in ('system', 'developer') -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if opening and text(first.content) -%}
        {{- text(first.content) + '\\n\\n' -}}
    {%- endif -%}
    {{- """
    + json.dumps(TOOLS_HEAD)
    + """ -}}
    {%- for tool in tools -%}
        {{- '\\n' + (tool | tojson) -}}
    {%- endfor -%}
    {{- """
    + json.dumps(TOOLS_TAIL)
    + """ + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set content = text(message.content) -%}
    {%- if message.role in ('system', 'developer') -%}
        {%- if not (tools and loop.first) -%}
            {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' -}}
        {%- endif -%}
    {%- elif message.role == 'assistant' -%}
        {%- set reasoning = message.reasoning_content or message.reasoning or '' -%}
        {%- if '</think>' in content -%}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\\n<think>\\n' -}}
        {%- if reasoning is string and reasoning.strip() -%}
            {{- reasoning.strip('\\n') + '\\n</think>\\n\\n' -}}
        {%- else -%}
            {{- '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- content -}}
        {%- for call in message.tool_calls or [] -%}
            {%- set tool_call = call.function if call.function else call -%}
            {%- if content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
            {%- if tool_call.arguments is string -%}
                {{- tool_call.arguments or '{}' -}}
            {%- else -%}
                {{- (tool_call.arguments or {}) | tojson -}}
            {%- endif -%}
            {{- '}\\n</tool_call>' -}}
        {%- endfor -%}
        {{- '<|im_end|>\\n' -}}
    {%- elif message.role in ('tool', 'function') -%}
        {{- '<|im_start|>tool\\n' + content + '<|im_end|>\\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + (message.role or 'user') + '\\n' + content + '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if not (enable_thinking is defined and enable_thinking) -%}
        {{- '<think>\\n\\n</think>\\n\\n' -}}
    {%- endif -%}
{%- endif -%}
"""
)


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
