"""Messages of the control connections, gateway ↔ supervisor, over a Unix socket.

One connection is one lease: `Acquire` → (`Granted` | `Refused`), later perhaps `Died`, after which
the request may come back: `Return` → (`Granted` | `Refused`). Closing the connection ends the
lease, so the kernel returns leases when the gateway dies. The same socket serves `Inquire` →
`Report`, and the gateway announces itself with `Serving`. `Warm` or `Expire` → (`Managed` |
`Refused`) are for clients that load and unload; `Manage` → (`Managed` | `Refused`), `WatchEvents` →
`Happened`… and `AskCrashes` → (`Crashes` | `Refused`) are for people. `UseCounter` → (`Counter` |
`Refused`), later perhaps `Died`, is for a count; its connection stays open as long as that takes.
"""

from __future__ import annotations

from typing import Literal

from supervisor.wire.frames import ErrorFrame, Frame


class Acquire(Frame, frozen=True, tag="acquire"):
    """Ask for a place on `model`. The request waits for it for at most `hold_seconds`, and for as
    long again after each death of its worker. Equal requests have an equal `digest`, by which one
    that kills workers is recognised. `keep_alive` is for how many seconds the model stays loaded
    when nobody uses it, from this request on: 0 = not at all, negative = for ever, None = as it
    is. It has `places` choices, each of which takes a place; it can use `at_once` of them at a
    time, 0 = all."""

    request_id: str
    model: str
    hold_seconds: float
    digest: bytes = b""
    keep_alive: float | None = None
    places: int = 1
    at_once: int = 0


class Holds(Frame, frozen=True, tag="holds"):
    """A choice of the request has ended, but not the last one: it has `held` choices on the worker,
    or is about to, and `left` that have not ended."""

    held: int
    left: int


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
    """Ask for one `Report`, with `files` on request. A `model`, which may be an alias, is resolved
    in it; an unknown one is answered with `Refused`."""

    model: str = ""
    files: bool = False


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


class Warm(Frame, frozen=True, tag="warm"):
    """A client wants the model loaded, and no place on it: answered as a `Manage` to load, but a
    failed load is not tried again for it. `keep_alive` is as `Acquire`'s."""

    request_id: str
    model: str
    hold_seconds: float
    keep_alive: float | None = None


class Expire(Frame, frozen=True, tag="expire"):
    """A client has done with the model: it is unloaded once nobody uses it, unless it is pinned.
    Answered with `Managed` or `Refused`, at once."""

    model: str


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
    or has ended. At most `places` choices may be on the worker at once, 0 = all; `Places` changes
    that.
    """

    model: str
    worker: str
    socket: str
    until: int = 0
    asked: str = ""
    """The model that was wanted, where `model` is its fallback."""
    places: int = 0


class Places(Frame, frozen=True, tag="places"):
    """At most so many choices of the request may be on the worker from now on. Those beyond go on,
    but no other begins for one that ends."""

    places: int


class Counter(Frame, frozen=True, tag="counter"):
    """The process that counts listens at `socket`. `model` is the served name (aliases resolved),
    `folder` where its files are."""

    model: str
    folder: str
    socket: str


class Refused(ErrorFrame, frozen=True, tag="refused"):
    """No place."""


class Died(ErrorFrame, frozen=True, tag="died"):
    """The granted worker, or the counter, is gone, or has to go. A request that `may_return` sends
    `Return` within seconds; for any other the lease has ended."""

    may_return: bool = False


class Report(Frame, frozen=True, tag="report"):
    """The state of the instance, as the JSON object that `/health` shows. `accepting`: it is not
    shutting down. `model` is the served name of the model that was asked about, if any. `files` is
    a JSON object: by served name, what is known of each model's files, see `wire.about`."""

    accepting: bool
    body: bytes
    model: str
    files: bytes = b""


ToSupervisor = (
    Acquire
    | Return
    | Passed
    | WorkerFault
    | Inquire
    | Serving
    | Manage
    | Warm
    | Expire
    | WatchEvents
    | UseCounter
    | AskCrashes
    | Holds
)
ToGateway = Granted | Places | Refused | Died | Report | Managed | Happened | Counter | Crashes
