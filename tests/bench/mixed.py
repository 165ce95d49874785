"""Tokens per second of a batch of mixed rows against one of plain rows, in process.

`python -m tests.bench.mixed`. Sixteen rows each: plain ones are greedy; of the mixed ones a third
are bound to a JSON schema, a third seeded (temperature 0.8, top_p 0.95), the rest plain. The two
take turns, and the bar is on the median of the rounds' own ratios. Two vocabularies: the test
models' own, whose steps are so short that every call counts, and one of a usual size, where what is
done per token of the vocabulary counts.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from supervisor.wire.frames import Generate, Schema, Tokens
from tests.bench import harness
from tests.bench.answers import Failed
from tests.helpers.tiny_llama import make_model

ROWS = 16
BAR = 0.85
_SCHEMA = json.dumps(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "number": {"type": "integer"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["name", "number", "tags"],
            "additionalProperties": False,
        },
        "minItems": 500,
    }
)
"""An answer that is longer than any run."""


def bench(report: harness.Report, folder: Path, short: bool) -> None:
    rounds, lines = (3 if short else 7), []
    for name, words, steps in (("small", 0, 160), ("32k", 32000, 24)):
        if short:
            steps //= 2
        model = make_model(folder / name, "llama", words=words)
        pairs = _measure(model, rounds, steps)
        rates = [harness.median([pair[i] for pair in pairs]) for i in (0, 1)]
        ratio = harness.median([mixed / plain for plain, mixed in pairs])
        lines.append([name, *(f"{rate:.0f}" for rate in rates), f"{ratio:.2f}"])
        report.figures[name] = {
            "plain_tokens_per_second": rates[0],
            "mixed_tokens_per_second": rates[1],
            "ratio": ratio,
        }
        claim = f"{ROWS} mixed rows, vocabulary {name}: {ratio:.2f} of {ROWS} plain rows, >= {BAR}"
        report.bar(ratio >= BAR, claim, speed=True)
    print(harness.table(["vocabulary", "plain tok/s", "mixed tok/s", "mixed/plain"], lines))


def _measure(folder: Path, rounds: int, steps: int) -> list[tuple[float, float]]:
    """(plain, mixed) tokens per second of each round, after one round that is not counted."""
    from mlx_lm import utils

    from worker.engine.decoding import BatchDecoder
    from worker.engine.mlx_lm_compat import model_tokenizer
    from worker.engine.mlx_lm_generator import Batches
    from worker.engine.rows import BatchRow
    from worker.engine.sampling import Parameters
    from worker.engine.sequences import Sequences
    from worker.grammar.compile import ConstraintCompiler
    from worker.grammar.vocabulary import fill_masks

    load: Any = utils.load
    model, tokenizer, config = load(str(folder), return_config=True)
    grammars = ConstraintCompiler(model_tokenizer(tokenizer), config["vocab_size"])
    decoder = BatchDecoder(fill_masks, tuple(tokenizer.eos_token_ids))
    sequences = Sequences(Batches(model, decoder, eos=()))
    request = Generate("bench", Tokens((1,)), 1.0, structure=Schema(_SCHEMA))

    def plain() -> list[BatchRow]:
        return [BatchRow(Parameters()) for _ in range(ROWS)]

    def mixed() -> list[BatchRow]:
        kinds: list[Callable[[int], BatchRow]] = [
            lambda i: BatchRow(Parameters(), constraint=grammars.compile(request)),
            lambda i: BatchRow(Parameters(seed=i, temperature=0.8, top_p=0.95)),
            lambda i: BatchRow(Parameters()),
        ]
        return [kinds[i % 3](i) for i in range(ROWS)]

    pairs = []
    for _ in range(rounds + 1):
        pairs.append((_rate(sequences, plain(), steps), _rate(sequences, mixed(), steps)))
        gc.collect()
    return pairs[1:]


def _rate(sequences: Any, rows: Sequence[Any], steps: int) -> float:
    """Tokens per second from the first token on. Every row decodes in every step."""
    uids = [
        sequences.insert([33 + i, 65, 66, 67, 68, 69], row, steps) for i, row in enumerate(rows)
    ]
    sequences.prefill({uid: sequences.left(uid) for uid in uids})
    sequences.start(uids)
    sequences.decode()
    begun, tokens = time.perf_counter(), 0
    while responses := sequences.decode():
        if len(responses) != len(rows):
            raise Failed(f"{len(responses)} of {len(rows)} rows in one step")
        tokens += len(responses)
    return tokens / (time.perf_counter() - begun)


if __name__ == "__main__":
    harness.run("mixed", (__doc__ or "").partition("\n")[0], bench)
