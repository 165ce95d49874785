"""Message types, one union for each direction of each connection.

Four connections exist:

* control: gateway ↔ supervisor, a Unix socket, see `supervisor.wire.control_frames`.
* channel: supervisor ↔ worker, a socketpair inherited at spawn. `Hello` → `Load` → `Loading`… →
  `Ready` | `LoadFailed`. A ready worker borrows memory for its KV cache: it says what it `Needs`,
  gets a `Lend`, and gives back what it no longer wants, or what a `Recall` asks for, with `Repaid`.
  Words cross: see `Needs` and `Lend`.
* work: gateway ↔ worker, a Unix socket, one connection a request. `Generate` → `Accepted` →
  (`Progress` | `PromptLogprobs`)… → `Token`… → exactly one of `End`, `Failed`; or `Embed` →
  `Vector`… → `Embedded` | `Failed`. EOF towards the worker cancels; EOF before the end frame
  means that the worker died.
* counting: gateway ↔ counter, a Unix socket, one connection a count: `Count` → `Counted` |
  `Failed`. The counter's channel to the supervisor carries its `Hello` alone.

Bodies are msgpack arrays led by the tag: decoding checks every type, and nothing is executed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

PROMPT_SLICE = 32
"""Tokens of a prompt that one `PromptLogprobs` tells."""
GRAMMAR_BYTES: Final = 64 * 2**20
"""The most that a worker's compiled grammars take together, those in use included."""
Bytes = Annotated[int, msgspec.Meta(ge=0)]
"""Of a loan."""


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of every message."""


class ErrorFrame(Frame, frozen=True):
    """Base of those that tell an error, in the fields of `supervisor.errors.BulkheadError`."""

    code: str
    message: str
    param: str | None
    retry_after: float | None


# ── channel: supervisor ↔ worker ─────────────────────────────────────────────────────────────────


class Allowance(Frame, frozen=True, tag="allowance"):
    """What a worker may hold beyond its loaded weights, and what its work takes, in bytes.

    `room` is part of what its load is charged: KV for a short conversation and one prefill step.
    All further KV is lent. `limit` is the most that `room` and all loans may be together, 0 = no
    limit. What comes and goes: `prompt_token` for each token of a prefill step, `score` for each of
    them and each token of its context (0 where attention is fused), `row` for each sequence of a
    decode step.
    """

    room: int = 0
    limit: int = 0
    prompt_token: int = 0
    score: int = 0
    row: int = 0


class Load(Frame, frozen=True, tag="load"):
    """Become the worker `model`#`generation`: load the folder `path` and serve `socket`.

    At most `max_concurrency` sequences decode at once. `context` is in tokens, 0 = the model's own.
    With `prefill_gate` a heavy prefill waits for `MayPrefill`.
    """

    model: str
    generation: int
    path: str
    socket: str
    max_concurrency: int
    context: int
    allowance: Allowance = Allowance()
    prefill_gate: bool = False


class Lend(Frame, frozen=True, tag="lend"):
    """So many bytes more may be held: they are charged already. On both sides they come off what
    the last `Needs` asked for. A worker that has no use for them, or may not hold so much, gives
    them back at once."""

    bytes: Bytes


class Recall(Frame, frozen=True, tag="recall"):
    """Give back so many of the lent bytes, those that serve no live sequence, or as many of them as
    there are: answered by exactly one `Repaid` with this `number`, between two steps. With `park`
    also what live sequences hold, the youngest of which are parked for it. After it the worker says
    anew how it stands."""

    number: int
    bytes: Bytes
    park: bool = False


class Limit(Frame, frozen=True, tag="limit"):
    """At most so many sequences decode at once from now on; those beyond are parked, the youngest
    first. 0 = as many as `Load` said."""

    sequences: int


class MayPrefill(Frame, frozen=True, tag="may_prefill"):
    """Whether heavy prefills may go on. With False the worker stops at the end of its slice, and
    says how it stands then with `WantsPrefill`, unless it has said that it wants none any more."""

    allowed: bool


class Shrink(Frame, frozen=True, tag="shrink"):
    """Memory is short: free caches."""


class Hello(Frame, frozen=True, tag="hello"):
    """The worker runs and its MLX thread has imported mlx-lm."""

    pid: int


class Loading(Frame, frozen=True, tag="loading"):
    """Bytes of weights in memory so far."""

    done: int
    total: int


class Ready(Frame, frozen=True, tag="ready"):
    """The socket accepts requests. `memory_bytes` is what MLX holds, `context` is in tokens."""

    memory_bytes: int
    context: int


class LoadFailed(Frame, frozen=True, tag="load_failed"):
    """These files can never be served here; loading them again would fail again."""

    reason: str


class Needs(Frame, frozen=True, tag="needs"):
    """How a ready worker stands with its loan, in bytes; replaces what it said before.

    Without `least` bytes more, 0 = none, some request can't go on; up to `most` would be of use.
    `since` is when the oldest of those requests came (its `Generate.now`). `idle` bytes of what is
    lent serve no live sequence. `youngest` is when the request of the youngest live sequence came
    that could be parked, and `parkable` what that would free; 0 = there is none.

    `heard` is the sum of all that the worker had ever been lent when it said so, whatever it has
    given back since. What was lent beyond that is on its way to it, and comes off `least` and
    `most`.
    """

    least: Bytes = 0
    most: Bytes = 0
    since: float = 0.0
    idle: Bytes = 0
    youngest: float = 0.0
    parkable: Bytes = 0
    heard: Bytes = 0


class Repaid(Frame, frozen=True, tag="repaid"):
    """So many of the lent bytes are held no longer: they come off what the last `Needs` called
    `idle`. `recall` is the number of the `Recall` that this answers, 0 = none."""

    bytes: Bytes
    recall: int = 0


class WantsPrefill(Frame, frozen=True, tag="wants_prefill"):
    """Whether the worker has a heavy prefill to do. True is said once and waits for `MayPrefill`;
    False gives that back, also where it comes too late to be of use. So the two never disagree for
    longer than a frame's way about who has the turn."""

    wanted: bool


