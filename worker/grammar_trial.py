"""A trial in a process of its own: whether a grammar can be compiled in the time that is left for it.

llguidance decides whether several patterns that hold at once can be met at all, and no limit of it
bounds that: nine short patterns took 17 s, one more takes a minute. The call can't be interrupted,
and what it allocates is the worker's memory. So schemas that could ask for it are compiled by a
child first, which can be killed.
"""

from __future__ import annotations

import subprocess
import sys

SECONDS = 3.0
"""A trial that takes longer is refused; starting the child takes about 0.1 s of them."""

_CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))  # should nobody be left to kill it
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.buffer.read().decode())
"""


def survives(grammar: str, seconds: float = SECONDS) -> bool:
    """Whether llguidance comes to a verdict on the grammar, whatever it is. Blocks for `seconds`."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],
            input=grammar.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
