"""The choices of a legacy completion's answer, streamed and whole. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping
from typing import Any

from gateway.dialect import ChoiceBuffer
from gateway.openai.render import finite
from supervisor.wire.frames import Logprob, Logprobs, Token


class TextShape:
    """The `ChoiceShape` of legacy completions."""

    id_prefix = "cmpl-"
    answer_object = chunk_object = "text_completion"
    empty: Mapping[str, Any] = {"text": ""}

    def __init__(self) -> None:
        self._echo = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        """In characters of the choice's text, as the tokens' bytes make it."""

    def whole(self, choice: ChoiceBuffer) -> dict[str, Any]:
        return {"text": choice.text}

    def begin_with(self, echo: str) -> None:
        self._echo = echo

    def chunk(self, token: Token) -> dict[str, Any]:
        text, self._echo = self._echo + token.text, ""
        return {"text": text}

    def rest(self, cut: bool) -> Iterable[dict[str, Any]]:
        """The echo when no token followed."""
        if self._echo:
            yield {"text": self._echo}

    def logprobs(self, tokens: Iterable[Logprobs]) -> dict[str, Any]:
        """The older form: one entry a token in each list."""
        form: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for each in tokens:
            form["tokens"].append(_token_text(each.sampled))
            form["token_logprobs"].append(finite(each.sampled.value))
            # Likeliest first, and the sampled one always, as OpenAI does.
            every = {_token_text(other): finite(other.value) for other in each.top}
            every.setdefault(_token_text(each.sampled), finite(each.sampled.value))
            form["top_logprobs"].append(every)
            form["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(each.sampled.raw))
        return form


def _token_text(logprob: Logprob) -> str:
    """A part of a character as OpenAI spells it: texts are keys here and must not collide."""
    try:
        logprob.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in logprob.raw)
    return logprob.text
