"""From a request to prompt tokens: chat template, tokenizer, context."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from supervisor.errors import BulkheadError, ContextLengthExceeded, InvalidValue
from supervisor.wire.frames import Chat, Generate, Text, Tokens


class Prompts:
    """Tokenizes for one model. One thread at a time: tokenizers are not safe for more."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        """`tokenizer` is mlx-lm's TokenizerWrapper, `context` is in tokens."""
        self._tokenizer = tokenizer
        self._context = context
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        """Characters of the longest token: no token stands for more."""

    def tokens(self, request: Generate) -> list[int]:
        """The prompt's tokens, at least one and fewer than the context.

        Raises ContextLengthExceeded or InvalidValue. Messages never quote the prompt.
        """
        match request.prompt:
            case Chat(messages):
                param = "messages"
                tokens = self._chat(messages, request.now)
            case Text(text):
                param = "prompt"
                tokens = self._encode(text, param)
            case Tokens(ids):
                param = "prompt"
                tokens = list(ids)
        if not tokens:
            raise InvalidValue(
                "The prompt is empty: the model needs at least one token.", param=param
            )
        if len(tokens) >= self._context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._context} tokens. However, your "
                f"{param} resulted in {len(tokens)} tokens. Please reduce the length of the "
                f"{param}.",
                param=param,
            )
        return tokens

    def _chat(self, messages: list[dict[str, Any]], now: float) -> list[int]:
        if not self._tokenizer.has_chat_template:
            raise InvalidValue(
                "This model has no chat template. Use /v1/completions with a plain prompt.",
                param="messages",
            )
        # mlx-lm's wrapper forces thinking on where a model knows it; the template's own default is
        # what the model's makers chose. Only templates written in Python need the wrapper.
        render: Callable[..., Any] = (
            self._tokenizer.apply_chat_template
            if self._tokenizer.chat_template is None
            else self._tokenizer._tokenizer.apply_chat_template
        )
        try:
            with _clock_at(now):
                text = render(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise _rejected(str(error) if type(error) is TemplateError else "") from None
        except BulkheadError:
            raise
        except Exception as error:  # noqa: BLE001
            # Templates are programs from the model's folder: they can raise anything at all, and
            # what they choke on is the request, not the worker.
            raise _rejected(type(error).__name__) from None
        return self._encode(text, "messages", add_special_tokens=False)

    def _encode(self, text: str, param: str, **options: bool) -> list[int]:
        if len(text) > self._context * self._longest:
            # Megabytes take seconds to tokenize, for which others wait, only to be refused.
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._context} tokens. However, your "
                f"{param} have {len(text)} characters, which is more tokens than that. Please "
                f"reduce the length of the {param}.",
                param=param,
            )
        return [int(token) for token in self._tokenizer.encode(text, **options)]


@contextlib.contextmanager
def _clock_at(now: float) -> Iterator[None]:
    """Make templates print the request's own time, so that it renders the same prompt again later.

    transformers gives templates a `strftime_now` that reads the clock, and no way to pass another:
    callables among the arguments arrive as text. One thread at a time renders.
    """
    chat_template_utils: Any = importlib.import_module("transformers.utils.chat_template_utils")
    real = getattr(chat_template_utils, "datetime", None)
    if real is None:  # another version's: the clock it is
        yield
        return
    chat_template_utils.datetime = _RequestTime(now)
    try:
        yield
    finally:
        chat_template_utils.datetime = real


@dataclass(frozen=True, slots=True)
class _RequestTime:
    """Stands in for the `datetime` class where only its `now` is called."""

    seconds: float

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds)


def _rejected(detail: str) -> InvalidValue:
    why = f": {detail}" if detail else ""
    return InvalidValue(f"The model's chat template rejected the messages{why}.", param="messages")
