"""How sizes are shown to people."""

from __future__ import annotations


def gigabytes(size: float) -> str:
    """`"1.5 GB"`; below 0.1 GB in MB, since a need of "0.0 GB" explains nothing."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
