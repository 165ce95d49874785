"""The parameters that chats and completions share, and what they mean to the worker. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from gateway.openai.constraints import AnswerConstraints
from gateway.openai.validation import StrictStruct, invalid_value
from supervisor.wire.frames import Calling, Chat, Generate, Sampling, Structure, Text, Tokens

CHOICES_MAX = 128
"""Choices of all prompts of a request together, of which a worker runs a few at once."""
REPETITION_MAX = 4096
"""Tokens that a repetition penalty may look back at, which it does at every step, while all other
requests wait."""
_BIAS_MAX = 10_000
_STOP_MAX = 1024
"""Characters: a stop string is compared with every token's text."""
_STOPS_MAX = 64
"""Editors stop at a dozen beginnings of what comes after the cursor; OpenAI's own limit is 4."""

MaxTokens = Annotated[
    int,
    Meta(
        ge=-1,
        le=2**53,
        description="-1 = as far as the context goes, as at other local servers.",
        extra_json_schema={"not": {"enum": [0]}},
    ),
]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, le=CHOICES_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenKey = Annotated[str, Meta(pattern="^[0-9]{1,9}$")]
StopString = Annotated[str, Meta(min_length=1, max_length=_STOP_MAX)]

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


class StreamOptions(StrictStruct, frozen=True):
    """`include_usage` adds a chunk with the usage; the others have no effect."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: the usage in every chunk."""


class GenerationParameters(AnswerConstraints, frozen=True, kw_only=True):
    """What chats and completions have in common."""

    model: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Count = 1
    max_tokens: MaxTokens | None = None
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
        | Annotated[list[None], Meta(max_length=0, description="None, as some clients write it.")]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=_STOPS_MAX)] | None = None
    ignore_eos: bool = False

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _sampling(self, seed: int) -> Sampling:
        """`repetition_penalty` 0 is none, as in mlx_lm.server."""
        given = self.logit_bias if isinstance(self.logit_bias, dict) else {}
        bias = {int(key): value for key, value in given.items()}
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

    def _requests(
        self,
        prompts: Sequence[Chat | Text | Tokens],
        request_id: str,
        now: float,
        seed: int,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        echo: bool = False,
        calling: Calling | None = None,
        structure: Structure | None = None,
    ) -> list[Generate]:
        """`n` choices of the first prompt, then those of the next, with ids of their own for the
        logs. `seed` is for a client that sends none.

        A choice's seed follows from the request's and its place; the first keeps the request's.
        Raises InvalidValue when the least number of tokens is more than the most.
        """
        if max_tokens is not None and self.min_tokens > max_tokens:
            raise invalid_value("min_tokens", "it exceeds the maximum of tokens.")
        seed = seed if self.seed is None else self.seed
        first = self._sampling(seed)
        others = [replace(first, seed=derive_seed(seed, place)) for place in range(1, self.n)]
        return [
            Generate(
                request_id=f"{request_id}#{number}" if number else request_id,
                prompt=prompt,
                now=now,
                max_tokens=max_tokens,
                min_tokens=self.min_tokens,
                sampling=sampling,
                stop=self.stops,
                ignore_eos=self.ignore_eos,
                logprobs=logprobs,
                calling=calling,
                structure=structure,
                echo=echo,
                # Of a text that begins with the prompt, they begin with the prompt's.
                prompt_logprobs=logprobs if echo else None,
            )
            for number, (prompt, sampling) in enumerate(product(prompts, [first, *others]))
        ]


def token_limit(value: int | None, param: str) -> int | None:
    """None = as far as the context goes. Raises InvalidValue."""
    if value == 0:
        raise invalid_value(param, "expected at least 1, or -1 for no limit.")
    return None if value == -1 else value


def derive_seed(seed: int, place: int) -> int:
    """Another seed, of 63 bits, as a pure function of both."""
    digest = hashlib.blake2b(f"{seed}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
