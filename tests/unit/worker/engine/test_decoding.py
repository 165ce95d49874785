"""worker.engine.decoding: rows of every kind decode in one batch, each as if it were alone."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.helpers.tiny_llama import make_model
from worker.engine import decoding
from worker.engine.decoding import BatchDecoder, Ints
from worker.engine.mlx_lm_generator import Batches
from worker.engine.rows import BatchPlan, BatchRow, TokenLogprobs
from worker.engine.sampling import Parameters
from worker.engine.sequences import Sequences

VOCABULARY = 300
"""Of the model; its tokenizer knows 257 tokens."""
KNOWN = 257
EOS = 256
TOKENS = 24
PROMPT = list(b"The quick brown fox")
SEEDED = Parameters(seed=5, temperature=0.9, top_p=0.95)
PENALISED = Parameters(presence_penalty=3.0, frequency_penalty=2.0)


class Toy:
    """A constraint: token t may be followed by those of t's own remainder by 7, plus one."""

    def __init__(self, *, dead_after: int = 10**9, binds_from: int = 0) -> None:
        self.pushed: list[int] = []
        self._dead_after = dead_after
        self._binds_from = binds_from

    @property
    def binds(self) -> bool:
        return len(self.pushed) >= self._binds_from

    def push(self, token: int) -> None:
        self.pushed.append(token)

    def allows(self, token: int) -> bool:
        if len(self.pushed) >= self._dead_after:
            return False
        return token % 7 == ((self.pushed[-1] + 1) % 7 if self.pushed else 0)


def fill(constraints: Sequence[Toy], words: int) -> Ints:
    bits = np.zeros((len(constraints), words * 32), dtype=np.uint8)
    for row, constraint in enumerate(constraints):
        for token in range(KNOWN - 1):
            bits[row, token] = constraint.allows(token)
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


