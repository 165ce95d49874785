"""Why a grammar's text is not taken."""

from __future__ import annotations


class GrammarFault(Exception):
    """`words` complete "This grammar can't be enforced: …", without what the client wrote but for
    names of rules. `broken`: no server could; else it is beyond this one."""

    def __init__(self, words: str, *, broken: bool = False) -> None:
        super().__init__(words)
        self.words = words
        self.broken = broken
