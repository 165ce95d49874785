"""Message types, one union for each direction of each connection.

Four connections exist:

* control: gateway ↔ supervisor, a Unix socket. One connection is one lease: `Acquire` → (`Granted`
  | `Refused`), later perhaps `Died`, after which the request may come back: `Return` → (`Granted` |
  `Refused`). Closing the connection ends the lease, so the kernel returns leases when the gateway
  dies. The same socket serves `Inquire` → `Report`, and the gateway announces itself with
  `Serving`. `Manage` → (`Managed` | `Refused`), `WatchEvents` → `Happened`… and `AskCrashes` →
  (`Crashes` | `Refused`) are for people. `UseCounter` → (`Counter` | `Refused`), later perhaps
  `Died`, is for a count; its connection stays open as long as that takes.
* channel: supervisor ↔ worker, a socketpair inherited at spawn. `Hello` → `Load` → `Loading`… →
  `Ready` | `LoadFailed`.
* work: gateway ↔ worker, a Unix socket, one connection a request. `Generate` → `Accepted` →
  `Progress`… → `Token`… → exactly one of `End`, `Failed`; or `Embed` → `Vector`… → `Embedded` |
  `Failed`. Between tokens the gateway may send `Pause`, then `Continue`. EOF towards the worker
  cancels; EOF before the end frame means that the worker died.
* counting: gateway ↔ counter, a Unix socket, one connection a count: `Count` → `Counted` |
  `Failed`. The counter's channel to the supervisor carries its `Hello` alone.

Bodies are msgpack arrays led by the tag: decoding checks every type, and nothing is executed.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of every message."""


class ErrorFrame(Frame, frozen=True):
    """Base of those that tell an error, in the fields of `supervisor.errors.BulkheadError`."""

    code: str
    message: str
    param: str | None
    retry_after: float | None


# ── control: gateway ↔ supervisor ────────────────────────────────────────────────────────────────


class Acquire(Frame, frozen=True, tag="acquire"):
    """Ask for a place on `model`. The request waits for it for at most `hold_seconds`, and for as
    long again after each death of its worker. Equal requests have an equal `digest`, by which one
    that kills workers is recognised."""

    request_id: str
    model: str
    hold_seconds: float
    digest: bytes = b""


class Return(Frame, frozen=True, tag="return"):
    """After a `Died` with `may_return`: the request asks for another place.

    It has `position` tokens of output, all its choices together; fewer than `Granted.until` unless
    `Passed` was sent. `prompt_tokens` are those of one choice, 0 = not known. From now on it waits
    for a place for `hold_seconds`; 0 = for as long as before.
    """

    position: int
    prompt_tokens: int = 0
    hold_seconds: float = 0.0


class Passed(Frame, frozen=True, tag="passed"):
    """The request has `Granted.until` tokens of output, or has ended before."""


class WorkerFault(Frame, frozen=True, tag="fault"):
    """The granted worker, or the counter, broke the protocol (a torn or malformed frame) or gives
    no answer, so it must be stopped."""

    reason: str


class Inquire(Frame, frozen=True, tag="inquire"):
    """Ask for one `Report`. A `model`, which may be an alias, is resolved in it; an unknown one is
    answered with `Refused`."""

    model: str = ""


class Serving(Frame, frozen=True, tag="serving"):
    """The gateway accepts requests now; this connection stays open for its lifetime."""


Action = Literal["load", "unload", "pin", "unpin"]


class Manage(Frame, frozen=True, tag="manage"):
    """A person asks for this action on a model. A `load` waits at most `hold_seconds` for `Managed`
    or `Refused`, and makes room as a request does; the connection is its lease."""

    request_id: str
    action: Action
    model: str
    hold_seconds: float


class WatchEvents(Frame, frozen=True, tag="watch"):
    """Ask for all events from now on: one `Happened` each, until a side closes, or `Refused`. The
    first one says that the watch has begun."""


class UseCounter(Frame, frozen=True, tag="use_counter"):
    """Ask for the process that counts tokens, which is started if there is none; it stays at least
    until this connection closes. `model` may be an alias. A `WorkerFault` has it replaced, and is
    answered with `Died`."""

    model: str


