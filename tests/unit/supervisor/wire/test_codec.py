"""supervisor.wire.codec: every frame survives the trip, and no bytes do harm."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisor.wire import frames
from supervisor.wire.codec import (
    HEADER,
    REPLY_LIMIT,
    FrameDecoder,
    ProtocolError,
    TornFrame,
    encode,
    packed,
    packed_chat,
    packed_chat_size,
    packed_size,
    pieces,
)
from supervisor.wire.frames import Chat, Count, Embed, Frame, Generate, Text, Token
from tests.helpers.frames import DIRECTIONS, EVERY, cut, feed, frames_of, raw, values

SECRET = "the-prompt-of-somebody"
DEPTH = 100_000


@pytest.mark.parametrize("name", DIRECTIONS)
@EVERY
@given(data=st.data(), places=st.lists(st.integers(0, 10**6), max_size=8))
def test_frames_survive_any_chunking(name: str, data: st.DataObject, places: list[int]) -> None:
    sent = data.draw(st.lists(frames_of(DIRECTIONS[name]), max_size=4))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    received = feed(decoder, cut(b"".join(map(encode, sent)), places))
    assert received == sent
    assert list(map(type, received)) == list(map(type, sent))
    decoder.eof()


@pytest.mark.parametrize("name", DIRECTIONS)
@EVERY
@given(data=st.data())
def test_frames_survive_byte_by_byte(name: str, data: st.DataObject) -> None:
    sent = data.draw(frames_of(DIRECTIONS[name]))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    assert feed(decoder, [bytes([byte]) for byte in encode(sent)]) == [sent]


@EVERY
@given(st.lists(frames_of(frames.FromEngine), min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_inside_a_frame_is_torn(sent: list[Frame], data: st.DataObject) -> None:
    whole = [encode(frame) for frame in sent]
    stream = b"".join(whole)
    length = data.draw(st.integers(0, len(stream)))
    ends = [sum(map(len, whole[: count + 1])) for count in range(len(whole))]
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    assert feed(decoder, [stream[:length]]) == sent[: sum(end <= length for end in ends)]
    if length in (0, *ends):
        decoder.eof()
    else:
        with pytest.raises(TornFrame):
            decoder.eof()


@pytest.mark.parametrize("excess", [1, 2**20, 0xFFFFFFFF - 1000])
def test_an_oversized_length_is_refused_by_its_header_alone(excess: int) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine, limit=1000)
    with pytest.raises(ProtocolError, match="exceeds 1000"):
        feed(decoder, [HEADER.pack(1000 + excess)])


def test_a_frame_of_exactly_the_limit_passes() -> None:
    frame = Token(1, "x" * 500)
    decoder: FrameDecoder[Frame] = FrameDecoder(
        frames.FromEngine, limit=len(encode(frame)) - HEADER.size
    )
    assert feed(decoder, [encode(frame)]) == [frame]


def test_the_limit_of_replies_is_the_default() -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    assert feed(decoder, [HEADER.pack(REPLY_LIMIT)]) == []
    with pytest.raises(ProtocolError):
        feed(FrameDecoder(frames.FromEngine), [HEADER.pack(REPLY_LIMIT + 1)])


@EVERY
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_arbitrary_bytes_are_frames_or_a_protocol_error(data: bytes, places: list[int]) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine, limit=1000)
    with contextlib.suppress(ProtocolError):
        feed(decoder, cut(data, places))
        decoder.eof()


@EVERY
@given(st.binary(max_size=100))
def test_an_arbitrary_body_is_a_frame_or_a_protocol_error(body: bytes) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.ToEngine)
    with contextlib.suppress(ProtocolError):
        feed(decoder, [HEADER.pack(len(body)) + body])


DEEP = b"\x91" * DEPTH + b"\xc0"
MALFORMED = {
    "empty body": HEADER.pack(0),
    "not msgpack": HEADER.pack(1) + b"\xc1",
    "no array": raw("token"),
    "no tag": raw([]),
    "unknown tag": raw([SECRET, 1, "x"]),
    "too few fields": raw(["token", 1]),
    "text for a number": raw(["token", SECRET, "x"]),
    "number for text": raw(["token", 1, 2]),
    "bool for a number": raw(["token", True, "x"]),
    "null": raw(["token", None, "x"]),
    "unknown literal": raw(["end", SECRET, 1, 2]),
    "trailing bytes": HEADER.pack(len(encode(Token(1, "x"))) - HEADER.size + 1)
    + encode(Token(1, "x"))[HEADER.size :]
    + b"\xc0",
    "not UTF-8": HEADER.pack(10) + b"\x93\xa5token\x01\xa1\xff",
    "not-a-number for a number": HEADER.pack(18) + b"\x93\xa5token\xcb" + b"\xff" * 8 + b"\xa1x",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_is_a_protocol_error_that_quotes_nothing(name: str) -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    with pytest.raises(ProtocolError) as caught:
        feed(decoder, [MALFORMED[name]])
    assert not isinstance(caught.value, TornFrame)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_deep_nesting_is_a_protocol_error_both_ways() -> None:
    head = msgspec.msgpack.encode(["generate", "r", ["chat", [{"content": None}]], 1.0])
    body = head.replace(b"\xa7content\xc0", b"\xa7content" + DEEP)
    with pytest.raises(ProtocolError):
        feed(FrameDecoder(frames.ToEngine), [HEADER.pack(len(body)) + body])
    tree: list[Any] = []
    for _ in range(DEPTH):
        tree = [tree]
    with pytest.raises(ProtocolError):
        encode(Generate("r", Chat([{"content": tree}]), 1.0))
    while tree:  # freeing it at once would recurse as well
        tree = tree.pop()


@pytest.mark.parametrize(
    "content", [SECRET + "\ud800", [SECRET + "\udfff"], {"\ud800": SECRET}, 2**64, -(2**63) - 1]
)
def test_what_cannot_be_encoded_is_a_protocol_error_that_quotes_nothing(content: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        encode(Generate("r", Chat([{"role": "user", "content": content}]), 1.0))
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_good_frames_before_a_bad_one_are_delivered() -> None:
    decoder: FrameDecoder[Frame] = FrameDecoder(frames.FromEngine)
    received = decoder.feed(encode(Token(1, "a")) + encode(Token(2, "b")) + raw([]))
    assert [next(received), next(received)] == [Token(1, "a"), Token(2, "b")]
    with pytest.raises(ProtocolError):
        next(received)


# ── packed contents ──────────────────────────────────────────────────────────────────────────────

LARGE = "x" * 2**16
REQUESTS = st.one_of(values(Generate), values(Embed))


def large(request: Any) -> Any:
    """The same with a content that is worth a piece of its own."""
    if isinstance(request, Embed):
        return replace(request, inputs=(LARGE, *request.inputs))
    return replace(request, prompt=Text(LARGE))


@EVERY
@given(
    request=REQUESTS,
    name=st.text(max_size=4) | st.integers(0, 70_000).map("r".__mul__),
    is_large=st.booleans(),
)
def test_a_packed_request_is_the_same_frame_in_pieces(
    request: Any, name: str, is_large: bool
) -> None:
    request = replace(large(request) if is_large else request, request_id=name)
    (kept,) = packed([request])
    assert b"".join(pieces(kept)) == encode(kept) == encode(request)
    assert b"".join(pieces(request)) == encode(request)
    assert len(pieces(kept)) == (3 if is_large else 1)


@pytest.mark.parametrize("length", [15, 31, 32, 0xC1, 255, 256, 0xC1C1])
@pytest.mark.parametrize("request_", [Generate("", Text(LARGE), 1.0), Embed("", (LARGE,))])
def test_lengths_that_look_like_anything_else_do_no_harm(
    request_: Generate | Embed, length: int
) -> None:
    (kept,) = packed([replace(request_, request_id="r" * length)])
    assert b"".join(pieces(kept)) == encode(kept)


def test_a_large_content_is_copied_once_and_never_again() -> None:
    shared, other = Text(LARGE), Text("y" + LARGE)
    choices = [Generate(str(number), prompt, 1.0) for number in range(3) for prompt in [shared]]
    kept = packed([*choices, Generate("3", other, 1.0)])
    contents: list[Any] = [each.prompt for each in kept]
    assert [each is contents[0] for each in contents] == [True, True, True, False]
    sizes = [len(msgspec.msgpack.encode(each)) for each in (shared, other)]
    assert packed_size(kept) == sum(sizes)
    assert packed_size(kept[:2]) == sizes[0]
    again: list[Any] = packed(kept)
    assert b"".join(pieces(again[0])) == encode(choices[0])
    content = pieces(replace(kept[0], emitted=(1, 2, 3)))[1]
    assert isinstance(content, memoryview)
    assert content.obj is memoryview(contents[0]).obj


@EVERY
@given(values(Chat))
def test_a_packed_chat_is_counted_as_it_is(chat: Chat) -> None:
    kept = packed_chat(chat)
    assert packed_chat_size(kept) == len(msgspec.msgpack.encode(chat))
    sent = Count("r", "m", "folder", chat, 1.0)
    assert encode(replace(sent, chat=kept)) == encode(sent)


@pytest.mark.parametrize(
    "request_", [Generate("r", Text(SECRET + "\ud800"), 1.0), Embed("r", (SECRET + "\udfff",))]
)
def test_what_cannot_be_packed_is_a_protocol_error_that_quotes_nothing(
    request_: Generate | Embed,
) -> None:
    with pytest.raises(ProtocolError) as caught:
        packed([request_])
    assert SECRET not in "".join(traceback.format_exception(caught.value))
