"""Tests of one module each, in packages like the code's."""
