"""How models write tool calls, and how text in those forms becomes calls."""

from worker.output.tools.call_forms import ForcedForm, forced_form

__all__ = ["ForcedForm", "forced_form"]