class AskCrashes(Frame, frozen=True, tag="ask_crashes"):
    """Ask for the crash report with this id, or for the list of all of them."""

    id: str = ""


class Crashes(Frame, frozen=True, tag="crashes"):
    """JSON of a `CrashReport` or a `CrashList`, see `wire.crash`."""

    body: bytes


class Managed(Frame, frozen=True, tag="managed"):
    """The action is done, or under way; `state` and `pinned` are the model's now."""

    model: str
    state: str
    pinned: bool


class Happened(Frame, frozen=True, tag="happened"):
    """One event, as the JSON object that `/admin/events` shows."""

    body: bytes


class Granted(Frame, frozen=True, tag="granted"):
    """A place on a ready worker, until the lease's connection closes.

    `model` is the served name (aliases resolved), `worker` is `name#generation`, `socket` the path
    to connect to. `until`, 0 = none, is a position past the one that the request has told: send
    `Passed` when each of its choices on the worker has made as many tokens as lie between the two,
    or has ended. With `then_pause` stop there until `Unpause`.
    """

    model: str
    worker: str
    socket: str
    until: int = 0
    then_pause: bool = False
    asked: str = ""
    """The model that was wanted, where `model` is its fallback."""


class Counter(Frame, frozen=True, tag="counter"):
    """The process that counts listens at `socket`. `model` is the served name (aliases resolved),
    `folder` where its files are."""

    model: str
    folder: str
    socket: str


class Unpause(Frame, frozen=True, tag="proceed"):
    """Go on with what was paused."""


class Refused(ErrorFrame, frozen=True, tag="refused"):
    """No place."""


class Died(ErrorFrame, frozen=True, tag="died"):
    """The granted worker, or the counter, is gone, or has to go. A request that `may_return` sends
    `Return` within seconds; for any other the lease has ended."""

    may_return: bool = False


class Report(Frame, frozen=True, tag="report"):
    """The state of the instance, as the JSON object that `/health` shows. `accepting`: it is not
    shutting down. `model` is the served name of the model that was asked about, if any."""

    accepting: bool
    body: bytes
    model: str


ToSupervisor = (
    Acquire
    | Return
    | Passed
    | WorkerFault
    | Inquire
    | Serving
    | Manage
    | WatchEvents
    | UseCounter
    | AskCrashes
)
ToGateway = Granted | Unpause | Refused | Died | Report | Managed | Happened | Counter | Crashes


# ── channel: supervisor ↔ worker ─────────────────────────────────────────────────────────────────


class Load(Frame, frozen=True, tag="load"):
    """Become the worker `model`#`generation`: load the folder `path` and serve `socket`.

    `max_concurrency` sequences decode at once. `context` is in tokens, 0 = the model's own.
    """

    model: str
    generation: int
    path: str
    socket: str
    max_concurrency: int
    context: int


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


ToWorker = Load | Shrink
FromWorker = Hello | Loading | Ready | LoadFailed


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

    None means that the model's own default applies. `max_tokens` None = up to the context.
    `stop` strings are matched on text and are not part of the output. `now` is the request's time,
    seconds since the epoch: templates print dates, and a resumed request must print the same.
    `logprobs` is how many alternatives are told with each token, None = no log probabilities at
    all. `calling` None = whatever looks like a tool call is text. `echo`: the prompt's text is
    wanted back. `emitted` are the tokens of its output that an earlier worker has sent: the output
    goes on after them, as if nothing had happened.
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
    emitted: tuple[int, ...] = ()


class Pause(Frame, frozen=True, tag="pause"):
    """Generate no more of the choice, but keep it. Tokens that are made already may follow, and so
    may its end."""


class Continue(Frame, frozen=True, tag="continue"):
    """Go on with what was paused."""


class Embed(Frame, frozen=True, tag="embed"):
    """Inputs to embed, each a text or token ids. `dimensions` None = the model's own."""

    request_id: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None


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


ToEngine = Generate | Embed | Pause | Continue
FromEngine = Accepted | Progress | Token | End | Vector | Embedded | Failed


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
