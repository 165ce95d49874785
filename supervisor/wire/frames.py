"""Message types, one union for each direction of each connection.

Three connections exist:

* control: gateway ↔ supervisor, a Unix socket. One connection is one lease: `Acquire` → (`Granted`
  | `Refused`), later perhaps `Died`. Closing it ends the lease, so the kernel returns leases when
  the gateway dies. The same socket serves `Inquire` → `Report`, and the gateway announces itself
  with `Serving`.
* channel: supervisor ↔ worker, a socketpair inherited at spawn. `Hello` → `Load` → `Loading`… →
  `Ready` | `LoadFailed`.
* work: gateway ↔ worker, a Unix socket, one connection a request. `Generate` → `Accepted` →
  `Progress`… → `Token`… → exactly one of `End`, `Failed`. EOF towards the worker cancels; EOF
  before the end frame means that the worker died.

Bodies are msgpack arrays led by the tag: decoding checks every type, and nothing is executed.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of every message."""


# ── control: gateway ↔ supervisor ────────────────────────────────────────────────────────────────


class Acquire(Frame, frozen=True, tag="acquire"):
    """Ask for a place on `model`; wait at most `hold_seconds` for it."""

    request_id: str
    model: str
    hold_seconds: float


class Fault(Frame, frozen=True, tag="fault"):
    """The granted worker broke the protocol (a torn or malformed frame): it must go."""

    reason: str


class Inquire(Frame, frozen=True, tag="inquire"):
    """Ask for one `Report`; with a `model`, which may be an alias, also for what it stands for.

    An unknown model is answered with `Refused`.
    """

    model: str = ""


class Serving(Frame, frozen=True, tag="serving"):
    """The gateway accepts requests now; this connection stays open for its lifetime."""


class Granted(Frame, frozen=True, tag="granted"):
    """A place on a ready worker, until the lease's connection closes.

    `model` is the served name (aliases resolved), `worker` is `name#generation`, `socket` the path
    to connect to.
    """

    model: str
    worker: str
    socket: str


class Refused(Frame, frozen=True, tag="refused"):
    """No place. The fields are those of `supervisor.errors`."""

    code: str
    message: str
    param: str | None
    retry_after: float | None


class Died(Frame, frozen=True, tag="died"):
    """The granted worker is gone; same fields as `Refused`."""

    code: str
    message: str
    param: str | None
    retry_after: float | None


class Report(Frame, frozen=True, tag="report"):
    """The supervisor's view of the world as the JSON object that `/health` shows.

    `model` is the served name of the model that was asked about, if any.
    """

    accepting: bool
    body: bytes
    model: str


ToSupervisor = Acquire | Fault | Inquire | Serving
ToGateway = Granted | Refused | Died | Report


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


ToWorker = Load
FromWorker = Hello | Loading | Ready | LoadFailed


# ── work: gateway ↔ worker ───────────────────────────────────────────────────────────────────────


class Chat(Frame, frozen=True, tag="chat"):
    """Messages as the client sent them, in the shape that chat templates take."""

    messages: list[dict[str, Any]]


class Text(Frame, frozen=True, tag="text"):
    """A prompt that no template is applied to."""

    text: str


class Generate(Frame, frozen=True, tag="generate"):
    """One choice to generate.

    None means that the model's own default applies. `max_tokens` None = up to the context.
    `stop` strings are matched on text and are not part of the output. `now` is the request's time,
    seconds since the epoch: templates print dates, and a resumed request must print the same.
    """

    request_id: str
    prompt: Chat | Text
    now: float
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


class Accepted(Frame, frozen=True, tag="accepted"):
    """The prompt is tokenized and queued."""

    prompt_tokens: int


class Progress(Frame, frozen=True, tag="progress"):
    """Prompt tokens prefilled so far."""

    done: int
    total: int


class Token(Frame, frozen=True, tag="token"):
    """One generated token and the text that became final with it ("" while a character is cut)."""

    id: int
    text: str


class End(Frame, frozen=True, tag="end"):
    """The request ended well. Counts are in tokens; the end-of-sequence token is not counted."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class Failed(Frame, frozen=True, tag="failed"):
    """The request ended with an error; same fields as `Refused`."""

    code: str
    message: str
    param: str | None
    retry_after: float | None


ToEngine = Generate
FromEngine = Accepted | Progress | Token | End | Failed
