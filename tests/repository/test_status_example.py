"""The outputs of `status` and `models` in docs/cli.md are what the program prints."""

from __future__ import annotations

from tests.helpers.status_example import blocks
from tests.repository.test_docs import CLI, fences, section


def test_the_outputs_are_the_programs() -> None:
    page = section(CLI.read_text(), "## What `status` and `models` show")
    assert fences(page, "text") == blocks()
