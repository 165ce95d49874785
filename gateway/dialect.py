"""What a dialect is to the handler that answers in it: a parsed request, a renderer and an error
form. Pure.

A dialect is an API for the same generation: OpenAI's chat and legacy completions, and whatever
else clients speak. Its parse module makes a `GenerationRequest` of a body, its render module has a
`Renderer`. Nothing below the handler knows which dialect a client speaks.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from supervisor.errors import BulkheadError
from supervisor.wire.frames import End, Generate, Logprobs, PromptLogprobs, Token


class Usage(NamedTuple):
    """Tokens of all choices of an answer."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt, those that did not have to be computed again."""
    completion: int = 0
    reasoning: int = 0
    """Of the completion."""

    @classmethod
    def of(cls, ends: Sequence[End], n: int) -> Usage:
        """A prompt counts once for its `n` choices, as at OpenAI's; `ends` are in their order."""
        return cls(
            prompt=sum(end.prompt_tokens for end in ends[::n]),
            completion=sum(end.completion_tokens for end in ends),
            reasoning=sum(end.reasoning_tokens for end in ends),
        )


class ChoiceBuffer:
    """One choice as it grows until its end. `logprobs`: they were asked for."""

    def __init__(self, *, logprobs: bool = False) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, tuple[str, list[str]]] = {}
        """Number → (name, pieces of the arguments)."""
        self.logprobs: list[Logprobs] | None = [] if logprobs else None
        self.text_logprobs: list[Logprobs] = []
        """Those of the text alone, without thoughts and calls."""
        self._undecided: list[Logprobs] = []
        """Of tokens whose text is not known yet."""
        self.echo = ""
        self.reason = "stop"
        """Of its end."""
        self.stop = ""
        """The stop string that ended it, if one did."""

    def add(self, token: Token) -> None:
        self.texts.append(token.text)
        if token.reasoning:
            self.reasoning.append(token.reasoning)
        for call in token.calls:
            self.calls.setdefault(call.index, (call.name, []))[1].append(call.arguments)
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(token.logprobs)
            self._undecided.append(token.logprobs)
        if token.text:
            self.text_logprobs += self._undecided
        if token.text or token.reasoning or token.calls:
            self._undecided.clear()

    @property
    def text(self) -> str:
        return self.echo + "".join(self.texts)


def arguments_object(arguments: str) -> dict[str, Any] | None:
    """The object that the arguments of a call are; None as long as they are not a whole one."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def new_call_id() -> str:
    """As OpenAI's look, which Ollama's clients take as well."""
    return f"call_{secrets.token_hex(12)}"


class GenerationRequest(Protocol):
    """A body in a dialect's own form, its types checked."""

    @property
    def model(self) -> str: ...

    @property
    def stream(self) -> bool: ...

    @property
    def n(self) -> int:
        """Choices of each prompt."""

    def choices(self, request_id: str, now: float, seed: int) -> list[Generate]:
        """The worker's requests, one for each choice. `now` is in seconds since the epoch, `seed`
        for a client that sends none. Raises the contract's 400 for what the types do not tell."""


class AnswerHead(NamedTuple):
    """What is known when a worker has been found."""

    created: float
    """Seconds since the epoch: the request's time."""
    model: str
    """The served name."""
    choices: int


class Renderer(Protocol):
    """Renders one request's answer, whole or as a stream. It is told each choice's frames in their
    order, across recoveries as if there were none."""

    content_type: str
    """Of a stream."""

    def begin(self, prompt_tokens: int) -> bytes:
        """What a stream begins with, before anything of the answer is known. `prompt_tokens` of one
        choice; 0 = not known yet."""

    def echo(self, choice: int, text: str) -> None:
        """The prompt's text, which the choice's text begins with."""

    def token(self, choice: int, token: Token) -> bytes:
        """The events of one token."""

    def finish(self, choice: int, end: End) -> bytes:
        """The events of a choice's end."""

    def done(self, usage: Usage, recoveries: int) -> bytes:
        """The stream's last events, all choices having ended. `recoveries`: how often another
        worker has gone on with it."""

    def ping(self) -> bytes:
        """What keeps a silent stream open and its client awake. It may come between any two events,
        also before the first token."""

    def error(self, error: BulkheadError) -> bytes:
        """The stream's last events when it fails."""

    def answer(self, choices: Sequence[ChoiceBuffer], usage: Usage) -> bytes:
        """The body of a request that is not streamed."""


@runtime_checkable
class PromptRenderer(Renderer, Protocol):
    """A `Renderer` of a dialect whose requests can have their prompts scored. Nobody else is told
    what prompts score."""

    def prompt(self, choice: int, told: PromptLogprobs) -> bytes:
        """The events of a stretch of the prompt, before the choice's first token."""

    def keep_prompt(self, choice: int, told: PromptLogprobs) -> None:
        """Keep a stretch of the prompt for `answer`. Raises the contract's 400 when it becomes too
        much."""


class ErrorAnswer(NamedTuple):
    """An error before the first byte, in a dialect's form."""

    status: int
    body: bytes


ErrorForm = Callable[[BulkheadError, str], ErrorAnswer]
"""Renders an error; the text is the request's id."""


def contract_form(error: BulkheadError, request_id: str) -> ErrorAnswer:
    """The contract's own, which is OpenAI's, and is used for everything that is no dialect's."""
    return ErrorAnswer(error.status, msgspec.json.encode(error.body()))
