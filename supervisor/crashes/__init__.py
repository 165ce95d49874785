"""Why a process died: diagnosis, crash reports, and what of its output they may show."""
