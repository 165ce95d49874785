"""Text to token ids that are safe to give to the model."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.errors import ContextLengthExceeded, InvalidValue, PromptTooLarge
from worker.prompt.tokenizer import ModelTokenizer


class PromptEncoder:
    """Tokenizes for one model. One thread at a time: tokenizers are not safe for more."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        context: int,
        vocabulary: int,
        *,
        fitting: int | None = None,
    ) -> None:
        """`context` is in tokens, `vocabulary` is how many token ids the model knows. `fitting` is
        how much of the context this machine can hold, None = all of it."""
        self.vocabulary = vocabulary
        self.context = context
        self.fitting = context if fitting is None else fitting
        self._tokenizer = tokenizer
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        """Characters of the longest token: no token stands for more."""

    def encode(self, text: str, param: str, label: str, **options: bool) -> list[int]:
        """Raises ContextLengthExceeded or InvalidValue for the parameter `param`, which messages
        call `label`. They never quote the text.
        """
        if len(text) > len(self.beginning(text)):
            # Megabytes take seconds to tokenize, for which others wait, only to be refused.
            raise self.too_long(param, label, f"{len(text)} characters, which is more")
        try:
            tokens = self._tokenizer.encode(text, **options)
        except Exception as error:  # noqa: BLE001
            # Tokenizers are code of many makers, and lone surrogates are no text to most of them.
            raise InvalidValue(
                f"The model's tokenizer rejected the {label}: {type(error).__name__}.", param=param
            ) from None
        if not self.knows(tokens):
            # Tokens that were added to the tokenizer and not to the model, such as an image's.
            raise InvalidValue(
                f"The {label} holds a special token that this model has no weights for.",
                param=param,
            )
        return tokens

    def beginning(self, text: str) -> str:
        """So much of the text as the context could hold, were all its tokens as long as any."""
        return text[: self.context * self._longest]

    def checked(self, ids: Sequence[int], param: str, label: str) -> list[int]:
        """Ids that a client has sent. MLX does not check them: it reads whatever lies behind the
        weights, or dies. Raises InvalidValue."""
        if not self.knows(ids):
            raise InvalidValue(
                f"Invalid value for `{label}`: token ids are from 0 to {self.vocabulary - 1} in "
                "this model.",
                param=param,
            )
        return list(ids)

    def knows(self, ids: Sequence[int]) -> bool:
        return not ids or (min(ids) >= 0 and max(ids) < self.vocabulary)

    def check_size(self, tokens: int, param: str, label: str, *, more: int = 0) -> None:
        """Raises ContextLengthExceeded or PromptTooLarge where so many `tokens`, and `more` behind
        them, are more than the model or this machine can hold."""
        if tokens + more > self.context:
            raise self.too_long(param, label, f"{tokens} tokens")
        if tokens + more > self.fitting:
            raise PromptTooLarge(
                f"This machine can hold {self.fitting} of the {self.context} tokens of this "
                f"model's context, by its memory or the model's kv_budget. However, your {label} "
                f"resulted in {tokens} tokens. Please reduce the length of the {label}.",
                param=param,
            )

    def too_long(self, param: str, label: str, size: str) -> ContextLengthExceeded:
        """The contract's error for `size`, such as "900 tokens"."""
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.context} tokens. However, your {label} "
            f"resulted in {size}. Please reduce the length of the {label}.",
            param=param,
        )
