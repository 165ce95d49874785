"""gateway.logs: everything goes to the file, access lines to the terminal, and nobody waits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.serving import DEADLINE

LINES = 5000
PROGRAM = f"""
import logging, sys
from gateway import logs
logs.set_up(sys.argv[1], int(sys.argv[2]))
logging.getLogger("bulkhead.gateway").info("serving")
for number in range({LINES}):
    logging.getLogger("bulkhead.access").info("request %d", number)
logging.getLogger("aiohttp.server").error("SECRET bytes")
print("done", flush=True)
sys.stdin.read()
"""


def test_a_terminal_that_is_halted_holds_nothing_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # nobody reads it until everything is logged
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writing],
        text=True,
    ) as process:
        os.close(writing)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        _, stderr = process.communicate("", timeout=DEADLINE)  # it ends although nobody reads
    with open(reading, encoding="utf-8") as terminal:
        shown = terminal.read()
    assert process.returncode == 0
    assert stderr == ""
    log = (tmp_path / "log").read_text()
    assert log.count(" request ") == LINES
    assert " INFO    serving\n" in log
    assert "aiohttp: notice" in log
    assert "SECRET" not in log + shown
    assert " request 0\n" in shown
    assert "serving" not in shown
