"""No network but loopback, for this process and all that it starts."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "BULKHEAD_AGENTS_INSIDE"
"""Environment: set in the process that has no network."""
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1


def leave(arguments: Sequence[str]) -> bool:
    """Go on as `python -m tests.agents ARGUMENTS` in a network namespace of its own, in which only
    loopback is up: does not return. False where the system has none to give."""
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None:
        return False
    for flags in ((["--net"] if os.geteuid() == 0 else []), ["--net", "--map-root-user"]):
        if not flags:
            continue
        tried = subprocess.run([unshare, *flags, "true"], capture_output=True, check=False)
        if tried.returncode == 0:
            command = [unshare, *flags, sys.executable, "-m", "tests.agents", *arguments]
            os.execve(unshare, command, {**os.environ, INSIDE: "1"})
    return False


def raise_loopback() -> None:
    """In a new namespace loopback is there, but down. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        name, flags = struct.unpack("16sh22x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", name, flags | _IFF_UP))


def is_shut() -> bool:
    """Whether there is no way out: no route to an address that is nobody's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # documentation's own; a datagram socket sends nothing
        except OSError:
            return True
    return False


def dead_proxies() -> dict[str, str]:
    """Settings that lead everything but loopback to a port where nobody listens, for systems
    without namespaces."""
    nowhere = "http://127.0.0.1:9"
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    local = "127.0.0.1,localhost,::1"
    return {name: nowhere for name in names} | {"no_proxy": local, "NO_PROXY": local}
