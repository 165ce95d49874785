"""Bulkhead's tests; docs/contributing.md says which are where."""
