"""Greedy output of our batches equals that of mlx_lm.generate, on several architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.property.greedy import ARCHITECTURES, differing


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_output_equals_mlx_lms(architecture: str, tmp_path: Path) -> None:
    """The short form of `python -m tests.property.greedy`."""
    assert differing(architecture, tmp_path / "model", 6) == []
