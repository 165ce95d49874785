"""Trains the demo model on the CPU:
``python -m worker.demo.trainer.train [--out DIR] [--minutes N]``.

Needs numpy, tokenizers and safetensors, all of which mlx-lm brings along. Two threads share each
batch; with the same step count and numpy the result is the same every time.
"""

import argparse
import os
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from worker.demo import MODEL_DIR
from worker.demo.trainer.chat import CONTEXT_WEIGHT, DOCUMENT_END, render
from worker.demo.trainer.corpus import SEED, SIZE, conversations
from worker.demo.trainer.network import Floats, Ints, Shape, Weights, gradients, initial
from worker.demo.trainer.tokenizer import save, train, write_json


class BlockShape(NamedTuple):
    length: int
    rows: int


STEPS: Final = 2800
THREADS: Final = 2
SHORT: Final = BlockShape(256, 4)
MEDIUM: Final = BlockShape(512, 1)
LONG: Final = BlockShape(1024, 1)
LONGEST: Final = BlockShape(1536, 1)
"""Each thread's share of a step: short documents always, then medium ones, every fourth step long
ones instead; the last steps see the longest. Attention makes short rows the cheapest tokens."""
MUON_RATE: Final = 0.02
ADAM_RATE: Final = 0.004


class Block(NamedTuple):
    """Rows of one length, (B, T + 1) each: tokens, their loss weights, their documents' numbers."""

    tokens: Ints
    weights: Floats
    documents: Ints

    @classmethod
    def empty(cls, rows: int, columns: int) -> "Block":
        shape = rows, columns
        return cls(
            np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        )


