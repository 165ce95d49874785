"""Tests of `supervisor.wire`, one file a module."""
