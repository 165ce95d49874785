"""OpenAI's chat and legacy completions: a body becomes the worker's requests. Pure.

Every parameter of the SDK is a field below, in `HARMLESS`, or in the tables of what is supported
with the value alone that asks for nothing. `gateway.openai.render` makes the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gateway.openai.messages import MESSAGES_MAX, Message, explained, plain
from gateway.openai.tools import TOOLS_MAX, Choice, Format, Tool, calling, structure
from gateway.openai.validation import check_known, convert
from supervisor.errors import InvalidType, InvalidValue, UnsupportedValue
from supervisor.wire.frames import Chat, Generate, Sampling, Text, Tokens

CHOICES_MAX = 128
"""Choices of all prompts of a request together. `gateway.relay.attempt` says how many run at once."""
_BIAS_MAX = 10_000
_ID_MAX = 2**31 - 1
_STOP_MAX = 1024
"""Characters: a stop string is compared with every token's text."""

Positive = Annotated[int, Meta(ge=1, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=CHOICES_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=_ID_MAX)]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]
StopString = Annotated[str, Meta(min_length=1, max_length=_STOP_MAX)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "verbosity",
    }
)
"""Accepted and without effect: nothing a client can see in the answer depends on them."""
NEUTRAL_CHAT: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
}
NEUTRAL_TEXT: Mapping[str, tuple[object, ...]] = {"suffix": ("",)}
"""Parameters that are not supported, with the values that ask for nothing."""


REPETITION_MAX = 4096
"""Tokens that a repetition penalty may look at: all of them at every step, while others wait."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include_usage` adds a chunk with the usage; `include_obfuscation` has no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateOptions(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
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


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Count = 1
    max_tokens: Positive | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**53)] = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**53)] | None = None
    min_p: Share | None = None
    xtc_probability: Share = 0.0
    xtc_threshold: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    repetition_context_size: Annotated[int, Meta(ge=1, le=REPETITION_MAX)] = 20
    logit_bias: (
        Annotated[
            dict[TokenKey, Annotated[float, Meta(ge=-100, le=100)] | None],
            Meta(max_length=_BIAS_MAX),
        ]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=4)] | None = None
    ignore_eos: bool = False

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, seed: int) -> Sampling:
        """`repetition_penalty` 0 is none, as in mlx_lm.server."""
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        return Sampling(
            seed=seed,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=1.0 if self.repetition_penalty == 0 else self.repetition_penalty,
            repetition_context=self.repetition_context_size,
            logit_bias=tuple((key, value) for key, value in bias.items() if value is not None),
        )

    def check_length(self, max_tokens: int | None) -> None:
        """Raises InvalidValue when the least is more than the most."""
        if max_tokens is not None and self.min_tokens > max_tokens:
            raise InvalidValue(
                "Invalid value for `min_tokens`: it exceeds the maximum of tokens.",
                param="min_tokens",
            )


class ChatRequest(_Common, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions | None = None

    def choices(self, request_id: str, now: float, chance: int) -> list[Generate]:
        """The worker's requests, one for each choice. `chance` is the seed when the client has none.

        Raises the contract's 400 for what the types do not tell.
        """
        limit = self.max_completion_tokens
        limit = self.max_tokens if limit is None else limit
        self.check_length(limit)
        if self.top_logprobs and not self.logprobs:
            raise InvalidValue("`top_logprobs` needs `logprobs`: true.", param="top_logprobs")
        shown, may_call = calling(
            self.tools, self.tool_choice, self.parallel_tool_calls, self.response_format
        )
        first = Generate(
            request_id=request_id,
            prompt=Chat(plain(self.messages), shown, self._template()),
            now=now,
            max_tokens=limit,
            min_tokens=self.min_tokens,
            sampling=self.sampling(chance if self.seed is None else self.seed),
            stop=self.stops,
            ignore_eos=self.ignore_eos,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            calling=may_call,
            structure=structure(self.response_format),
        )
        return _multiplied([first], self.n)

    def _template(self) -> dict[str, Any]:
        effort = (
            {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        )
        return {**effort, **msgspec.to_builtins(self.chat_template_kwargs or TemplateOptions())}


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """The body of POST /v1/completions. `prompt`: a text, texts, token ids, or lists of those."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Count | None = None

    def choices(self, request_id: str, now: float, chance: int) -> list[Generate]:
        """The worker's requests: the choices of the first prompt, then those of the next.

        A prompt's answers do not depend on its neighbours. Raises the contract's 400.
        """
        prompts = self._prompts()
        if self.n * len(prompts) > CHOICES_MAX:
            raise InvalidValue(
                f"Invalid value for `n`: prompts times `n` may be at most {CHOICES_MAX}.", param="n"
            )
        if self.best_of is not None and self.best_of != self.n:
            raise UnsupportedValue("`best_of` must be equal to `n`.", param="best_of")
        if self.echo and self.logprobs is not None:
            raise UnsupportedValue(
                "`logprobs` cannot be combined with `echo`: those of the prompt are not computed.",
                param="logprobs",
            )
        self.check_length(self.max_tokens)
        sampling = self.sampling(chance if self.seed is None else self.seed)
        firsts = [
            Generate(
                request_id=request_id,
                prompt=prompt,
                now=now,
                max_tokens=self.max_tokens,
                min_tokens=self.min_tokens,
                sampling=sampling,
                stop=self.stops,
                ignore_eos=self.ignore_eos,
                logprobs=self.logprobs,
                echo=self.echo,
            )
            for prompt in prompts
        ]
        return _multiplied(firsts, self.n)

    def _prompts(self) -> list[Text | Tokens]:
        if isinstance(self.prompt, str):
            return [Text(self.prompt)]
        kinds = set(map(type, self.prompt))
        if kinds == {int}:
            return [_tokens(self.prompt, "prompt")]
        if len(kinds) > 1:
            raise InvalidType(
                "Invalid type for `prompt`: strings, token ids and lists of token ids are mixed.",
                param="prompt",
            )
        return [
            Text(each) if isinstance(each, str) else _tokens(each, f"prompt[{number}]")
            for number, each in enumerate(self.prompt)
        ]


