"""`bulkhead selftest`: what happens to requests when workers die, shown on this very machine.

A private instance serves the demo model; each fault is injected into a worker that has several
streams, and a table tells what became of them. The instance has a state directory of its own, which
is removed, and a port of its own; nothing else on the machine is touched.
"""
