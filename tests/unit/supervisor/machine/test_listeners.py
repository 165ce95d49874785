"""supervisor.machine.listeners."""

from __future__ import annotations

import os
import socket

from supervisor.machine.listeners import who_listens


def test_who_listens_is_named_and_who_is_connected_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = who_listens(port)
        assert told is not None
        assert told.endswith(f"(pid {os.getpid()})")
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert who_listens(client.getsockname()[1]) is None
    assert who_listens(port) is None
