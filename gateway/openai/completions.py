"""OpenAI's legacy completions: a body becomes the worker's requests. Pure.

`gateway.openai.render_completions` has the answers.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from gateway.openai.local_servers import TEXT_FATES
from gateway.openai.parameters import (
    CHOICES_MAX,
    HARMLESS,
    Count,
    GenerationParameters,
    TokenId,
    token_limit,
)
from gateway.openai.validation import Body, invalid_value
from supervisor.errors import InvalidType, UnsupportedValue
from supervisor.wire.frames import Generate, Text, Tokens


class CompletionRequest(GenerationParameters, frozen=True, kw_only=True):
    """The body of POST /v1/completions. `prompt`: a text, texts, token ids, or lists of those."""

    max_tokens: (
        Annotated[
            int,
            Meta(
                ge=-1,
                le=2**53,
                description="-1 = as far as the context goes; 0, with `echo` = the prompt alone.",
            ),
        ]
        | None
    ) = None
    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]
    echo: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Count | None = None

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """The worker's requests: the choices of the first prompt, then those of the next.

        A prompt's answers do not depend on its neighbours. Raises the contract's 400.
        """
        prompts = self._prompts()
        if self.n * len(prompts) > CHOICES_MAX:
            raise invalid_value("n", f"prompts times `n` may be at most {CHOICES_MAX}.")
        if self.best_of is not None and self.best_of != self.n:
            raise UnsupportedValue("`best_of` must be equal to `n`.", param="best_of")
        return self._requests(
            prompts,
            request_id,
            now,
            seed,
            # With an echo there is an answer without any.
            max_tokens=0 if self._only_echo else token_limit(self.max_tokens, "max_tokens"),
            logprobs=self.logprobs,
            echo=self.echo,
            structure=self.structure(),
        )

    @property
    def _only_echo(self) -> bool:
        return self.echo and self.max_tokens == 0

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
        raise invalid_value(param, "it holds no token.")
    return Tokens(tuple(ids))


COMPLETION_BODY = Body(CompletionRequest, HARMLESS, neutral={"suffix": ("",)}, fates=TEXT_FATES)