def _tokens(ids: Any, param: str) -> Tokens:
    if not ids:
        raise InvalidValue(f"Invalid value for `{param}`: it holds no token.", param=param)
    return Tokens(tuple(ids))


def _multiplied(firsts: list[Generate], n: int) -> list[Generate]:
    """`n` choices of each prompt, with ids of their own for the logs.

    The seed of a choice follows from the request's and its place; the first keeps the request's.
    """
    choices: list[Generate] = []
    for first in firsts:
        for place in range(n):
            number, sampling = len(choices), first.sampling
            if place:
                sampling = msgspec.structs.replace(sampling, seed=derived(sampling.seed, place))
            name = f"{first.request_id}#{number}" if number else first.request_id
            choices.append(msgspec.structs.replace(first, request_id=name, sampling=sampling))
    return choices


def derived(seed: int, place: int) -> int:
    """Another seed, of 63 bits, as a pure function of both."""
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def parse_chat(raw: Mapping[str, Any]) -> ChatRequest:
    """Raises the contract's 400 that names the parameter."""
    known = check_known(raw, _CHAT_FIELDS, HARMLESS, NEUTRAL_CHAT)
    said = known.get("messages")
    if isinstance(said, list) and len(said) > MESSAGES_MAX:
        raise InvalidValue(
            f"Invalid value for `messages`: more than {MESSAGES_MAX} messages.",
            param="messages",
        )
    try:
        return convert(known, ChatRequest)
    except UnsupportedValue as error:
        raise explained(error) from None


def parse_completion(raw: Mapping[str, Any]) -> CompletionRequest:
    """Raises the contract's 400 that names the parameter."""
    return convert(check_known(raw, _TEXT_FIELDS, HARMLESS, NEUTRAL_TEXT), CompletionRequest)


_CHAT_FIELDS = frozenset(ChatRequest.__struct_fields__)
_TEXT_FIELDS = frozenset(CompletionRequest.__struct_fields__)
