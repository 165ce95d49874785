"""Frames to bytes and back: a 4-byte big-endian length, then a msgpack body. No sockets inside."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from supervisor.wire.frames import Chat, Count, Embed, Frame, Generate
from supervisor.wire.text import all_as_utf8

HEADER: Final = struct.Struct(">I")
REQUEST_LIMIT: Final = 256 * 2**20
"""Bytes of one frame towards a worker: above the largest request body that can be configured."""
REPLY_LIMIT: Final = 8 * 2**20
"""Bytes of one frame on every other path."""

F = TypeVar("F")
W = TypeVar("W", bound=Generate | Embed)

_CONTENT: Final[dict[type, str]] = {Generate: "prompt", Embed: "inputs"}
"""The field that may be packed."""
_LARGE = 2**16
"""Bytes that are worth a write of their own."""


class ProtocolError(Exception):
    """The peer sent bytes that are no frame of this connection. Nothing after them can be read."""


class TornFrame(ProtocolError):
    """The peer's stream ended inside a frame."""


_encoder = msgspec.msgpack.Encoder()


def encode(frame: Frame) -> bytes:
    """The frame as bytes. Text that UTF-8 cannot carry is escaped, but in a request, which
    is never changed. Raises ProtocolError for such a one."""
    try:
        return _encoded(frame)
    except UnicodeEncodeError as error:
        if isinstance(frame, Count | Generate | Embed):
            raise _unfit(frame, error) from None
    except (OverflowError, RecursionError) as error:
        raise _unfit(frame, error) from None
    return _encoded(all_as_utf8(frame))


def packed(requests: Sequence[W]) -> list[W]:
    """The same requests with their prompts, or inputs, as encoded bytes, one copy of each: all that
    may be done with such a one is to replace its other fields, and to send it. Raises ProtocolError
    for a text that UTF-8 can't carry."""
    known: dict[int, msgspec.Raw] = {}
    made = []
    for request in requests:
        content = _content(request)
        if id(content) not in known:
            known[id(content)] = msgspec.Raw(_packed(request, content))
        made.append(_with_content(request, known[id(content)]))
    return made


def packed_chat(chat: Chat) -> Chat:
    """The chat of a `Count` as encoded bytes, as `packed` has them. Raises ProtocolError."""
    raw: Any = msgspec.Raw(_packed(chat, chat))
    same: Chat = raw
    return same


def packed_chat_size(chat: Chat) -> int:
    """Bytes that a packed chat takes."""
    raw: Any = chat
    return len(memoryview(raw))


def packed_size(requests: Sequence[Generate | Embed]) -> int:
    """Bytes that packed requests take together."""
    contents = {id(_content(each)): len(_raw(each)) for each in requests}
    return sum(contents.values())


def pieces(frame: Frame) -> tuple[bytes | memoryview, ...]:
    """The frame as `encode` has it, in pieces: a large content of a packed request is one of its
    own, and no copy. Raises ProtocolError."""
    if not isinstance(frame, Generate | Embed) or len(content := _raw(frame)) < _LARGE:
        return (encode(frame),)
    around = encode(_with_content(frame, msgspec.Raw(b"")))[HEADER.size :]
    place = _length_before_content(frame, around)
    return HEADER.pack(len(around) + len(content)) + around[:place], content, around[place:]


def _length_before_content(request: Generate | Embed, body: bytes) -> int:
    """Bytes of the encoded request's `body` that come before its content. They are not looked for:
    any byte may be among them."""
    fields = request.__struct_fields__
    before = fields[: fields.index(_CONTENT[type(request)])]
    values = [request.__struct_config__.tag, *(getattr(request, field) for field in before)]
    # An array begins with its length, of up to 15 elements in one byte.
    begins = 1 if body[0] & 0xF0 == 0x90 else 3
    return begins + sum(len(_encoder.encode(value)) for value in values)


def _content(request: Generate | Embed) -> object:
    found: object = getattr(request, _CONTENT[type(request)])
    return found


def _with_content(request: W, content: msgspec.Raw) -> W:
    return replace(request, **{_CONTENT[type(request)]: content})


def _raw(request: Generate | Embed) -> memoryview:
    """The encoded content of a packed request; of any other nothing."""
    content = _content(request)
    return memoryview(content if isinstance(content, msgspec.Raw) else b"")


def _packed(frame: Frame, content: object) -> bytes:
    if isinstance(content, msgspec.Raw):
        return bytes(content)
    try:
        return _encoder.encode(content)
    except (UnicodeEncodeError, OverflowError, RecursionError) as error:
        raise _unfit(frame, error) from None


def _encoded(frame: Frame) -> bytes:
    body = _encoder.encode(frame)
    return HEADER.pack(len(body)) + body


def _unfit(frame: Frame, error: Exception) -> ProtocolError:
    return ProtocolError(f"cannot encode {type(frame).__name__}: {type(error).__name__}")


class FrameDecoder(Generic[F]):
    """Incremental decoder of one direction of one connection.

    `frames` is F itself, the union of types that may arrive (Python cannot yet say so in a type).
    A length above `limit`, bytes, is an error before anything is buffered, so that a peer can't
    make this process grow.
    """

    def __init__(self, frames: Any, limit: int = REPLY_LIMIT) -> None:
        self._decoder: msgspec.msgpack.Decoder[F] = msgspec.msgpack.Decoder(frames)
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[F]:
        """Yield the frames that `data` completes; consume it whole before feeding again.

        Raises ProtocolError after the last good frame; feed nothing after that.
        """
        # Nearly always `data` holds whole frames, and nothing waits for it.
        waits = bool(self._buffer)
        if waits:
            self._buffer += data
        source = self._buffer if waits else data
        start, held = 0, len(source)
        try:
            while held - start >= HEADER.size:
                (length,) = HEADER.unpack_from(source, start)
                if length > self._limit:
                    raise ProtocolError(f"a frame of {length} bytes exceeds {self._limit}")
                end = start + HEADER.size + length
                if held < end:
                    break
                body = source[start + HEADER.size : end]
                start = end
                yield self._decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            # The decoder's own message can quote values, and values can be prompt text.
            raise ProtocolError(f"malformed frame: {type(error).__name__}") from None
        finally:
            if waits:
                del self._buffer[:start]
            elif start < held:
                self._buffer += data[start:]

    def eof(self) -> None:
        """The stream ended. Raises TornFrame if it did so inside a frame."""
        if self._buffer:
            raise TornFrame(f"the stream ended {len(self._buffer)} bytes into a frame")
