"""The supervisor's answers over a connection to its control socket, as frames or as errors."""

from __future__ import annotations

import asyncio
import errno
import logging

from supervisor.errors import BulkheadError, InternalError, QueueFull, ShuttingDown, restore
from supervisor.wire.codec import ProtocolError
from supervisor.wire.control_frames import Died, Refused, ToGateway
from supervisor.wire.stream import FrameStream

log = logging.getLogger("bulkhead.gateway")

ANSWER_SECONDS = 10.0
"""Beyond the hold: how long the supervisor may take to answer before it counts as gone."""

LACKING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""What this process lacks, for a connection."""

ControlStream = FrameStream[ToGateway]


class WorkerDied(Exception):
    """The granted worker has died before it got the request, which may return to its lease."""


async def receive_answer(stream: ControlStream, seconds: float) -> ToGateway:
    """The supervisor's next frame. Raises like `raise_refusal`, and BulkheadError for silence."""
    try:
        async with asyncio.timeout(seconds):
            frame = await stream.receive()
    except TimeoutError:
        log.error("the supervisor did not answer within %.0f s", seconds)
        raise supervisor_gone() from None
    except ProtocolError as error:
        log.error("the supervisor broke the protocol: %s", error)
        raise InternalError("The supervisor gave an unreadable answer.") from None
    return raise_refusal(frame)


def raise_refusal(frame: ToGateway | None) -> ToGateway:
    """The frame, unless it is a refusal or the end of the connection: raises BulkheadError, or
    WorkerDied after a death from which the request may return."""
    match frame:
        case None:
            raise supervisor_gone()
        case Died() if frame.may_return:
            raise WorkerDied(frame.message)
        case Refused(code, message, param, retry_after) | Died(code, message, param, retry_after):
            raise restore(code, message, param=param, retry_after=retry_after)
    return frame


def unexpected_answer() -> BulkheadError:
    return InternalError("The supervisor gave an unexpected answer.")


def supervisor_gone() -> BulkheadError:
    return ShuttingDown("The server is restarting. Try again shortly.")


def too_many_connections() -> BulkheadError:
    return QueueFull("The server has too many connections open at the moment. Try again shortly.")


def unsendable(request_id: str, error: ProtocolError) -> BulkheadError:
    log.error("%s cannot be sent: %s", request_id, error)
    return InternalError("The request could not be passed on to the model.")
