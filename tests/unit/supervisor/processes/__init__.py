"""Tests of `supervisor.processes`, one file a module."""
