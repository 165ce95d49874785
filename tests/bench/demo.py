"""Decode speed of the demo model on one CPU core: ``python -m tests.bench.demo``.

Prints tokens per second of five runs and their median; exits 1 below 500. Where the system can
bind a process to one core (Linux), it is bound before mlx starts its threads, and a second is one
of that core's time, so a busy neighbour does not count; the wall clock's rate is printed beside.
"""

import os
import statistics
import sys
import time
from typing import Any, Final, NamedTuple

FLOOR: Final = 500.0
RUNS: Final = 5
TOKENS: Final = 400


class Rate(NamedTuple):
    """Tokens per second of one run."""

    core: float
    wall: float


def one_core() -> int | None:
    """Bind this process to one core and return it; None where the system can't."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def rates() -> list[Rate]:
    """Greedy runs past end tokens, without the prompt's time, with a worker's caches."""
    from worker.engine import mlx_lm_compat

    mlx_lm_compat.import_mlx_lm()
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from worker.demo import MODEL_DIR

    mx.set_default_device(mx.Device(mx.cpu))
    model, tokenizer, _ = mlx_lm_compat.load_lazily(str(MODEL_DIR))
    question = [{"role": "user", "content": "Tell me a story."}]
    inner: Any = tokenizer.inner
    prompt = mx.array(
        inner.apply_chat_template(
            question, add_generation_prompt=True, enable_thinking=False, return_dict=False
        )
    )
    out: list[Rate] = []
    for _ in range(RUNS + 1):
        cache = mlx_lm_compat.make_prompt_cache(model)
        steps = generate_step(prompt, model, max_tokens=TOKENS, prompt_cache=cache)
        next(steps)
        wall, core = time.perf_counter(), time.process_time()
        count = sum(1 for _ in steps)
        out.append(Rate(count / (time.process_time() - core), count / (time.perf_counter() - wall)))
    return out[1:]  # the first run warms up


def main() -> int:
    core = one_core()
    runs = rates()
    wall = [rate.wall for rate in runs]
    counted = wall if core is None else [rate.core for rate in runs]
    median = statistics.median(counted)
    where = "all cores" if core is None else f"core {core}"
    print(f"demo on {where}: {', '.join(f'{rate:.0f}' for rate in counted)} tok/s")
    print(f"median {median:.0f} tok/s ({statistics.median(wall):.0f} by the wall clock)")
    print(f"floor {FLOOR:.0f} tok/s: {'met' if median >= FLOOR else 'MISSED'}")
    return 0 if median >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