DECODER = BatchDecoder(fill, (EOS,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlx_lm import utils

    folder = make_model(tmp_path_factory.mktemp("m") / "m", "llama", vocabulary=VOCABULARY, seed=2)
    load: Any = utils.load
    return load(str(folder))[0]


class Output:
    """What one row gave."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.finish = ""


def run(
    model: Any,
    rows: Sequence[BatchRow],
    *,
    prompts: Sequence[list[int]] | None = None,
    lengths: Sequence[int] | None = None,
    decoder: BatchDecoder = DECODER,
    stops: Sequence[int] = (),
) -> list[Output]:
    """Decode the rows, all together from their first token on."""
    sequences = Sequences(Batches(model, decoder, eos=stops))
    tokens = [list(prompt) for prompt in prompts or [PROMPT] * len(rows)]
    uids = [
        sequences.insert(prompt, row, most)
        for prompt, row, most in zip(tokens, rows, lengths or [TOKENS] * len(rows), strict=True)
    ]
    sequences.prefill({uid: sequences.left(uid) for uid in uids})
    sequences.start(uids)
    outputs = {uid: Output() for uid in uids}
    widest = 0
    while sequences.decodes:
        decoded = sequences.decode()
        widest = max(widest, len(decoded))
        for each in decoded:
            output = outputs[each.uid]
            output.tokens.append(each.token)
            output.logprobs.append(each.logprobs)
            if each.finish is not None:
                output.finish = each.finish
    assert widest == len(rows)
    return [outputs[uid] for uid in uids]


def reference(
    model: Any, processor: Callable[[mx.array, mx.array], mx.array], count: int = TOKENS
) -> tuple[list[int], list[mx.array]]:
    """Greedy tokens by mlx-lm's own loop, with a logits processor, and the logprobs of each."""
    module: Any = importlib.import_module("mlx_lm.generate")
    steps = list(
        module.generate_step(
            mx.array(PROMPT), model, max_tokens=count, logits_processors=[processor]
        )
    )
    return [int(token) for token, _ in steps], [logprobs for _, logprobs in steps]


def others() -> list[BatchRow]:
    """Thirty-one rows of all kinds."""
    kinds: list[Callable[[int], BatchRow]] = [
        lambda i: BatchRow(Parameters()),
        lambda i: BatchRow(replace(SEEDED, seed=100 + i, top_p=0.5 + i / 100)),
        lambda i: BatchRow(Parameters(seed=i, temperature=1.2, min_p=0.02, top_k=1 + i)),
        lambda i: BatchRow(Parameters(), constraint=Toy()),
        lambda i: BatchRow(replace(SEEDED, seed=i), constraint=Toy(), logprobs=3),
        lambda i: BatchRow(Parameters(temperature=1.0, xtc_probability=0.5, xtc_threshold=0.01)),
        lambda i: BatchRow(replace(PENALISED, repetition_penalty=1.3, repetition_context=i + 1)),
        lambda i: BatchRow(Parameters(logit_bias=((i, 5.0), (7, -2.0))), min_tokens=i, logprobs=0),
    ]
    return [kinds[i % len(kinds)](i) for i in range(31)]


KINDS: dict[str, Callable[[], BatchRow]] = {
    "plain": lambda: BatchRow(Parameters()),
    "seeded": lambda: BatchRow(SEEDED),
    "hot": lambda: BatchRow(Parameters(seed=8, temperature=2.5)),
    "top-k": lambda: BatchRow(Parameters(seed=9, temperature=1.5, top_k=20)),
    "min-p": lambda: BatchRow(Parameters(seed=10, temperature=1.5, min_p=0.02)),
    "xtc": lambda: BatchRow(
        Parameters(seed=11, temperature=1.5, xtc_probability=0.5, xtc_threshold=0.05)
    ),
    "penalised": lambda: BatchRow(replace(SEEDED, presence_penalty=5.0, frequency_penalty=3.0)),
    "repeating": lambda: BatchRow(
        replace(SEEDED, seed=6, repetition_penalty=1.5, repetition_context=len(PROMPT) + 4)
    ),
    "biased": lambda: BatchRow(replace(SEEDED, logit_bias=((65, 8.0), (66, 7.0)))),
    "constrained": lambda: BatchRow(replace(SEEDED, temperature=2.0), constraint=Toy(), logprobs=2),
}


# ── each as if it were alone ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def alone(model: Any) -> dict[str, list[int]]:
    return {kind: run(model, [make()])[0].tokens for kind, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_gives_the_same_alone_and_among_31_others(
    model: Any, alone: dict[str, list[int]], kind: str
) -> None:
    rows = others()
    rows.insert(13, KINDS[kind]())
    # Some leave early, so that the batch's composition changes.
    lengths = [TOKENS if i == 13 else 2 + i for i in range(32)]
    prompts = [PROMPT if i == 13 else [1 + i] * (2 + i) for i in range(32)]
    found = run(model, rows, prompts=prompts, lengths=lengths)
    assert found[13].tokens == alone[kind]
    assert len(set(alone[kind])) > TOKENS / 3
    assert [len(output.tokens) for output in found] == lengths


def test_kinds_and_seeds_differ(model: Any, alone: dict[str, list[int]]) -> None:
    assert len({tuple(tokens) for tokens in alone.values()}) == len(alone)
    rows = [BatchRow(replace(SEEDED, seed=seed)) for seed in range(8)]
    assert len({tuple(output.tokens) for output in run(model, rows)}) == 8


@pytest.mark.parametrize("cut", [1, 7, TOKENS - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_row_goes_on_as_if_nothing_had_happened(
    model: Any, alone: dict[str, list[int]], kind: str, cut: int
) -> None:
    emitted, row = alone[kind][:cut], KINDS[kind]()
    constraint = row.constraint
    if constraint is not None:
        for token in emitted:
            constraint.push(token)
    resumed = BatchRow(
        row.parameters, emitted=emitted, logprobs=row.logprobs, constraint=constraint
    )
    (found,) = run(model, [resumed], prompts=[PROMPT + emitted], lengths=[TOKENS - cut])
    assert found.tokens == alone[kind][cut:]


# ── constraints ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parameters", [Parameters(), SEEDED])
def test_as_long_as_a_constraint_does_not_bind_nothing_is_masked(
    model: Any, parameters: Parameters
) -> None:
    """And from the token on that it binds, only its row is."""
    (free,) = run(model, [BatchRow(parameters)])
    toy = Toy(binds_from=5)
    rows = [BatchRow(parameters), BatchRow(parameters, constraint=toy, logprobs=2)]
    asked: list[int] = []

    def counting(constraints: Sequence[Toy], words: int) -> Ints:
        asked.extend(len(each.pushed) for each in constraints)
        return fill(constraints, words)

    beside, found = run(model, rows, decoder=BatchDecoder(counting, (EOS,)))
    assert beside.tokens == free.tokens
    assert found.tokens[:5] == free.tokens[:5]
    assert found.tokens[5:] != free.tokens[5:]
    pairs = zip(found.tokens[4:], found.tokens[5:], strict=False)
    assert all(later % 7 == (token + 1) % 7 for token, later in pairs)
    assert min(asked) == 5


def test_a_constraint_is_told_every_output_token_once_and_obeyed(model: Any) -> None:
    toys = [Toy(), Toy()]
    rows = [BatchRow(Parameters(), constraint=toys[0]), BatchRow(Parameters())]
    rows.append(BatchRow(Parameters(seed=1, temperature=3.0), constraint=toys[1]))
    found = run(model, rows)
    for toy, output in zip(toys, (found[0], found[2]), strict=True):
        assert toy.pushed == output.tokens
        fresh = Toy()
        for token in output.tokens:
            assert fresh.allows(token)
            fresh.push(token)
    assert found[1].tokens == run(model, [BatchRow(Parameters())])[0].tokens


def test_what_a_mask_does_not_reach_is_forbidden(model: Any) -> None:
    def narrow(constraints: Sequence[Toy], words: int) -> Ints:
        assert words == math.ceil(VOCABULARY / 32)
        return np.full((len(constraints), 2), -1, dtype=np.int32)

    rows = [BatchRow(Parameters(seed=i, temperature=5.0), constraint=Toy()) for i in range(8)]
    tokens = {t for output in run(model, rows, decoder=BatchDecoder(narrow)) for t in output.tokens}
    assert max(tokens) < 64 < 2 * len(tokens)


def test_a_mask_may_reach_further_than_the_vocabulary(model: Any) -> None:
    def wide(constraints: Sequence[Toy], words: int) -> Ints:
        return np.full((len(constraints), words + 3), -1, dtype=np.int32)

    rows = [BatchRow(Parameters(), constraint=Toy())]
    (found,) = run(model, rows, decoder=BatchDecoder(wide))
    assert found.tokens == run(model, [BatchRow(Parameters())])[0].tokens


@pytest.mark.parametrize("parameters", [Parameters(), SEEDED])
def test_a_row_whose_grammar_allows_nothing_ends(model: Any, parameters: Parameters) -> None:
    row = BatchRow(parameters, constraint=Toy(dead_after=5), min_tokens=9, logprobs=5)
    (found,) = run(model, [row], stops=[EOS])
    assert (found.finish, found.tokens[5:]) == ("stop", [EOS])
    assert found.logprobs[5] is not None
    assert (found.logprobs[5].sampled, found.logprobs[5].top) == (0.0, [(EOS, 0.0)])


# ── biases and penalties ─────────────────────────────────────────────────────────────────────────


def counts_of(tokens: mx.array) -> mx.array:
    counts = np.bincount(np.array(tokens)[len(PROMPT) :].astype(int), minlength=VOCABULARY)
    return mx.array(counts.astype(np.float32))


@pytest.mark.parametrize(("presence", "frequency"), [(3.0, 0.0), (0.0, 2.0), (1.5, -1.0)])
def test_presence_and_frequency_count_the_output_as_openai_does(
    model: Any, presence: float, frequency: float
) -> None:
    def penalise(tokens: mx.array, logits: mx.array) -> mx.array:
        counts = counts_of(tokens)
        return logits - presence * (counts > 0) - frequency * counts

    parameters = Parameters(presence_penalty=presence, frequency_penalty=frequency)
    # The prompt holds what would be output, which must not matter.
    rows = [
        BatchRow(parameters),
        BatchRow(Parameters()),
        BatchRow(replace(parameters, presence_penalty=9.0)),
    ]
    found = run(model, rows)
    assert found[0].tokens == reference(model, penalise)[0]
    assert found[0].tokens != found[1].tokens != found[2].tokens


@pytest.mark.parametrize("context", [1, 2, 20, 1000])
@pytest.mark.parametrize("penalty", [1.8, 0.6])
def test_the_repetition_penalty_is_mlx_lms(model: Any, penalty: float, context: int) -> None:
    from mlx_lm.sample_utils import make_repetition_penalty

    make: Any = make_repetition_penalty
    parameters = Parameters(repetition_penalty=penalty, repetition_context=context)
    found = run(model, [BatchRow(Parameters()), BatchRow(parameters), BatchRow(PENALISED)])
    assert found[1].tokens == reference(model, make(penalty, context))[0]


def test_biases_come_before_penalties(model: Any) -> None:
    bias = ((65, 30.0), (66, 29.0), (67, -5.0))

    def edit(tokens: mx.array, logits: mx.array) -> mx.array:
        counts = counts_of(tokens)
        for token, amount in bias:
            logits[:, token] += amount
        # The repetition penalty divides what the bias made.
        recent: Any = tokens[-3:].tolist()
        for token in set(recent):
            value = logits[:, token]
            logits[:, token] = mx.where(value < 0, value * 2.0, value / 2.0)
        return logits - 1.0 * (counts > 0) - 0.25 * counts

    parameters = Parameters(
        logit_bias=bias,
        repetition_penalty=2.0,
        repetition_context=3,
        presence_penalty=1.0,
        frequency_penalty=0.25,
    )
    rows = [BatchRow(Parameters(logit_bias=((1, 1.0),))), BatchRow(parameters)]
    assert run(model, rows)[1].tokens == reference(model, edit)[0]


@pytest.mark.parametrize("minimum", [0, 1, 6])
def test_min_tokens_forbids_the_end_and_only_the_end(model: Any, minimum: int) -> None:
    eager = Parameters(logit_bias=((EOS, 1000.0),))
    late = BatchRow(eager, min_tokens=minimum)
    resumed = BatchRow(eager, min_tokens=minimum + 2, emitted=[1, 2])
    found = run(model, [late, BatchRow(Parameters()), resumed], stops=[EOS])
    assert (found[0].tokens[minimum:], found[0].finish) == ([EOS], "stop")
    assert found[0].tokens[:minimum] == found[1].tokens[:minimum] == found[2].tokens[:minimum]
    assert len(found[2].tokens) == minimum + 1


# ── log probabilities ────────────────────────────────────────────────────────────────────────────


def test_log_probabilities_are_of_the_processed_distribution(model: Any) -> None:
    def edit(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits - 2.0 * (counts_of(tokens) > 0)

    parameters = Parameters(presence_penalty=2.0)
    rows = [
        BatchRow(parameters, logprobs=4),
        BatchRow(parameters),
        BatchRow(parameters, logprobs=0),
        BatchRow(SEEDED),
    ]
    rows.append(BatchRow(parameters, logprobs=99))
    found = run(model, rows)
    tokens, expected = reference(model, edit)
    assert found[0].tokens == tokens
    assert found[1].logprobs == found[3].logprobs == [None] * TOKENS
    for at, token in enumerate(tokens):
        told, none, many = (found[i].logprobs[at] for i in (0, 2, 4))
        assert told is not None
        assert none is not None
        assert many is not None
        assert told.sampled == pytest.approx(expected[at][token].item(), abs=1e-4)
        assert none.sampled == told.sampled
        best: Any = mx.argsort(-expected[at])[:20].tolist()
        assert [token for token, _ in many.top] == best
        assert (told.top, none.top) == (many.top[:4], [])
        for alternative, value in many.top:
            assert value == pytest.approx(expected[at][alternative].item(), abs=1e-4)


def test_temperature_and_filters_leave_log_probabilities_alone(model: Any) -> None:
    hot = Parameters(seed=1, temperature=1.9, top_p=0.5, top_k=40)
    (found,) = run(model, [BatchRow(hot, logprobs=20)])
    first = found.logprobs[0]
    assert first is not None
    expected = reference(model, lambda tokens, logits: logits, 1)[1][0]
    assert first.sampled == pytest.approx(expected[found.tokens[0]].item(), abs=1e-4)
    likeliest = [told.top[0][0] for told in found.logprobs if told is not None]
    assert likeliest != found.tokens


def test_log_probabilities_of_a_grammar_are_finite(model: Any) -> None:
    (found,) = run(model, [BatchRow(Parameters(), constraint=Toy(dead_after=3), logprobs=20)])
    for told in found.logprobs:
        assert told is not None
        assert all(math.isfinite(value) for _, value in [(0, told.sampled), *told.top])


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


def test_plain_rows_go_the_short_way(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def long_way(*_: object) -> Any:
        raise AssertionError("plain rows need one argmax")

    monkeypatch.setattr(decoding, "_choose", long_way)
    assert len(run(model, [BatchRow(Parameters()) for _ in range(4)])[0].tokens) == TOKENS


@pytest.mark.parametrize("reads", [False, True])
def test_tokens_are_read_before_the_next_are_queued_only_if_rows_depend_on_them(
    model: Any, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    events: list[str] = []
    read, queue = decoding._read, decoding._async_eval

    def note_read(tokens: mx.array) -> list[int]:
        events.append("read")
        return read(tokens)

    def note_queue(*arrays: Any) -> None:
        events.append("queue")
        queue(*arrays)

    monkeypatch.setattr(decoding, "_read", note_read)
    monkeypatch.setattr(decoding, "_async_eval", note_queue)
    rows = [BatchRow(SEEDED), BatchRow(Parameters(), logprobs=2)]
    if reads:
        rows.append(BatchRow(PENALISED))
    run(model, rows)
    step = ["queue", "read", "queue"] if reads else ["queue", "read"]
    assert events == step * (TOKENS + 1)


def test_a_plan_is_made_once_a_composition(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plan = BatchPlan

    def note(rows: Sequence[BatchRow]) -> Any:
        made.append(len(rows))
        return plan(rows)

    monkeypatch.setattr(decoding, "BatchPlan", note)
    run(model, [BatchRow(SEEDED), BatchRow(SEEDED), BatchRow(SEEDED)], lengths=[20, 20, 10])
    assert made == [3, 2]  # the batch that prompts become, one row less
