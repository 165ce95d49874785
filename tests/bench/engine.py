"""The bare engine: mlx-lm's `BatchGenerator` with streaming detokenizers and nothing around it.

`python -m tests.bench.engine FOLDER` answers one JSON line with another, so that it has a process,
and a GIL, of its own. `Engine` is its owner's side.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench import harness

CONCURRENCY = 64
"""Sequences decoded at once: the most that a worker does unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Run:
    """One batch. Seconds are counted from the moment before the prompts are rendered and tokenized
    (`prepared` is when that is over) to each stream's first decoded token, and to the last. `gaps`
    are those between the tokens of a stream, of all streams."""

    seconds: float
    prepared: float
    first: list[float]
    gaps: list[float]
    prompt_tokens: list[int]
    completion_tokens: list[int]
    texts: list[str]


class Engine:
    """A bare engine in a child process. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.engine", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=harness.ROOT,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        harness.end(self._process)

    def run(self, prompts: Sequence[str], max_tokens: int, seconds: float) -> Run:
        """Generate for all prompts together, each `max_tokens` long. `seconds` is the deadline."""
        assert self._process.stdin is not None
        task = json.dumps({"prompts": list(prompts), "max_tokens": max_tokens})
        self._process.stdin.write(task.encode() + b"\n")
        self._process.stdin.flush()
        return Run(**json.loads(harness.read_line(self._process, seconds)))


def main(folder: str) -> None:
    """Answer tasks until stdin ends."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load

    loaded: Any = load(folder)
    model, tokenizer = loaded[0], loaded[1]
    # Greedy by default, one sampler for all rows; without stop tokens every stream has full length.
    generator: Any = BatchGenerator(model, completion_batch_size=CONCURRENCY)
    for line in sys.stdin:
        print(json.dumps(_generate(generator, tokenizer, **json.loads(line))), flush=True)


def _generate(
    generator: Any, tokenizer: Any, prompts: list[str], max_tokens: int
) -> dict[str, Any]:
    begun = time.perf_counter()
    tokens = [
        tokenizer.encode(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
            ),
            add_special_tokens=False,
        )
        for prompt in prompts
    ]
    prepared = time.perf_counter()
    uids = generator.insert(tokens, max_tokens=[max_tokens] * len(tokens))
    detokenizers = {uid: tokenizer.detokenizer for uid in uids}
    ids: dict[int, list[int]] = {uid: [] for uid in uids}
    times: dict[int, list[float]] = {uid: [] for uid in uids}
    counts = dict.fromkeys(uids, 0)
    left = len(uids)
    while left:
        _, responses = generator.next()
        for response in responses:
            uid, detokenizer = response.uid, detokenizers[response.uid]
            detokenizer.add_token(response.token)
            if response.finish_reason is not None:
                detokenizer.finalize()
                left -= 1
            _ = detokenizer.last_segment  # which a server would send
            ids[uid].append(response.token)
            counts[uid] += 1
            times[uid].append(time.perf_counter() - begun)
    return {
        "seconds": time.perf_counter() - begun,
        "prepared": prepared - begun,
        "first": [times[uid][0] for uid in uids],
        "gaps": [after - before for each in times.values() for before, after in pairwise(each)],
        "prompt_tokens": [len(prompt) for prompt in tokens],
        "completion_tokens": [counts[uid] for uid in uids],
        # Not the detokenizers', which drop a first space and have no NUL.
        "texts": [tokenizer.decode(ids[uid]) for uid in uids],
    }


if __name__ == "__main__":
    main(sys.argv[1])
