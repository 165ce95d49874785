"""supervisor.state.trouble: what fails again and again is told once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.state.trouble import Trouble


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_what_fails_is_told_once_and_that_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    trouble = Trouble("write X")
    trouble.worked()
    assert caplog.messages == []
    for _ in range(3):
        trouble.failed(os_error(errno.ENOSPC))
    trouble.failed(os_error(errno.EROFS))
    trouble.failed(OSError("in words alone"))
    trouble.worked()
    trouble.worked()
    trouble.failed(os_error(errno.ENOSPC))
    trouble.failed(os_error(errno.EROFS), Path("/a"))
    trouble.failed(os_error(errno.EROFS), Path("/b"))
    assert caplog.messages == [
        "cannot write X: No space left on device",
        "cannot write X: Read-only file system",
        "cannot write X: in words alone",
        "can again write X",
        "cannot write X: No space left on device",
        "cannot write X: /a: Read-only file system",
    ]
