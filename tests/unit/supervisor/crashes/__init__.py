"""Tests of `supervisor.crashes`, one file a module."""
