"""Where the gateway's log goes: a file, and access lines to the terminal as well."""

from __future__ import annotations

import logging
from pathlib import Path

from supervisor.log_handlers import Console, LineFormatter, LogFile


def set_up(path: str, terminal: int | None) -> None:
    """Log to the file at `path` and rotate it. What libraries print goes to stderr, a file too.

    `terminal` is the descriptor of what shows the access lines.
    """
    file = LogFile(Path(path))
    file.addFilter(_without_request_bytes)
    logging.basicConfig(level=logging.INFO, handlers=[file])
    if terminal is not None:
        console = Console(terminal)
        console.setFormatter(LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logging.getLogger("bulkhead.access").addHandler(console)


def _without_request_bytes(record: logging.LogRecord) -> bool:
    """aiohttp quotes the bytes of a malformed request, and those can be keys and prompts."""
    if record.name.startswith("aiohttp"):
        error = record.exc_info[1] if record.exc_info else None
        record.msg, record.args = f"aiohttp: {type(error).__name__ if error else 'notice'}", ()
        record.exc_info = record.exc_text = None
    return True
