"""Anthropic's messages: a body becomes the worker's request. Pure.

Every parameter of the SDK, its beta ones included, is a field of `MessagesRequest`, harmless, or
accepted only with values that ask for nothing. `gateway.anthropic.render` has the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gateway.anthropic.context import ContextManagement, managed
from gateway.anthropic.messages import (
    Conversation,
    System,
    Turn,
    conversation,
    explain_block_error,
    passed_types,
)
from gateway.anthropic.tools import TOOLS_MAX, Offered, ToolChoice, offered_tools
from gateway.openai.messages import MESSAGES_MAX
from gateway.openai.parameters import Share, StopString
from gateway.openai.tools import demanded_twice
from gateway.openai.validation import Body, StrictStruct, check_plain, invalid_value
from supervisor.errors import UnsupportedValue
from supervisor.wire.frames import Chat, Generate, Sampling, Schema, Structure

_STOPS_MAX = 64
Display = Literal["summarized", "omitted"]


class ThinkingOn(StrictStruct, frozen=True, tag_field="type", tag="enabled"):
    """The model thinks, if it can. `display` "omitted": the client gets a signature alone."""

    budget_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    display: Display | None = None


class ThinkingAdaptive(StrictStruct, frozen=True, tag_field="type", tag="adaptive"):
    """As "enabled", without a budget."""

    display: Display | None = None


class ThinkingBetweenTools(StrictStruct, frozen=True, tag_field="type", tag="between_tools"):
    """As "enabled", without a budget."""


class ThinkingOff(StrictStruct, frozen=True, tag_field="type", tag="disabled"):
    """The model does not think, if its template can tell it so."""


Thinking = ThinkingOn | ThinkingAdaptive | ThinkingBetweenTools | ThinkingOff


class OutputSchema(StrictStruct, frozen=True, tag_field="type", tag="json_schema"):
    """The answer is one JSON value that is valid under the schema."""

    schema: Annotated[dict[str, Any], Meta(description="A JSON Schema.")]


class OutputConfig(StrictStruct, frozen=True):
    """`effort` is for models whose template knows it; `task_budget` has no effect."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputSchema | None = None
    task_budget: dict[str, Any] | None = None


class CountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens: what makes a prompt."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MESSAGES_MAX)]
    model: str = ""
    system: System | None = None
    tools: (
        Annotated[
            list[dict[str, Any]],
            Meta(
                max_length=TOOLS_MAX,
                description="The client's own tools, with `name` and `input_schema`, and "
                "Anthropic's, with `type`.",
            ),
        ]
        | None
    ) = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputSchema | None = None
    context_management: ContextManagement | None = None

    def chat(self) -> Chat:
        """The prompt. Raises the contract's 400 for what the types do not tell."""
        return self._prompt(self.offered())

    def offered(self) -> Offered:
        """Raises the contract's 400 for the tool at fault."""
        return offered_tools(self.tools or (), self.tool_choice)

    def ignored(self) -> tuple[str, ...]:
        """What of the body changes nothing here. Raises as `offered`."""
        names = list(self.offered().ignored)
        if self.context_management is not None:
            names += self.context_management.ignored()
        if self.output_config is not None and self.output_config.task_budget is not None:
            names.append("output_config.task_budget")
        names += [f"messages.{kind}" for kind in passed_types(self.messages)]
        return tuple(names)

    def _prompt(self, offered: Offered) -> Chat:
        said = self._conversation()
        return Chat(said.messages, offered.tools, self._template_options(), said.continues)

    def _conversation(self) -> Conversation:
        said = conversation(self.system, self.messages)
        if self.context_management is None:
            return said
        return replace(said, messages=managed(said.messages, self.context_management))

    def _template_options(self) -> dict[str, Any]:
        """Qwen's and GLM's templates have one name for the switch, DeepSeek's another."""
        options: dict[str, Any] = {}
        if self.thinking is not None:
            on = not isinstance(self.thinking, ThinkingOff)
            options = {"enable_thinking": on, "thinking": on}
        if isinstance(self.thinking, ThinkingOn) and self.thinking.budget_tokens is not None:
            options["thinking_budget"] = self.thinking.budget_tokens
        if self.output_config is not None and self.output_config.effort is not None:
            options["reasoning_effort"] = self.output_config.effort
        return options


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[
        int,
        Meta(ge=0, le=2**53, description="0 = the prompt is computed, and nothing is answered."),
    ]
    stream: bool = False
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=_STOPS_MAX)] | None = None

    @property
    def n(self) -> int:
        return 1

    @property
    def shows_thoughts(self) -> bool:
        return getattr(self.thinking, "display", None) != "omitted"

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """The worker's one request. Raises the contract's 400 for what the types do not tell."""
        self._check_budget()
        offered = self.offered()
        prompt, structure = self._prompt(offered), self._structure()
        calling = offered.calling
        if structure is not None and calling is not None and calling.choice == "required":
            raise demanded_twice("output_config.format")
        if structure is not None and prompt.continues:
            raise UnsupportedValue(
                "`output_config.format` cannot be combined with a last message of the assistant's: "
                "the schema is that of a whole answer.",
                param="output_config.format",
            )
        return [
            Generate(
                request_id=request_id,
                prompt=prompt,
                now=now,
                max_tokens=max(1, self.max_tokens),
                sampling=Sampling(
                    seed=seed, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k
                ),
                stop=tuple(self.stop_sequences or ()),
                # As in chats: an answer that is not streamed can wait until it is known what is a
                # call, and so must one whose arguments may have to be mended.
                calling=calling and replace(calling, growing=self.stream and offered.strict),
                structure=structure,
            )
        ]

    def _check_budget(self) -> None:
        budget = getattr(self.thinking, "budget_tokens", None)
        if budget is not None and budget >= self.max_tokens:
            raise invalid_value(
                "thinking.budget_tokens", "it must be less than `max_tokens`, which it is part of."
            )

    def _structure(self) -> Structure | None:
        """What holds for the answer. Anthropic promises the schema, so all of it must be
        enforceable."""
        config = self.output_config or OutputConfig()
        if config.format is not None and self.output_format is not None:
            raise invalid_value("output_format", "`output_config.format` is there as well.")
        wanted, param = config.format, "output_config.format.schema"
        if wanted is None:
            wanted, param = self.output_format, "output_format.schema"
        if wanted is None:
            return None
        check_plain(wanted.schema, param)
        return Schema(msgspec.json.encode(wanted.schema).decode(), place=param)


_HARMLESS = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
"""Of accounts, money, and Anthropic's machines; the first two are headers that other clouds have in
the body."""
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "compaction": (),
    "container": (),
    "mcp_servers": ([],),
    "thread": (),
}
_ANSWERED = frozenset(MessagesRequest.__struct_fields__) - frozenset(CountRequest.__struct_fields__)

MESSAGES_BODY = Body(MessagesRequest, _HARMLESS, neutral=_NEUTRAL, fates={})
COUNT_BODY = Body(
    CountRequest,
    # Clients send the body of the request that they are about to make.
    _HARMLESS | _ANSWERED | {"compaction"},
    neutral={name: each for name, each in _NEUTRAL.items() if name != "compaction"},
    fates={},
)


def parse_messages(raw: Mapping[str, Any]) -> MessagesRequest:
    """Raises the contract's 400 that names the parameter."""
    try:
        return MESSAGES_BODY.parse(raw)
    except UnsupportedValue as error:
        raise explain_block_error(error) from None


def parse_count(raw: Mapping[str, Any]) -> CountRequest:
    """Raises the contract's 400 that names the parameter."""
    try:
        return COUNT_BODY.parse(raw)
    except UnsupportedValue as error:
        raise explain_block_error(error) from None
