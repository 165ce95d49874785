"""Who listens on a port of this machine, as far as one may know."""

from __future__ import annotations

import psutil


def who_listens(port: int) -> str | None:
    """Such as "python3 (pid 123)"; None where nobody can be seen to, since other users' processes
    often hide it. Blocks on all processes; never raises."""
    try:
        for process in psutil.process_iter(["name"]):
            if _listens(process, port):
                return f"{process.info['name'] or 'a process'} (pid {process.pid})"
    except (psutil.Error, OSError):
        return None
    return None


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(
            each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
            for each in process.net_connections("tcp")
        )
    except (psutil.Error, OSError):
        return False  # another user's, or gone
