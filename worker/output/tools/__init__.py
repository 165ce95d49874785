"""The forms in which models write tool calls, and how text in them becomes calls."""
