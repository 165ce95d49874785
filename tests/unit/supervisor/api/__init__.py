"""Tests of `supervisor.api`, one file a module."""
