"""How sizes are shown to people."""

from __future__ import annotations


def gigabytes(size: float) -> str:
    """`"1.5 GB"`; below 0.1 GB in MB and below 1 MB in KB, since a need of "0.0 GB" explains
    nothing."""
    if size >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 1e6 or not size else f"{size / 1e3:.0f} KB"