ToWorker = Load | Shrink | Lend | Recall | Limit | MayPrefill
FromWorker = Hello | Loading | Ready | LoadFailed | Needs | Repaid | WantsPrefill
LoanFrame = Needs | Repaid | WantsPrefill
"""What an engine has to tell of its memory."""


# ── work: gateway ↔ worker ───────────────────────────────────────────────────────────────────────


class Chat(Frame, frozen=True, tag="chat"):
    """Messages and tools as the client sent them, in the shape that chat templates take.

    `tools` are what the template shows the model. `template` holds further template arguments:
    `chat_template_kwargs`, and `reasoning_effort` for templates that know it. `continues`: the last
    message is the beginning of the answer, which the output goes on with.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    template: dict[str, Any] = {}
    continues: bool = False


class Text(Frame, frozen=True, tag="text"):
    """A prompt that no template is applied to."""

    text: str


class Tokens(Frame, frozen=True, tag="tokens"):
    """A prompt that the client has tokenized."""

    ids: tuple[int, ...]


class Sampling(Frame, frozen=True, tag="sampling"):
    """How tokens are chosen. None means that the model's own default applies.

    Randomness derives from (`seed`, position in the output) and from nothing else. The presence and
    frequency penalties count output tokens, as OpenAI's do; the repetition penalty looks at the
    last `repetition_context` tokens, prompt included, as mlx_lm.server's does. `top_k` 0 = no
    limit.
    """

    seed: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    repetition_context: int = 20
    logit_bias: tuple[tuple[int, float], ...] = ()


class Calling(Frame, frozen=True, tag="calling"):
    """What the model may do with its tools.

    "auto": as it likes. "required": the output is one or more calls of the tools `names`, and
    nothing else. Without `parallel` the output ends after its first call. `places` tells where in
    the client's own list the prompt's tools stand, () = all of them are shown. `growing`: calls
    that a grammar holds to are told as they grow; else all are told when they are whole.
    """

    choice: Literal["auto", "required"]
    names: tuple[str, ...]
    parallel: bool = True
    places: tuple[int, ...] = ()
    growing: bool = True


SCHEMA_PLACE = "response_format.json_schema.schema"


class Schema(Frame, frozen=True, tag="schema"):
    """The answer is one JSON value that is valid under `schema` (JSON Schema, as JSON text);
    without `strict` as far as that can be enforced. `place` is where the client's request has it,
    for errors."""

    schema: str
    strict: bool = True
    place: str = SCHEMA_PLACE


class Pattern(Frame, frozen=True, tag="pattern"):
    """All of the answer matches `pattern`, a regular expression in the language that all dialects
    share. `place` as a schema's."""

    pattern: str
    place: str


class Grammar(Frame, frozen=True, tag="grammar"):
    """The answer follows `rules`, in llguidance's Lark, from the rule `start` on: with terminals,
    `%ignore` and nothing else of it. `place` as a schema's."""

    rules: str
    place: str


