"""Greedy output of our batches against that of mlx_lm.generate, on several architectures.

python -m tests.property.greedy --prompts 200
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supervisor.wire.frames import FromEngine, Generate, Load, Sampling, Token, Tokens
from tests.helpers.tiny_llama import make_model
from worker.engine.batch import BatchEngine
from worker.engine.slices import PREFILL_STEP
from worker.engine.thread import FINAL_FRAMES, Job

TOKENS = 28
PLACES = 12
ARCHITECTURES = ["llama", "gemma3_text", "qwen3_moe", "granitemoehybrid", "lfm2"]


def make_prompts(seed: int, count: int) -> list[list[int]]:
    """Bytes of Unicode text, a byte a token; most are short, some longer than a prefill chunk, many
    longer than a sliding window, and of many one ends with a chunk."""
    chance = random.Random(seed)
    lengths = [1, 2, PREFILL_STEP + 1]
    if count > 20:
        lengths += [PREFILL_STEP, 2 * PREFILL_STEP + 70]
    lengths += [chance.randrange(3, 120) for _ in range(count - len(lengths))]
    letters = "abc xyz 0189 {}\n äöüß λπ 模型日本 😀🎉"
    prompts = []
    for length in lengths:
        text = "".join(chance.choice(letters) for _ in range(length))
        prompts.append(list(text.encode()[:length]))
    return prompts


class Collector:
    """A sink that keeps the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def send(self, frames: Sequence[FromEngine]) -> None:
        self.tokens += [frame.id for frame in frames if isinstance(frame, Token)]
        self.ended |= isinstance(frames[-1], FINAL_FRAMES)

    def close(self) -> None:
        """Nothing to close."""


def batched(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of the engine that workers run, all prompts given to it at once."""
    # By a clock that stands, slices stay as they are before speeds are known, on any machine.
    engine = BatchEngine(lambda: 0.0)
    engine.warm_up()
    # Fewer places than prompts: rows leave and others join all the time.
    engine.load(Load("m", 1, str(folder), "", PLACES, 0), lambda done, total: None)
    sinks = []
    for number, prompt in enumerate(prompts):
        request = Generate(
            f"r{number}",
            Tokens(tuple(prompt)),
            1.0,
            max_tokens=TOKENS,
            sampling=Sampling(temperature=0.0),
        )
        sinks.append(sink := Collector())
        engine.insert(Job(request, engine.prepare(request), sink))
    widest = 0
    while engine.busy:
        outputs = engine.step()
        widest = max(widest, len(outputs))
        for job, frames in outputs:
            job.sink.send(frames)
    engine.close()
    assert widest >= min(PLACES, len(prompts)) / 2
    assert all(sink.ended for sink in sinks)
    return [sink.tokens for sink in sinks]


def differing(architecture: str, folder: Path, count: int) -> list[int]:
    """The prompts, of `count`, whose output differs; asserts that the outputs can tell."""
    from mlx_lm import stream_generate, utils

    load: Any = utils.load
    model, tokenizer = load(str(make_model(folder, architecture, seed=3)))
    prompts = make_prompts(len(architecture), count)
    expected = [
        [response.token for response in stream_generate(model, tokenizer, prompt, TOKENS)]
        for prompt in prompts
    ]
    assert len({tuple(tokens) for tokens in expected}) >= 0.9 * count
    full = [tokens for tokens in expected if len(tokens) == TOKENS]
    assert len(full) > count / 2
    assert sum(len(set(tokens)) for tokens in full) / len(full) > TOKENS / 2
    # The end of sequence is told with a token only where text was held back until then.
    ends = tokenizer.eos_token_ids
    ours, expected = (
        [[token for token in tokens if token not in ends] for tokens in outputs]
        for outputs in (batched(folder, prompts), expected)
    )
    return [
        at for at, (mine, theirs) in enumerate(zip(ours, expected, strict=True)) if mine != theirs
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    count = parser.parse_args().prompts
    wrong = 0
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            found = differing(architecture, Path(folder) / "model", count)
        wrong += len(found)
        print(f"{architecture}: {count - len(found)} of {count} equal", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
