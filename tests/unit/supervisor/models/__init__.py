"""Tests of `supervisor.models`, one file a module."""
