"""Tests of `supervisor.machine`, one file a module."""
