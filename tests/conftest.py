"""For all tests."""

from __future__ import annotations

from worker.loading import import_mlx_lm

# mlx-lm lowers this process's limit of open files when it is imported, and with it that of every
# server that a later test starts. Imported here first, as a worker imports it, it does not.
import_mlx_lm()
