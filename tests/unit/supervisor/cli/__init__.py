"""Tests of `supervisor.cli`, one file a module."""
