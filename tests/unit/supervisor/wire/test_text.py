"""supervisor.wire.text: bytes of file names that are no text, in reports and messages."""

from __future__ import annotations

import errno
import os
from typing import Any

import msgspec
import pytest

from supervisor.wire import control_frames, frames
from supervisor.wire.codec import FrameDecoder, encode
from supervisor.wire.text import all_as_utf8, as_utf8, reason, to_json

LATIN = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\xe9"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "permission denied"),
        (PermissionError(errno.EACCES, "it belongs to others"), "it belongs to others"),
        (OSError(errno.ENOSPC, "No space left on device", "/A/B"), "no space left on device"),
        (OSError(5, "RPC struct is bad"), "RPC struct is bad"),
        (OSError("/Users/Me is odd"), "/Users/Me is odd"),
        (ValueError("Embedded null in /Users/Me"), "embedded null in /Users/Me"),
        (ValueError(), ""),
    ],
)
def test_the_systems_words_stand_inside_a_sentence(error: Exception, said: str) -> None:
    assert reason(error) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 🦙", "café 🦙"),
        ("", ""),
        (LATIN, SHOWN),
        ("é" + LATIN, "é" + SHOWN),
        ("\ud800" + LATIN, "\\ud800caf\\udce9"),
    ],
)
def test_what_is_no_utf8_is_shown_as_bytes(text: str, shown: str) -> None:
    assert as_utf8(text) == shown
    shown.encode()


def test_text_without_any_is_the_same_object() -> None:
    text = "model-00001-of-00002.safetensors"
    assert as_utf8(text) is text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({LATIN: [LATIN, 1, None]}, {SHOWN: [SHOWN, 1, None]}),
        ((1.5, (LATIN,)), [1.5, [SHOWN]]),
        ({"reason": "plain"}, {"reason": "plain"}),
    ],
)
def test_a_report_is_never_refused_for_what_it_says(value: Any, shown: Any) -> None:
    assert msgspec.json.decode(to_json(value)) == shown
    assert msgspec.json.decode(to_json(all_as_utf8(value))) == shown


@pytest.mark.parametrize(
    ("union", "frame", "field"),
    [
        (frames.FromWorker, frames.LoadFailed(LATIN), "reason"),
        (
            control_frames.ToGateway,
            control_frames.Refused("model_load_failed", LATIN, None, None),
            "message",
        ),
        (
            control_frames.ToGateway,
            control_frames.Died("worker_crashed", LATIN, None, None, False),
            "message",
        ),
        (control_frames.ToSupervisor, control_frames.WorkerFault(LATIN), "reason"),
        (control_frames.ToSupervisor, control_frames.Acquire("r", LATIN, 1.0), "model"),
    ],
)
def test_a_message_is_sent_whatever_it_says(union: Any, frame: frames.Frame, field: str) -> None:
    decoder: FrameDecoder[frames.Frame] = FrameDecoder(union)
    (received,) = decoder.feed(encode(frame))
    assert getattr(received, field) == SHOWN
