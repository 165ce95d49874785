"""The choices of a legacy completion's answer, streamed and whole. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from gateway.dialect import AnswerHead, ChoiceBuffer
from gateway.openai.render import OpenAIRenderer, finite
from supervisor.errors import InvalidValue
from supervisor.wire.frames import Logprob, Logprobs, PromptLogprobs, Token

KEPT_MAX: Final = 128 * 2**20
"""Bytes of what prompts score that an answer may keep until it is whole."""
_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

_json = msgspec.json.Encoder().encode


class TextShape:
    """The `ChoiceShape` of legacy completions."""

    id_prefix = "cmpl-"
    answer_object = chunk_object = "text_completion"
    empty: Mapping[str, Any] = {"text": ""}

    def __init__(self) -> None:
        self._echo = ""
        self._prompt = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        """In characters of the choice's text, as the tokens' bytes make it."""
        self._kept: dict[str, list[bytes]] = {name: [] for name in _LISTS}
        """The lists of what the prompt scores, in JSON without brackets."""

    def whole(self, choice: ChoiceBuffer) -> dict[str, Any]:
        return {"text": choice.text}

    def begin_with(self, echo: str) -> None:
        self._echo = self._prompt = echo

    def take_echo(self) -> str:
        """What has not been told of it."""
        echo, self._echo = self._echo, ""
        return echo

    def chunk(self, token: Token) -> dict[str, Any]:
        return {"text": self.take_echo() + token.text}

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """The echo when no token followed."""
        if self._echo:
            yield {"text": self._echo}

    def logprobs(self, tokens: Iterable[Logprobs]) -> dict[str, Any]:
        """The older form: one entry a token in each list, those that were kept before them."""
        form = self._lists(tokens)
        if not self._kept["tokens"]:
            return form
        # Encoded as they came: an answer of a hundred thousand tokens must not hold up the others.
        return {
            name: msgspec.Raw(b"[" + b",".join([*self._kept[name], *_inner(form[name])]) + b"]")
            for name in _LISTS
        }

    def prompt_logprobs(self, told: PromptLogprobs) -> dict[str, list[Any]]:
        """The same of a stretch of the prompt, of whose first token nothing can be told."""
        form = self._lists(told.tokens, of_prompt=True)
        if told.start == 0:
            form["token_logprobs"][0] = form["top_logprobs"][0] = None
        return form

    def keep(self, told: PromptLogprobs) -> int:
        """Put them before those of the answer. Returns their size in bytes."""
        size = 0
        for name, values in self.prompt_logprobs(told).items():
            inner = _inner(values)
            self._kept[name] += inner
            size += sum(map(len, inner))
        return size

    def _lists(
        self, tokens: Iterable[Logprobs], *, of_prompt: bool = False
    ) -> dict[str, list[Any]]:
        form: dict[str, list[Any]] = {name: [] for name in _LISTS}
        for each in tokens:
            form["tokens"].append(_token_text(each.sampled))
            form["token_logprobs"].append(finite(each.sampled.value))
            # Likeliest first, and the sampled one always, as OpenAI does.
            every = {_token_text(other): finite(other.value) for other in each.top}
            every.setdefault(_token_text(each.sampled), finite(each.sampled.value))
            form["top_logprobs"].append(every)
            form["text_offset"].append(self._offset)
            text = self._decoder.decode(each.sampled.raw)
            self._offset += len(text) if self._offset or not of_prompt else self._width(text)
        return form

    def _width(self, text: str) -> int:
        """What a prompt's first token takes of its text: nothing, if the tokenizer has put it
        there, and not the blank that some put before the first word."""
        if not self._prompt or self._prompt.startswith(text):
            return len(text)
        word = text.lstrip()
        return len(word) if self._prompt.startswith(word) else 0


class TextRenderer(OpenAIRenderer):
    """The `PromptRenderer` of legacy completions."""

    def __init__(self, head: AnswerHead, *, include_usage: bool = False) -> None:
        super().__init__(TextShape, head, include_usage=include_usage)
        self._texts = [shape for shape in self._choices if isinstance(shape, TextShape)]
        self._kept = 0

    def prompt(self, choice: int, told: PromptLogprobs) -> bytes:
        """An event; the first one has the prompt's text."""
        shape = self._texts[choice]
        return self._chunk(choice, {"text": shape.take_echo()}, shape.prompt_logprobs(told))

    def keep_prompt(self, choice: int, told: PromptLogprobs) -> None:
        self._kept += self._texts[choice].keep(told)
        if self._kept > KEPT_MAX:
            raise InvalidValue(
                f"The log probabilities of the prompt come to more than {KEPT_MAX} bytes in one "
                "answer: ask for fewer alternatives, send fewer prompts, or stream.",
                param="logprobs",
            )


def _inner(values: list[Any]) -> list[bytes]:
    """A list in JSON without its brackets; none of an empty one."""
    return [_json(values)[1:-1]] if values else []


def _token_text(logprob: Logprob) -> str:
    """A part of a character as OpenAI spells it: texts are keys here and must not collide."""
    try:
        logprob.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.raw)
    return logprob.text
