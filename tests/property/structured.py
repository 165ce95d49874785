"""Answers of a random model under grammars, judged by validators that share nothing with us.

    python -m tests.property.structured --answers 10000 --seed 1
    python -m tests.property.structured --served --answers 2000

Each answer is sampled token by token under the masks; whoever ends by itself must be valid, and one
whose grammar gave up is not. With `--served` the answers are the demo model's, through the engine.
Exits with 1 at the first fault, naming the schema and the seed that bring it back.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator

from supervisor.wire.frames import Generate, Schema, Structure, Text
from tests.property import guided
from worker.engine.mlx_lm_compat import model_tokenizer
from worker.grammar.answer_constraint import AnswerConstraint
from worker.grammar.call_constraint import CallConstraint
from worker.grammar.compile import ConstraintCompiler
from worker.grammar.vocabulary import fill_masks

SCHEMAS = Path(__file__).parents[1] / "helpers" / "schemas"
LIMIT = 600
"""Tokens of an answer; whatever takes longer is not judged."""
TOGETHER = 16
"""Answers that are sampled side by side."""
RARELY = frozenset({"formats of the net"})
"""Schemas whose answers seldom end: noise has to hit upon a host name and an address of each
kind."""
SPARE = 37
"""Logits beyond the vocabulary, as padded models have them."""
MERGES = (
    '{"',
    '":',
    '", "',
    '": "',
    "},",
    "]}",
    '"}',
    '"]',
    "[{",
    "00",
    "12",
    "ab",
    '":{',
    " {",
    "ée",
)
ENDS = ("<|end|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def served() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / "served.json").read_text())
    return found


def refused() -> dict[str, tuple[Any, str]]:
    """Schemas with a word of the reason."""
    found: dict[str, Any] = json.loads((SCHEMAS / "refused.json").read_text())
    return {name: (schema, word) for name, (schema, word) in found.items()}


@cache
def wrapper(kind: str = "bytes", *, thinks: bool = False, hermes: bool = False) -> Any:
    """A small tokenizer: "bytes" = byte-level, "spm" = with byte fallback."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if kind == "bytes":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        words = [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
            for text in MERGES
        ]
        vocabulary = {word: i for i, word in enumerate([*letters, *(w[0][0] for w in words)])}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        letters += [chr(code) for code in range(0x21, 0x7F)] + ["▁", "é", "日", "😀"]
        spelled = [text.replace(" ", "▁") for text in MERGES]
        vocabulary = {word: i for i, word in enumerate([*letters, *spelled])}
        tokenizer = Tokenizer(
            models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
        )
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    tokenizer.add_special_tokens([AddedToken(end, special=True) for end in ENDS])
    markers = MARKERS[:2] * hermes + MARKERS[2:] * thinks
    tokenizer.add_tokens([AddedToken(marker, special=False) for marker in markers])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=ENDS[0])
    options: dict[str, Any] = {}
    if hermes:
        from mlx_lm.tool_parsers import json_tools

        options = {
            "tool_call_start": MARKERS[0],
            "tool_call_end": MARKERS[1],
            "tool_parser": json_tools.parse_tool_call,
        }
    ids = [tokenizer.token_to_id(end) for end in ENDS]
    return model_tokenizer(TokenizerWrapper(fast, eos_token_ids=ids, **options))


@cache
def grammars(kind: str = "bytes") -> ConstraintCompiler:
    return ConstraintCompiler(wrapper(kind), len(wrapper(kind)) + SPARE)


def request(schema: object) -> Generate:
    return Generate("r", Text("x"), 0.0, structure=Schema(json.dumps(schema)))


def constraint(schema: object, kind: str = "bytes") -> AnswerConstraint:
    return _constraint(Schema(json.dumps(schema)), kind)


def _constraint(structure: Structure, kind: str) -> AnswerConstraint:
    made = grammars(kind).compile(Generate("r", Text("x"), 0.0, structure=structure))
    assert isinstance(made, AnswerConstraint)
    return made


