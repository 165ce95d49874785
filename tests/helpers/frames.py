"""Frames of any kind with any content, for properties that hold for all of them."""

from __future__ import annotations

import functools
import typing
from itertools import pairwise
from types import UnionType
from typing import Any, Literal, TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from supervisor.wire import control_frames, frames
from supervisor.wire.codec import HEADER, FrameDecoder, encode
from supervisor.wire.frames import Frame

DIRECTIONS: dict[str, Any] = {
    "ToSupervisor": control_frames.ToSupervisor,
    "ToGateway": control_frames.ToGateway,
    "ToWorker": frames.ToWorker,
    "FromWorker": frames.FromWorker,
    "ToEngine": frames.ToEngine,
    "FromEngine": frames.FromEngine,
    "ToCounter": frames.ToCounter,
    "FromCounter": frames.FromCounter,
}
F = TypeVar("F", bound=Frame)


def as_received(frame: F) -> F:
    """What the worker gets of a request that may be packed."""
    (received,) = FrameDecoder[F](frames.ToEngine).feed(encode(frame))
    return received


EVERY = settings(deadline=None, max_examples=50)


def members(direction: Any) -> tuple[type[Frame], ...]:
    return typing.get_args(direction) or (direction,)


integers = st.integers(-(2**63), 2**63 - 1)
scalars = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | st.text()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: integers,
    frames.Bytes: st.integers(0, 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(),
    type(None): st.none(),
    Any: anything,
}


@functools.cache
def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    if hint in PLAIN:
        return PLAIN[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is UnionType or origin is typing.Union:
        return st.one_of([values(argument) for argument in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1] is not ...:
        return st.tuples(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=4)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=4)
    hints = typing.get_type_hints(hint, include_extras=True)
    return st.builds(hint, **{name: values(hints[name]) for name in hint.__struct_fields__})


@functools.cache
def frames_of(direction: Any) -> st.SearchStrategy[Frame]:
    return st.one_of([values(kind) for kind in members(direction)])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in chunks, cut at these places (modulo its length)."""
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(ends)]


def feed(decoder: FrameDecoder[Frame], chunks: list[bytes]) -> list[Frame]:
    return [frame for chunk in chunks for frame in decoder.feed(chunk)]


def raw(body: Any) -> bytes:
    """A well-framed message of any content."""
    data = msgspec.msgpack.encode(body)
    return HEADER.pack(len(data)) + data
