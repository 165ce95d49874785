"""For all tests."""

from __future__ import annotations

from tests.staging import patience, play
from worker.loading import import_mlx_lm

__all__ = ["patience", "play"]

# mlx-lm lowers this process's limit of open files when it is imported, and with it that of every
# server that a later test starts. Imported here first, as a worker imports it, it does not.
import_mlx_lm()
