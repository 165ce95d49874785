"""Real agent programs and frameworks from npm and PyPI, through Bulkhead to a model that plays a
conversation: undisturbed, and with a SIGABRT for the worker in every turn.

`python -m tests.agents` runs all, `python -m tests.agents codex aider` some.
"""
