"""OpenAI's chat: a body becomes the worker's requests. Pure.

Every parameter of the SDK is a field of `ChatRequest`, harmless, or accepted only with values that
ask for nothing. `gateway.openai.render_chat` has the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gateway.openai.local_servers import CHAT_FATES
from gateway.openai.messages import MESSAGES_MAX, Message, explain_part_error, for_templates
from gateway.openai.parameters import HARMLESS, GenerationParameters, MaxTokens, token_limit
from gateway.openai.tools import (
    TOOLS_MAX,
    Tool,
    ToolChoice,
    demanded_twice,
    offered_tools,
)
from gateway.openai.validation import Body, StrictStruct
from supervisor.errors import InvalidValue, UnsupportedValue
from supervisor.wire.frames import Chat, Generate

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateOptions(StrictStruct, frozen=True, omit_defaults=True):
    """What a client may tell a model's chat template; a template that does not know it ignores it.

    The names are those of the templates of Qwen, DeepSeek, GLM, Seed-OSS, gpt-oss and Llama.
    """

    enable_thinking: bool | None = None
    thinking: bool | None = None
    clear_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    reasoning_effort: Effort | None = None
    date_string: Annotated[str, Meta(max_length=64)] | None = None


class ChatRequest(GenerationParameters, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """The worker's requests, one for each choice. `seed` is for a client that sends none.

        Raises the contract's 400 for what the types do not tell.
        """
        limit = token_limit(self.max_tokens, "max_tokens")
        if self.max_completion_tokens is not None:
            limit = token_limit(self.max_completion_tokens, "max_completion_tokens")
        if self.top_logprobs and not self.logprobs:
            raise InvalidValue("`top_logprobs` needs `logprobs`: true.", param="top_logprobs")
        tools, calling = offered_tools(
            self.tools, self.tool_choice, self.parallel_tool_calls, self.response_format
        )
        structure = self.structure()
        if structure is not None and calling is not None and calling.choice == "required":
            raise demanded_twice(structure.place.partition(".json_schema")[0])
        return self._requests(
            [Chat(for_templates(self.messages), tools, self._template_options())],
            request_id,
            now,
            seed,
            max_tokens=limit,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            calling=calling and replace(calling, growing=self._calls_grow()),
            structure=structure,
        )

    def _calls_grow(self) -> bool:
        """Whether a call is told while it is written. An answer that is not streamed can wait until
        it is known what is a call, and so must one whose arguments may have to be mended."""
        return self.stream and all(tool.function.strict for tool in self.tools or ())

    def _template_options(self) -> dict[str, Any]:
        plain = TemplateOptions(reasoning_effort=self.reasoning_effort)
        given = self.chat_template_kwargs or TemplateOptions()
        return {**msgspec.to_builtins(plain), **msgspec.to_builtins(given)}


CHAT_BODY = Body(
    ChatRequest,
    HARMLESS,
    neutral={
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "moderation": (),
        "web_search_options": (),
    },
    fates=CHAT_FATES,
)


def parse_chat(raw: Mapping[str, Any]) -> ChatRequest:
    """Raises the contract's 400 that names the parameter."""
    try:
        return CHAT_BODY.parse(raw)
    except UnsupportedValue as error:
        raise explain_part_error(error) from None
