"""What a recovery can't do without: `python -m tests.bench.bare FOLDER`, in a process of its own.

It imports mlx-lm and says so on stdout. A line of stdin is a JSON list of lengths: the model is
loaded, and as many prompts of those lengths are prefilled, one after another. It prints two numbers
of seconds, and ends.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import mlx.core as mx
import mlx_lm.generate
import mlx_lm.utils
from mlx_lm.models.cache import make_prompt_cache

from worker.engine.slices import PREFILL_STEP


def main() -> None:
    print("ready", flush=True)
    lengths = json.loads(sys.stdin.readline())
    begun = time.perf_counter()
    loaded: Any = mlx_lm.utils.load(sys.argv[1])
    model = loaded[0]
    ready = time.perf_counter()
    for length in lengths:
        cache: Any = make_prompt_cache(model)
        # As mlx-lm does it: logits of the last token alone.
        for start in range(0, length - 1, PREFILL_STEP):
            model(mx.full((1, min(PREFILL_STEP, length - 1 - start)), 7), cache=cache)
            mx.eval([layer.state for layer in cache])
        logits = model(mx.full((1, 1), 7), cache=cache)
        mx.eval(mx.argmax(logits[:, -1], axis=-1))
    print(json.dumps([ready - begun, time.perf_counter() - ready]), flush=True)


if __name__ == "__main__":
    main()
