"""A job that is decoding: what each of its tokens means for its request."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any

from supervisor.errors import InternalError
from supervisor.wire.frames import (
    PROMPT_SLICE,
    End,
    Failed,
    FromEngine,
    Generate,
    Logprob,
    Logprobs,
    PromptLogprobs,
    Token,
)
from worker.engine.prompt_scores import PromptScores
from worker.engine.rows import TokenLogprobs
from worker.engine.thread import Job, failed
from worker.output.token_bytes import TokenBytes
from worker.output.transcript import AnyTranscript, OutputDelta

log = logging.getLogger("bulkhead.worker")

_TOLD_PLACES = 4
"""Of a traceback, the innermost ones."""


class ActiveJob:
    """A job inside the generator, with its text so far."""

    def __init__(
        self, job: Job, token_bytes: TokenBytes, tokens: int, scores: PromptScores | None = None
    ) -> None:
        """`tokens` of the output were emitted by another worker. `scores`: those of the prompt."""
        assert isinstance(job.request, Generate)
        self.job = job
        self._request = job.request
        self._scores = scores
        self.told_ahead = False
        """Whether the first token has been told before the generator has returned it."""
        self.begun = False
        """Whether it has had a token: what is prefilled then is no prompt to its request."""
        self._text: AnyTranscript = job.prepared.transcript
        self._token_bytes = token_bytes
        self._tokens = tokens

    def frames(
        self, token: int, finish: str | None, logprobs: TokenLogprobs | None
    ) -> Sequence[FromEngine]:
        """What one generated token is for its request. `finish` is the generator's reason to end
        the sequence with it, "stop" or "length", if it does."""
        if finish == "stop":
            # The end-of-sequence token is not output; what was held back is.
            rest = self._text.finish()
            constraint = self.job.prepared.constraint
            called = self._text.finish_reason == "tool_calls"
            if constraint is not None and (error := constraint.incomplete_error(called=called)):
                log.warning("request %s: %s", self.job.request.request_id, error.message)
                return [failed(error)]
            ended = self._end(self._text.finish_reason)
            # Whoever scores a prompt counts on one entry for each token that was generated, as
            # others tell them: lm-eval asks for one token and drops the last entry.
            told = None
            if logprobs is not None and self._request.prompt_logprobs is not None:
                told = self._logprobs(token, logprobs)
            return [_token(token, rest, told), ended] if told or any(rest) else [ended]
        self._tokens += 1
        delta = self._text.push(token)
        reason: str | None = self._text.finish_reason if self._text.stopped else finish
        if reason is not None:
            rest = self._text.finish(cut=not self._text.stopped)
            delta = OutputDelta(
                delta.text + rest.text, delta.reasoning + rest.reasoning, delta.calls + rest.calls
            )
        frame = _token(token, delta, None if logprobs is None else self._logprobs(token, logprobs))
        return [frame] if reason is None else [frame, self._end(reason)]

    @property
    def scores_prompt(self) -> bool:
        """Whether tokens of the prompt are still to be scored."""
        return self._scores is not None and self._scores.wanting

    def prompt_frames(self) -> list[FromEngine]:
        """What the prompt's tokens score, as far as it has become known since the last call."""
        if self._scores is None:
            return []
        start, scores = self._scores.take()
        told = [
            Logprobs(
                self._logprob(each.token, each.value),
                tuple(self._logprob(other, value) for other, value in each.top),
            )
            for each in scores
        ]
        return [
            PromptLogprobs(start + at, tuple(told[at : at + PROMPT_SLICE]))
            for at in range(0, len(told), PROMPT_SLICE)
        ]

    def prompt_end(self) -> End | None:
        """The end of a request that wants no output, once its prompt is processed; None = it wants
        some."""
        return self._end("length") if self._request.max_tokens == 0 else None

    def _logprobs(self, token: int, logprobs: TokenLogprobs) -> Logprobs:
        return Logprobs(
            self._logprob(token, logprobs.sampled),
            tuple(self._logprob(other, value) for other, value in logprobs.top),
        )

    def _logprob(self, token: int, value: float) -> Logprob:
        raw = self._token_bytes.raw(token)
        return Logprob(token, raw.decode("utf-8", "replace"), raw, value)

    def _end(self, reason: Any) -> End:
        text = self._text
        return End(reason, len(self.job.prompt), self._tokens, text.reasoning_tokens, text.stop)


def replay_emitted(
    request: Generate, text: AnyTranscript, eos: Sequence[int], most: int, prompt_tokens: int
) -> End | None:
    """Tell `text` of the tokens that another worker has emitted. The end of the output, if they
    were all of it: that worker died between the last token and its end frame."""
    ended, emitted = request.emitted[-1] in eos, request.emitted
    # A final end-of-sequence token brought the rest of the text with it; it is not output.
    output = emitted[:-1] if ended else emitted
    for token in output:
        text.push(token)
    if not (ended or text.stopped or len(output) >= most):
        return None
    text.finish(cut=not (ended or text.stopped))
    reason = text.finish_reason if ended or text.stopped else "length"
    return End(reason, prompt_tokens, len(output), text.reasoning_tokens, text.stop)


def row_fault(job: Job, error: Exception) -> Failed:
    """The end of a request whose own part failed: its text, grammar, log probabilities or tool
    parser. The log says where, and nothing of what the error says: it may quote the output."""
    if isinstance(error, MemoryError):
        raise error  # nobody's own
    places = [
        f"{at.name} ({at.filename}:{at.lineno})" for at in traceback.extract_tb(error.__traceback__)
    ]
    log.error(
        "request %s ends with %s, the others go on: %s",
        job.request.request_id,
        type(error).__name__,
        " > ".join(places[-_TOLD_PLACES:]),
    )
    return failed(InternalError(f"The worker failed on this request ({type(error).__name__})."))


def _token(token: int, delta: OutputDelta, logprobs: Logprobs | None = None) -> Token:
    return Token(token, delta.text, delta.reasoning, delta.calls, logprobs)
