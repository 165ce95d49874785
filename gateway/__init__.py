"""The HTTP server: a process of its own without weights, between clients and the workers."""
