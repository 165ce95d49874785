"""The model that Bulkhead ships, so that a fresh machine can serve without a download.

``MODEL_DIR`` is what the SOURCE ``demo`` stands for. Importing this package is cheap: no mlx,
no numpy; the corpus and the trainer beside it are imported only to train the model again.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final[Path] = Path(__file__).resolve().parent / "model"
"""An ordinary MLX model folder: ``mlx_lm.load(str(MODEL_DIR))`` works, no remote code."""
