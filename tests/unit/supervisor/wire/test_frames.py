"""supervisor.wire.frames: what may be sent where, and that it is plain MessagePack."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.wire.codec import HEADER, FrameDecoder, ProtocolError, encode
from supervisor.wire.frames import (
    Allowance,
    Call,
    Calling,
    Chat,
    ErrorFrame,
    Frame,
    Grammar,
    Lend,
    Logprob,
    Logprobs,
    Needs,
    Pattern,
    Recall,
    Repaid,
    Sampling,
    Schema,
    Text,
    Tokens,
)
from tests.helpers.frames import DIRECTIONS, EVERY, feed, frames_of, members, values


@pytest.mark.parametrize(
    ("direction", "frame"),
    [
        ("FromWorker", Needs(least=-1)),
        ("FromWorker", Needs(most=-1)),
        ("FromWorker", Needs(idle=-1)),
        ("FromWorker", Needs(parkable=-1)),
        ("FromWorker", Needs(heard=-1)),
        ("FromWorker", Repaid(-1)),
        ("ToWorker", Lend(-1)),
        ("ToWorker", Recall(1, -1)),
    ],
    ids=repr,
)
def test_less_than_nothing_is_neither_needed_nor_lent(direction: str, frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        feed(FrameDecoder(DIRECTIONS[direction]), [encode(frame)])


def test_every_frame_type_belongs_to_a_direction() -> None:
    inner = {
        Allowance,
        Chat,
        Text,
        Tokens,
        Sampling,
        Calling,
        Schema,
        Pattern,
        Grammar,
        Call,
        Logprob,
        Logprobs,
    }
    known = {kind for direction in DIRECTIONS.values() for kind in members(direction)}
    kinds = {*Frame.__subclasses__(), *ErrorFrame.__subclasses__()} - {ErrorFrame}
    assert known | inner == kinds


@pytest.mark.parametrize("name", DIRECTIONS)
@EVERY
@given(data=st.data())
def test_a_frame_of_another_connection_is_refused(name: str, data: st.DataObject) -> None:
    expected = members(DIRECTIONS[name])
    others = {kind for direction in DIRECTIONS.values() for kind in members(direction)}
    kind = data.draw(st.sampled_from(sorted(others - set(expected), key=lambda k: k.__name__)))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    with pytest.raises(ProtocolError):
        feed(decoder, [encode(data.draw(values(kind)))])


def plain(value: Any) -> Any:
    """The value as any reader of MessagePack has it: a frame is an array led by its tag."""
    if isinstance(value, Frame):
        fields = [getattr(value, name) for name in value.__struct_fields__]
        return [value.__struct_config__.tag, *map(plain, fields)]
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize("name", DIRECTIONS)
@EVERY
@given(data=st.data())
def test_another_librarys_reader_understands_every_frame(name: str, data: st.DataObject) -> None:
    """No extension type, and nothing else that is msgspec's own."""
    frame = data.draw(frames_of(DIRECTIONS[name]))
    assert msgpack.unpackb(encode(frame)[HEADER.size :]) == plain(frame)


@pytest.mark.parametrize("name", DIRECTIONS)
@EVERY
@given(data=st.data())
def test_what_another_librarys_writer_makes_is_understood(name: str, data: st.DataObject) -> None:
    frame = data.draw(frames_of(DIRECTIONS[name]))
    body = msgpack.packb(plain(frame))
    decoder: FrameDecoder[Frame] = FrameDecoder(DIRECTIONS[name])
    assert feed(decoder, [HEADER.pack(len(body)) + body]) == [frame]
