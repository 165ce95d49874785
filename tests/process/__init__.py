"""Tests of the server as users have it: real processes, asked over HTTP and by the commands."""