def allowed(grammar: AnswerConstraint | CallConstraint) -> list[int]:
    """The token ids that may come next."""
    row = fill_masks([grammar], grammar.vocabulary.words)[0]
    return [int(i) for i in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


class Chooser:
    """A random model: noise, but the longer an answer is, the likelier it closes what is open."""

    def __init__(self, wrapper: Any, seed: int, *, patience: float = 60.0) -> None:
        self._random = random.Random(seed)
        self._patience = patience
        self._ends = frozenset(wrapper.eos_token_ids)
        texts = [wrapper.decode([token]) for token in range(len(wrapper))]
        self._closing = frozenset(
            i for i, text in enumerate(texts) if text[:1] in ('"', "}", "]") and "," not in text
        )
        # Without it an e-mail address never comes to its end.
        self._onward = frozenset(i for i, text in enumerate(texts) if text == "@")

    def __call__(self, tokens: Sequence[int], length: int) -> int:
        if self._random.random() < length / self._patience:
            closing = [token for token in tokens if token in self._ends]
            closing = closing or [token for token in tokens if token in self._closing]
            closing = closing or [token for token in tokens if token in self._onward]
            tokens = closing or tokens
        return self._random.choice(tokens)


def sample(
    constraints: Sequence[AnswerConstraint], choosers: Sequence[Chooser], limit: int = LIMIT
) -> list[list[int] | None]:
    """Tokens of each answer, its end included; None where it did not end. An end is an end, also
    where it is all that a broken grammar has left."""
    answers: list[list[int]] = [[] for _ in constraints]
    ended: set[int] = set()
    ends = constraints[0].vocabulary.eos
    for length in range(limit):
        running = [i for i in range(len(constraints)) if i not in ended]
        if not running:
            break
        masks = fill_masks([constraints[i] for i in running], constraints[0].vocabulary.words)
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
        for row, i in enumerate(running):
            token = choosers[i]([int(t) for t in np.flatnonzero(bits[row])], length)
            answers[i].append(token)
            constraints[i].push(token)
            if token in ends:
                ended.add(i)
    return [answer if i in ended else None for i, answer in enumerate(answers)]


def text_of(wrapper: Any, tokens: Sequence[int]) -> str:
    """The text before the end, decoded by the model's own tokenizer."""
    return str(wrapper.decode(list(tokens[:-1]), clean_up_tokenization_spaces=False))


def fault(schema: Any, text: str) -> str:
    """Why an answer is not valid, "" = it is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    checker = Draft202012Validator.FORMAT_CHECKER
    for wrong in Draft202012Validator(schema, format_checker=checker).iter_errors(value):
        return f"{wrong.validator} at {list(wrong.absolute_path)}"
    return ""


def all_wanted() -> dict[str, tuple[Structure, Callable[[str], str]]]:
    """What is sampled: schemas, and what `tests.property.guided` has; with what tells the fault of
    an answer, "" = it has none."""
    return {
        **{
            name: (Schema(json.dumps(schema)), partial(fault, schema))
            for name, schema in served().items()
        },
        **{name: (case.structure, case.fault) for name, case in guided.cases().items()},
    }


def run(answers: int, seed: int, kind: str) -> tuple[Counter[str], str]:
    """Sample `answers` over all that is wanted: how many ended by themselves, and the first
    fault."""
    schemas = [(name, *each) for name, each in all_wanted().items()]
    ended: Counter[str] = Counter()
    for first in range(0, answers, TOGETHER):
        batch = [
            (number, *schemas[number % len(schemas)])
            for number in range(first, min(answers, first + TOGETHER))
        ]
        found = sample(
            [_constraint(structure, kind) for _, _, structure, _ in batch],
            [
                Chooser(wrapper(kind), seed * 1_000_003 + number, patience=20.0 + number % 90)
                for number, *_ in batch
            ],
        )
        for (number, name, _, judge), tokens in zip(batch, found, strict=True):
            if tokens is None:
                continue
            ended[name] += 1
            text = text_of(wrapper(kind), tokens)
            if why := judge(text):
                return ended, f"{name!r}, answer {number} of seed {seed}: {why}\n{text!r}"
    return ended, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", choices=("bytes", "spm"), default="bytes")
    parser.add_argument("--served", action="store_true", help="through the engine")
    options = parser.parse_args()
    started = time.monotonic()
    if options.served:
        from tests.property import structured_served

        wanted = structured_served.answers(options.seed, options.answers)
        ended, why = structured_served.run(wanted)
        print(f"INVALID under {why}" if why else "no fault")
        for name, count in ended.most_common():
            print(f"{count:5} {name}")
        print(f"{time.monotonic() - started:.0f} s")
        return 1 if why else 0
    ended, why = run(options.answers, options.seed, options.tokenizer)
    if why:
        print(f"INVALID under {why}")
        return 1
    missing = [name for name in all_wanted() if not ended[name]]
    for name, count in ended.most_common():
        print(f"{count:5} {name}")
    print(
        f"{options.answers} answers over {len(all_wanted())} grammars, {ended.total()} ended by "
        f"themselves, all of these valid; {time.monotonic() - started:.0f} s"
    )
    if missing:
        print(f"none ended of: {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
