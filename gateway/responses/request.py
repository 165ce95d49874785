"""OpenAI's responses: a body becomes the worker's request. Pure.

Every parameter of the SDK is a field of `ResponseRequest`, harmless, or accepted only with values
that ask for nothing. `gateway.responses.render` has the answers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gateway.openai import tools as openai
from gateway.openai.chat import Effort, TemplateOptions
from gateway.openai.fates import Fate, Ignored, Neutral, Refused
from gateway.openai.local_servers import CHAT_FATES
from gateway.openai.messages import MESSAGES_MAX
from gateway.openai.parameters import GenerationParameters, MaxTokens, token_limit
from gateway.openai.validation import Body, StrictStruct, check_plain, invalid_value
from gateway.responses.items import (
    AdditionalToolsItem,
    Item,
    for_templates,
    hosted_names,
    kept_forms,
    parse_items,
    referred_id,
)
from gateway.responses.tools import (
    TOOLS_MAX,
    AnyTool,
    ToolChoice,
    ToolNames,
    check_choice,
    hosted_places,
    normal_tool,
)
from supervisor.errors import BulkheadError, InvalidValue
from supervisor.wire.frames import Chat, Generate, Structure

TEXT_FORMAT = "text.format"
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Summary = Literal["auto", "concise", "detailed"]


class Reasoning(StrictStruct, frozen=True):
    """`effort` is told to chat templates that know it. A model's reasoning is always shown whole,
    as its summary; the others have no effect."""

    effort: Effort | None = None
    summary: Summary | Literal["none"] | None = None
    generate_summary: Summary | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class TextSchemaFormat(StrictStruct, frozen=True, tag_field="type", tag="json_schema"):
    """The answer is one JSON value that is valid under the schema. With `strict` a schema that
    can't be enforced whole is refused; without it all of it is enforced that can be."""

    schema: openai.Schema
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(StrictStruct, frozen=True):
    """`verbosity` has no effect."""

    format: openai.TextFormat | openai.JSONFormat | TextSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseRequest(GenerationParameters, frozen=True, kw_only=True):
    """The body of POST /v1/responses."""

    input: str | Annotated[list[Item], Meta(max_length=MESSAGES_MAX)] = ""
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(max_length=256)] | None = None
    max_output_tokens: MaxTokens | None = None
    max_tool_calls: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    tools: Annotated[list[AnyTool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: Annotated[list[Include], Meta(max_length=64)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    service_tier: str | None = None
    # As chats have them.
    logprobs: bool = False
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def limit(self) -> int | None:
        """Tokens; None = as far as the context goes. Raises InvalidValue."""
        if self.max_output_tokens is not None:
            return token_limit(self.max_output_tokens, "max_output_tokens")
        return token_limit(self.max_tokens, "max_tokens")

    @property
    def alternatives(self) -> int | None:
        """How many are told with each token; None = no log probabilities at all."""
        if self.logprobs or self.top_logprobs or LOGPROBS in (self.include or ()):
            return self.top_logprobs or 0
        return None

    @property
    def wants_encrypted(self) -> bool:
        return ENCRYPTED in (self.include or ())

    @property
    def format(self) -> openai.JSONFormat | openai.SchemaFormat | None:
        """What the answer must be by `text`, as chats have it."""
        match self.text.format if self.text else None:
            case TextSchemaFormat() as given:
                named = openai.NamedSchema(
                    given.schema, given.name, given.description, given.strict
                )
                return openai.SchemaFormat(named)
            case openai.JSONFormat():
                return openai.JSONFormat()
            case _:
                return None

    def answer_form(self) -> Structure | None:
        """What holds for the answer. Raises InvalidValue or UnsupportedValue."""
        otherwise = self.structure()
        if (wanted := self.format) is None:
            return otherwise
        if otherwise is not None:
            raise InvalidValue(
                f"`text.format` and `{otherwise.place}` can't be combined: an answer has one form.",
                param=otherwise.place,
            )
        return openai.answer_structure(wanted, TEXT_FORMAT)

    @property
    def told_format(self) -> dict[str, Any]:
        """The format in this dialect's form, for the answer."""
        match self.format:
            case openai.SchemaFormat(json_schema=openai.NamedSchema() as named):
                members = msgspec.structs.asdict(named).items()
                told = {name: each for name, each in members if each is not None}
                return {"type": "json_schema", "name": "schema", **told}
            case openai.JSONFormat():
                return {"type": "json_object"}
            case _:
                return {"type": "text"}

    def ignored(self) -> Iterator[str]:
        """What of the parameters changes nothing here, but might elsewhere."""
        if self.truncation == "auto":
            yield "truncation"
        if self.text is not None and self.text.verbosity is not None:
            yield "text.verbosity"
        if self.reasoning is not None:
            if self.reasoning.context not in (None, "auto"):
                yield "reasoning.context"
            if self.reasoning.mode is not None:
                yield "reasoning.mode"

    @property
    def template(self) -> dict[str, Any]:
        effort = self.reasoning.effort if self.reasoning else None
        plain = TemplateOptions(reasoning_effort=effort or self.reasoning_effort)
        given = self.chat_template_kwargs or TemplateOptions()
        return {**msgspec.to_builtins(plain), **msgspec.to_builtins(given)}

    def requests(
        self,
        items: Sequence[Item],
        names: ToolNames,
        request_id: str,
        now: float,
        seed: int,
    ) -> list[Generate]:
        """The worker's request for an answer to `items`. Raises the contract's 400."""
        if self.n != 1:
            raise invalid_value("n", "a response has one choice.")
        tools, calling = openai.offered_tools(
            names.tools, names.choice(self.tool_choice), self.parallel_tool_calls, None
        )
        form = self.answer_form()
        if form is not None and calling is not None and calling.choice == "required":
            raise openai.demanded_twice(TEXT_FORMAT if self.format else form.place)
        return self._requests(
            [Chat(for_templates(items, self.instructions, names), tools, self.template)],
            request_id,
            now,
            seed,
            max_tokens=self.limit,
            logprobs=self.alternatives,
            calling=calling and replace(calling, growing=self.stream and names.all_strict),
            structure=form,
        )


_FATES: Mapping[str, Fate] = {
    **{
        name: fate
        for name, fate in CHAT_FATES.items()
        if name not in ResponseRequest.__struct_fields__
    },
    "max_completion_tokens": Neutral((), "use `max_output_tokens`"),
    "context_management": Ignored(),
    "background_options": Ignored(),
    "background": Neutral((False,), "an answer is given while the client waits; use `stream`"),
    "conversation": Refused("use `previous_response_id`, or send the items"),
    "prompt": Refused("templates are not kept here; send `instructions` and `input`"),
}

RESPONSE_BODY = Body(
    ResponseRequest,
    frozenset(
        {
            *("access_programs", "client_metadata", "image", "prompt_cache_options"),
            *("prompt_cache_retention", "verbosity"),
        }
    ),
    neutral={"moderation": ()},
    fates=_FATES,
)


class Recall(Protocol):
    """What one client may know of earlier responses."""

    def conversation(self, response_id: str) -> list[Any]:
        """All items before and of the response, as they were. Raises PreviousResponseNotFound."""

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Any]:
        """Those of these items of responses that are there, by id."""


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """A body with all that it refers to. The `GenerationRequest` of responses."""

    asked: ResponseRequest
    names: ToolNames
    own_items: Sequence[dict[str, Any]]
    """Those of the body, with what they refer to in place of references, to be kept."""
    ignored: tuple[str, ...]
    """What of it changes nothing."""
    raw_tools: Sequence[Any]
    _items: Sequence[Item]

    @property
    def model(self) -> str:
        return self.asked.model

    @property
    def stream(self) -> bool:
        return self.asked.stream

    @property
    def n(self) -> int:
        return 1

    def without_items(self) -> ParsedResponse:
        """What the answer needs: it has no input any more, and can't be asked for `choices`."""
        return dataclasses.replace(
            self, asked=replace(self.asked, input=""), own_items=(), _items=()
        )

    def told_bytes(self) -> int:
        """About how many the members have that the answer repeats, and that may be large."""
        told = (self.raw_tools, self.asked.instructions, self.asked.metadata)
        return len(msgspec.json.encode(told))

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """Raises the contract's 400, in this dialect's words."""
        try:
            return self.asked.requests(self._items, self.names, request_id, now, seed)
        except BulkheadError as error:
            raise self.in_its_words(error) from None

    def in_its_words(self, error: BulkheadError) -> BulkheadError:
        """`error`, which may be a worker's, with its parameter named as this dialect does."""
        param = error.param
        if param is None or (told := self._in_its_words(param)) == param:
            return error
        message = error.message.replace(f"`{param}`", f"`{told}`")
        return type(error)(message, param=told, retry_after=error.retry_after)

    def _in_its_words(self, param: str) -> str:
        if param == "messages" or param.startswith("messages["):
            return "input"
        if self.asked.format is not None and (form := _FORM.match(param)):
            return TEXT_FORMAT + param[form.end() :]
        if tool := _TOOL.match(param):
            places = self.names.places
            if (number := int(tool[1])) < len(places):
                return places[number] + param[tool.end() :]
        return param


_FORM = re.compile(r"response_format(\.json_schema)?")
_TOOL = re.compile(r"tools\[(\d+)\]\.function")


def parse_response(raw: Mapping[str, Any], recall: Recall) -> ParsedResponse:
    """Raises the contract's 400 that names the parameter."""
    raw = dict(raw)
    raw_items = _own_items(raw.get("input"))
    raw_tools = raw.get("tools")
    check_choice(raw.get("tool_choice"))
    if isinstance(raw_tools, list):
        raw["tools"] = [normal_tool(each, f"tools[{n}]") for n, each in enumerate(raw_tools)]
    if isinstance(raw.get("input"), list):
        raw["input"] = []  # they are checked below, with the places of what is inside of them
    asked = RESPONSE_BODY.parse(raw)
    raw_items = _resolved(raw_items, recall)
    items = parse_items(raw_items)
    own_items = kept_forms(items, raw_items)
    if asked.previous_response_id is not None:
        items[:0] = parse_items(recall.conversation(asked.previous_response_id))
    if len(items) > MESSAGES_MAX:
        raise invalid_value("input", f"with what came before it, more than {MESSAGES_MAX} items.")
    more = [
        (f"input[{number}].tools[{n}]", tool)
        for number, item in enumerate(items)
        if isinstance(item, AdditionalToolsItem)
        for n, tool in enumerate(item.tools)
    ]
    names = ToolNames.of(asked.tools or (), more)
    # What the answer repeats without looking at it.
    check_plain(raw_tools, "tools")
    check_plain(raw.get("tool_choice"), "tool_choice")
    check_plain(raw.get("metadata"), "metadata")
    return ParsedResponse(
        asked=asked,
        names=names,
        own_items=own_items,
        ignored=tuple(
            dict.fromkeys(
                [
                    *hosted_places(raw_tools),
                    *names.not_enforced,
                    *hosted_names(raw_items),
                    *asked.ignored(),
                ]
            )
        ),
        raw_tools=raw_tools if isinstance(raw_tools, list) else [],
        _items=items,
    )


def _own_items(given: Any) -> list[Any]:
    """The body's items; a text is one of the user's, an empty one is none."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}] if given else []
    return given if isinstance(given, list) else []


def _resolved(items: Sequence[Any], recall: Recall) -> list[Any]:
    """`items` with what the references among them stand for. Raises InvalidValue.

    None stands for the same as another: a body that names one large item thousands of times would
    become a prompt of any size.
    """
    places: dict[str, int] = {}
    for number, item in enumerate(items):
        if (wanted := referred_id(item)) is None:
            continue
        if (first := places.setdefault(wanted, number)) != number:
            raise invalid_value(
                f"input[{number}].id", f"`input[{first}].id` names the same item already."
            )
    found = recall.items(places)
    resolved = list(items)
    for wanted, number in places.items():
        if wanted not in found:
            param = f"input[{number}].id"
            raise InvalidValue(
                f"`{param}` names no item that is kept. Responses are kept in the server's memory "
                "for an hour, unless `store` is false. Send the item itself.",
                param=param,
            )
        resolved[number] = found[wanted]
    return resolved
