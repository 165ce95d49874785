"""The `bulkhead` command, for people."""