class TrainingText:
    """The tokenized corpus: per document, token ids and the loss weight of each."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.documents: list[tuple[Ints, Floats]] = []
        [end] = tokenizer.encode(DOCUMENT_END).ids
        for conversation in conversations(size):
            segments = render(conversation)
            encoded = tokenizer.encode_batch_fast([s.text for s in segments])
            ids = [token for e in encoded for token in e.ids]
            weights = [s.weight for s, e in zip(segments, encoded, strict=True) for _ in e.ids]
            ids.append(end)
            weights.append(CONTEXT_WEIGHT)
            self.documents.append((np.array(ids, np.int32), np.array(weights, np.float32)))

    def blocks(self, seed: int, shortest: int, longest: int) -> Generator[Block, BlockShape, None]:
        """Endless blocks of documents in a range of lengths (tokens); send the wanted shapes."""
        rng = np.random.default_rng(seed)
        mine = [d for d in self.documents if shortest < len(d[0]) <= longest]
        queue: list[int] = []
        near: list[tuple[Ints, Floats]] = []
        length, rows = yield Block.empty(0, 0)
        while True:
            block = Block.empty(rows, length + 1)
            for row in range(rows):
                have, number = 0, 0
                while have <= length:
                    while len(near) < min(64, len(mine)):
                        queue = queue or list(rng.permutation(len(mine)))
                        near.append(mine[queue.pop()])
                    # any document opens a row, cut if need be; then the longest that fits
                    left = length + 1 - have
                    fits = [i for i, (ids, _) in enumerate(near) if len(ids) <= left]
                    if have and not fits:
                        break
                    any_one = int(rng.integers(len(near)))
                    best = max(fits, key=lambda i: len(near[i][0])) if have else any_one
                    ids, weights = near.pop(best)
                    span = slice(have, have + len(ids[:left]))
                    number += 1
                    block.tokens[row, span] = ids[:left]
                    block.weights[row, span] = weights[:left]
                    block.documents[row, span] = number
                    have += len(ids)
            length, rows = yield block


class Optimizer:
    """Muon for the matrices of the layers, Adam for embeddings and norms."""

    def __init__(self, weights: Weights) -> None:
        self.first = {k: np.zeros_like(v) for k, v in weights.items()}
        self.second = {k: np.zeros_like(v) for k, v in weights.items()}
        self.steps = 0

    def step(self, weights: Weights, grads: Weights, rate: float, pool: ThreadPoolExecutor) -> None:
        """Change ``weights`` in place; ``rate`` scales both learning rates."""
        self.steps += 1
        list(pool.map(lambda name: self._change(name, weights[name], grads[name], rate), grads))

    def _change(self, name: str, weight: Floats, grad: Floats, rate: float) -> None:
        first, second = self.first[name], self.second[name]
        if name.endswith("_proj.weight"):
            first += 0.05 * (grad - first)
            update = orthogonal(0.05 * grad + 0.95 * first)
            gain = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
            weight *= np.float32(1.0 - 0.01 * MUON_RATE * rate)
            weight -= np.float32(MUON_RATE * rate * gain) * update
            return
        first += 0.1 * (grad - first)
        second += 0.02 * (grad * grad - second)
        mean = first / (1.0 - 0.9**self.steps)
        spread = np.sqrt(second / (1.0 - 0.98**self.steps)) + 1e-8
        weight -= (ADAM_RATE * rate * mean / spread).astype(np.float32)


def orthogonal(matrix: Floats) -> Floats:
    """The nearest orthogonal matrix, about: five Newton-Schulz steps (Muon, K. Jordan 2024)."""
    x: Floats = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + np.float32(1e-7))
    for _ in range(5):
        square = x @ x.T
        mixed = np.float32(-4.7750) * square + np.float32(2.0315) * square @ square
        x = np.float32(3.4445) * x + mixed @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def fit(text: TrainingText, shape: Shape, steps: int, seconds: float) -> Weights:
    """Train; a run that would last longer than ``seconds`` anneals sooner instead."""
    weights = initial(shape, SEED)
    optimizer = Optimizer(weights)
    short = text.blocks(SEED, 0, SHORT.length)
    medium = text.blocks(SEED + 1, SHORT.length, MEDIUM.length)
    long = text.blocks(SEED + 2, MEDIUM.length, sys.maxsize)
    for source in (short, medium, long):
        next(source)

    def draw(step: int, done: float) -> list[Block]:
        blocks: list[Block] = []
        for _ in range(THREADS):
            blocks.append(short.send(SHORT))
            if step % 4 < 3:
                blocks.append(medium.send(MEDIUM))
            else:
                blocks.append(long.send(LONG if done < 0.85 else LONGEST))
        return blocks

    began = time.monotonic()
    blocks = draw(0, 0.0)
    done, step, smooth, tokens = 0.0, 0, 0.0, 0
    with ThreadPoolExecutor(THREADS) as pool:
        while done < 1.0:
            size = sum(b.tokens.size for b in blocks)
            whole = np.float32(sum(b.weights[:, 1:].sum() for b in blocks))
            jobs = [
                pool.submit(
                    gradients, weights, b.tokens, b.documents, b.weights[:, 1:] / whole, shape
                )
                for b in sorted(blocks, key=lambda b: -b.tokens.shape[1])
            ]
            blocks = draw(step + 1, done)  # the next step's, while the threads work
            loss, grads = jobs[0].result()
            for job in jobs[1:]:
                more, parts = job.result()
                loss += more
                for name, grad in grads.items():
                    grad += parts[name]
            rate = min(1.0, (step + 1) / 50, (1.0 - done) / 0.6)
            optimizer.step(weights, grads, rate, pool)
            step += 1
            tokens += size
            smooth = loss if step == 1 else 0.98 * smooth + 0.02 * loss
            elapsed = time.monotonic() - began
            done = max(step / steps, elapsed / seconds)
            if step % 50 == 0 or done >= 1.0:
                speed = tokens / elapsed
                print(
                    f"step {step} loss {smooth:.4f} {elapsed:.0f} s {speed:.0f} tok/s", flush=True
                )
    return weights


def restart_with_single_threaded_blas() -> None:
    """Each of our threads is one core; the libraries read this when numpy loads them."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    if all(name in os.environ for name in names):
        return
    environment = os.environ | {name: os.environ.get(name, "1") for name in names}
    command = [sys.executable, "-m", "worker.demo.trainer.train", *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker.demo.trainer.train", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder to write")
    parser.add_argument("--minutes", type=float, default=19.0, help="limit for the whole run")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--size", type=int, default=SIZE, help="conversations in the corpus")
    options = parser.parse_args(arguments)
    began, cpu = time.monotonic(), time.process_time()
    shape = Shape()
    sample = (s.text for c in conversations(min(options.size, 20_000)) for s in render(c))
    tokenizer = train(sample, shape.vocab)
    text = TrainingText(tokenizer, options.size)
    count = sum(len(ids) for ids, _ in text.documents)
    print(f"{count} tokens in {options.size} conversations, {time.monotonic() - began:.0f} s")
    left = options.minutes * 60 - (time.monotonic() - began)
    weights = fit(text, shape, options.steps, left)
    options.out.mkdir(parents=True, exist_ok=True)
    save(tokenizer, options.out, shape.positions)
    write_json(options.out / "config.json", shape.config())
    save_file(weights, options.out / "model.safetensors", metadata={"format": "mlx"})
    (options.out / "model.safetensors").chmod(0o644)
    minutes, used = (time.monotonic() - began) / 60, (time.process_time() - cpu) / 60
    parameters = sum(w.size for w in weights.values())
    print(f"{parameters} parameters, {minutes:.1f} min, {used:.1f} CPU min, in {options.out}")
    return 0


if __name__ == "__main__":
    restart_with_single_threaded_blas()
    sys.exit(main())
