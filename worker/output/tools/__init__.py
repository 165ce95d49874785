"""How models write tool calls, and how text in those forms becomes calls."""

from worker.output.tools.forms import Forced, forced_form

__all__ = ["Forced", "forced_form"]
