"""A real model that plays a conversation: which text it writes depends on what has been said.

It is a Llama whose every token has one successor. The chat template looks at the messages and ends
the prompt with a marker of the turn that is due; the marker's successor is that turn's first token.
So it is played by mlx-lm itself, through chat template, tokenizer, prefill and decoding, at any
temperature, and goes on rightly wherever it is resumed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
_CALL = '{start}\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
LOST = "I was not told what I had waited for."
"""What it writes when the results that it has been given are not the expected ones."""
_HIDDEN = 256
"""Codes of tokens are random vectors of so many numbers: two of them hardly ever resemble."""
_PEAK = 0.4
"""Of the head: the successor's logit is about 100, all others' below 40."""
_END = "<|im_end|>"
_SPECIAL = ("<|im_start|>", _END)
_LONGEST = 64
"""Bytes of one token."""
# Some frameworks tell a tool's result as what a user has observed.
_TEMPLATE = """\
{%- set seen = namespace(results=0, last='') -%}
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.content is string %}{% set content = message.content %}
{%- elif message.content %}{% set content = message.content | tojson %}
{%- else %}{% set content = '' %}{% endif -%}
{%- if message.role == 'tool' or (message.role == 'user' and 'Observation:' in content) -%}
{%- set seen.results = seen.results + 1 %}{% set seen.last = content -%}
{%- endif %}<|im_start|>{{ message.role }}
{{ content }}
{%- for tool_call in message.tool_calls or [] %}{% set tool_call = tool_call.function %}
<tool_call>
{"name": {{ tool_call.name | tojson }}, "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the model writes when it has been given the results of all calls in the turns before;
    `LOST` unless the last of them holds `needs`."""

    text: str
    needs: str = ""


def call(name: str, /, **arguments: object) -> str:
    """A call of a tool, in the form that the model's template makes it known for."""
    return _CALL.format(start=CALL_START, name=json.dumps(name), arguments=json.dumps(arguments))


def make_scripted_llama(
    folder: Path, turns: Sequence[Turn], *, aside: str = "", corpus: Sequence[str] = ()
) -> Path:
    """Write the model to `folder` and return it. After the last turn it writes that one again.

    `aside` is its answer to requests without tools, such as for a title; "" = they are turns as
    well. The tokenizer knows frequent words of `corpus`; without one a token is a byte.
    """
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    texts = {f"<|turn-{number}|>": turn.text for number, turn in enumerate(turns)}
    texts |= {"<|lost|>": LOST, "<|aside|>": aside or LOST}
    folder.mkdir(parents=True, exist_ok=True)
    chains = _write_tokenizer(folder, texts, _template(turns, bool(aside)), corpus)
    size = 1 + max(token for chain in chains for token in chain)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": _HIDDEN,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "vocab_size": size,
        "eos_token_id": chains[0][-1],
        "torch_dtype": "float32",
    }
    arguments: Any = llama.ModelArgs
    parameters: Any = tree_flatten(llama.Model(arguments.from_dict(config)).parameters())
    shapes = {name: array.shape for name, array in parameters}
    weights = {
        name: mx.ones(shape) if name.endswith("norm.weight") else mx.zeros(shape)
        for name, shape in shapes.items()
    }
    codes = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (size, _HIDDEN))
    head = np.zeros((size, _HIDDEN), np.float32)
    for chain in chains:
        for token, successor in pairwise(chain):
            head[successor] += _PEAK * codes[token]
    weights["model.embed_tokens.weight"] = mx.array(codes)
    weights["lm_head.weight"] = mx.array(head)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _template(turns: Sequence[Turn], has_aside: bool) -> str:
    """The chat template: everything that was said, and the marker of what comes next."""
    choice = "{%- if not tools %}<|aside|>" if has_aside else "{%- if false %}"
    for number in reversed(range(len(turns))):
        needs = json.dumps(turns[number].needs)
        calls = sum(turn.text.count(CALL_START) for turn in turns[:number])
        choice += (
            f"{{%- elif seen.results >= {calls} %}}"
            f"{{% if {needs} in seen.last %}}<|turn-{number}|>{{% else %}}<|lost|>{{% endif %}}"
        )
    return _TEMPLATE + choice + "{%- endif -%}"


def _write_tokenizer(
    folder: Path, texts: dict[str, str], template: str, corpus: Sequence[str]
) -> list[list[int]]:
    """Write it; returns of each text the tokens from its marker to the end. No token but the last
    is in two of them, or twice in one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = _byte_alphabet()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=list(alphabet), show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    learned = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = dict(learned["vocab"])
    chains: list[list[int]] = []
    for text in texts.values():
        chains.append([])
        # Where a grammar begins or may end no token may reach over that place.
        for part in re.split(f"(?<={CALL_START})|(?<={CALL_END})", text):
            for piece in _pieces(part.encode(), alphabet, vocab):
                chains[-1].append(vocab[piece])
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (*texts, *_SPECIAL)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": _END,
                "chat_template": template,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    known: dict[str, int] = tokenizer.get_vocab()
    markers, end = [known[name] for name in texts], known[_END]
    return [[marker, *chain, end] for marker, chain in zip(markers, chains, strict=True)]


def _pieces(text: bytes, alphabet: Sequence[str], vocab: dict[str, int]) -> list[str]:
    """Cut a text into tokens that `vocab` does not have yet, and add them to it."""
    spelled = "".join(alphabet[byte] for byte in text)
    pieces: list[str] = []
    begin = 0
    while begin < len(spelled):
        lengths = range(2, min(_LONGEST, len(spelled) - begin) + 1)
        piece = next((p for n in lengths if (p := spelled[begin : begin + n]) not in vocab), None)
        if piece is None:  # the rest is too short to be new: it goes to those before
            piece = spelled[begin:]
            while piece in vocab:
                assert pieces, "the text is a single known token"
                begin -= len(pieces[-1])
                piece = pieces.pop() + piece
        vocab[piece] = len(vocab)
        begin += len(piece)
        pieces.append(piece)
    return pieces


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = (byte for byte in range(256) if byte not in shown)
    characters = {byte: chr(byte) for byte in shown}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [characters[byte] for byte in range(256)]
