"""What a server's access log tells of its requests."""

from __future__ import annotations

from tests.helpers.serving import Server

Line = dict[str, str]
"""Names and values, as docs/operations.md lists them. Values with spaces are cut."""


def requests(server: Server) -> list[Line]:
    """Those that have ended, in the order of their ends. A line follows its answer's end."""
    log = server.state / "logs" / "gateway.log"
    lines = log.read_text().splitlines() if log.exists() else []
    told = [line.partition(" client=")[2] for line in lines if " client=" in line]
    return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in told]


def answers(server: Server) -> list[Line]:
    """Those of the model among them."""
    return [line for line in requests(server) if "completion" in line]