Structure = Schema | Pattern | Grammar
"""What an answer must be."""


class Generate(Frame, frozen=True, tag="generate"):
    """One choice to generate.

    None means that the model's own default applies. `max_tokens` None = up to the context, 0 = the
    prompt is processed for what is told of it, and nothing is generated.
    `stop` strings are matched on text and are not part of the output. `now` is the request's time,
    seconds since the epoch: templates print dates, and a resumed request must print the same.
    `logprobs` is how many alternatives are told with each token, None = no log probabilities at
    all. `calling` None = whatever looks like a tool call is text. `echo`: the prompt's text is
    wanted back. `prompt_logprobs` is how many alternatives are told with each of the prompt's
    tokens, None = the prompt is not scored; of a scored one the end-of-sequence token is told like
    any other. `scored` is how many of the prompt's tokens an earlier worker has told. `emitted` are
    the tokens of its output that an earlier worker has sent: the output goes on after them, as if
    nothing had happened.
    """

    request_id: str
    prompt: Chat | Text | Tokens
    now: float
    max_tokens: int | None = None
    min_tokens: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    calling: Calling | None = None
    structure: Structure | None = None
    echo: bool = False
    prompt_logprobs: int | None = None
    scored: int = 0
    emitted: tuple[int, ...] = ()


class Embed(Frame, frozen=True, tag="embed"):
    """Inputs to embed, each a text or token ids. `dimensions` None = the model's own. With
    `truncate` only the beginning is embedded of what is longer than the context, or than what of
    it this machine can hold, instead of none. `now` is the request's time, seconds since the
    epoch."""

    request_id: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    truncate: bool = False
    now: float = 0.0


class Accepted(Frame, frozen=True, tag="accepted"):
    """The prompt is tokenized and queued. `text` is the prompt's when an echo was asked for."""

    prompt_tokens: int
    text: str = ""


class Progress(Frame, frozen=True, tag="progress"):
    """Prompt tokens prefilled so far."""

    done: int
    total: int


class Call(Frame, frozen=True, tag="call"):
    """A piece of the answer's tool call number `index`.

    `name` is told with the first piece alone. The `arguments` of all pieces make one JSON object.
    """

    index: int
    name: str
    arguments: str


class Logprob(Frame, frozen=True, tag="logprob"):
    """One token with its natural log probability. `raw`, its bytes, may be part of a character."""

    id: int
    text: str
    raw: bytes
    value: float


class Logprobs(Frame, frozen=True, tag="logprobs"):
    """The token that was sampled, and the likeliest ones, likeliest first."""

    sampled: Logprob
    top: tuple[Logprob, ...]


class PromptLogprobs(Frame, frozen=True, tag="prompt_logprobs"):
    """The log probabilities of the prompt's tokens from number `start` on, in slices of
    `PROMPT_SLICE` up to the last one, all of them before the first `Token`. That of token 0, which
    follows nothing, has a value without a meaning and no alternatives."""

    start: int
    tokens: tuple[Logprobs, ...]


class Token(Frame, frozen=True, tag="token"):
    """One generated token, and what became final with it of the answer's text, of its reasoning and
    of its tool calls (all empty while a character, a stop string or a marker is undecided)."""

    id: int
    text: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    logprobs: Logprobs | None = None


class End(Frame, frozen=True, tag="end"):
    """The request ended well. Counts are in tokens; the end-of-sequence token is not counted, and
    those of reasoning are among the completion's. `stop` is the stop string that ended it, if one
    did."""

    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    stop: str = ""


class Vector(Frame, frozen=True, tag="vector"):
    """The embedding of one input: little-endian float32 numbers. In the order of the inputs."""

    values: bytes


class Embedded(Frame, frozen=True, tag="embedded"):
    """All vectors have been sent."""

    prompt_tokens: int


class Failed(ErrorFrame, frozen=True, tag="failed"):
    """The request ended with an error."""


ToEngine = Generate | Embed
FromEngine = Accepted | Progress | PromptLogprobs | Token | End | Vector | Embedded | Failed


# ── counting: gateway ↔ counter ──────────────────────────────────────────────────────────────────


class Count(Frame, frozen=True, tag="count"):
    """How many tokens a worker would accept the chat with at the time `now`, seconds since the
    epoch. `model` is for messages; `folder` has its files."""

    request_id: str
    model: str
    folder: str
    chat: Chat
    now: float


class Counted(Frame, frozen=True, tag="counted"):
    """So many, and nothing was generated or loaded."""

    prompt_tokens: int


ToCounter = Count
FromCounter = Counted | Failed
