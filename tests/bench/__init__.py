"""Benchmarks, and short forms of them that check that they run."""
