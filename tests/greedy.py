"""Greedy output of our batches against that of mlx_lm.generate, on several architectures.

python -m tests.greedy --prompts 200
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.tiny import make_model
from worker.decoding import Decoder, Row, make_generator
from worker.sampling import Parameters

PREFILL_STEP = 512
TOKENS = 28
ARCHITECTURES = ["llama", "gemma3_text", "qwen3_moe", "granitemoehybrid", "lfm2"]


def make_prompts(seed: int, count: int) -> list[list[int]]:
    """Bytes of Unicode text, a byte a token; most are short, some longer than a prefill chunk, many
    longer than a sliding window, and one ends with a chunk."""
    chance = random.Random(seed)
    lengths = [1, 2, PREFILL_STEP, PREFILL_STEP + 1, 2 * PREFILL_STEP + 70]
    lengths += [chance.randrange(3, 120) for _ in range(count - len(lengths))]
    letters = "abc xyz 0189 {}\n äöüß λπ 模型日本 😀🎉"
    prompts = []
    for length in lengths:
        text = "".join(chance.choice(letters) for _ in range(length))
        prompts.append(list(text.encode()[:length]))
    return prompts


def batched(model: Any, prompts: list[list[int]], stops: Any) -> list[list[int]]:
    generator = make_generator(
        model,
        Decoder(),
        completion_batch_size=12,  # rows leave and others join all the time
        prefill_step_size=PREFILL_STEP,
        stop_tokens=[[token] for token in stops],
    )
    generator.close()
    uids = generator.insert(
        prompts, max_tokens=[TOKENS] * len(prompts), samplers=[Row(Parameters()) for _ in prompts]
    )
    outputs: dict[int, list[int]] = {uid: [] for uid in uids}
    running, widest = set(uids), 0
    while running:
        _, responses = generator.next()
        widest = max(widest, len(responses))
        for response in responses:
            outputs[response.uid].append(response.token)
            if response.finish_reason is not None:
                running.remove(response.uid)
    assert widest >= 8
    return [outputs[uid] for uid in uids]


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
    ours = batched(model, prompts, tokenizer.eos_token_ids)
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
