"""Tests of `supervisor.state`, one file a module."""
