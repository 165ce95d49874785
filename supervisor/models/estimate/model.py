"""The estimate itself: weights, KV cache, prefill transient and runtime, in bytes."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from supervisor.models.estimate.architectures import architecture, layers_of
from supervisor.models.estimate.facts import Facts, read_config
from supervisor.models.estimate.layers import Layer
from supervisor.models.estimate.weights import Weights, read_weights
from supervisor.wire.frames import GRAMMAR_BYTES

STEP = 256
"""Tokens by which mlx-lm's caches grow."""
PREFILL_BATCH = 8
PREFILL_STEP = 512
"""What the worker takes through the layers at once: that many tokens of that many prompts."""
SCORED_PART = 2**25
LEAST_SCORED = 8
"""Bytes of the float32 logits that it computes at once where it scores prompts, but of that many
tokens of each prompt at least."""
LEAST_STEP = 32
"""Tokens of a prompt that are taken through the layers at once where more would not fit."""
PROCESS = 120_000_000
"""A worker that has loaded a model, without weights and vocabulary: the interpreter, mlx-lm, a
Metal device. On Linux 60 MB of its own and 20 to 35 MB that it shares."""
TOKENIZER = 1_000
"""And for each word of its vocabulary: 250,000 words took 200 MB once they were loaded. That they
take 1,300 bytes each for a moment is within the room for requests, which is empty then."""
GROWTH = 60_000_000
"""What comes to that with the first requests: compiled kernels, buffers, threads."""
GRAMMARS = 800
"""And for each word with the first answer that is held to a schema: 130 MB stayed of 250,000, at
the most it was 190 MB. The compiled schemas themselves take up to `GRAMMAR_BYTES` more."""
CHARGED_TOKENS = 2048
"""Of one conversation, whose KV cache a load is charged. All further KV is lent."""
MAX_TOKENS = 2**30
"""No context is longer."""
_UNFUSED = frozenset(
    {
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "kimi_k25",
        "kimi_linear",
        "kimi_vl",
        "longcat_flash",
        "mistral4",
    }
)
"""MLA adds the position's part as a mask: heads × step × context scores are made, fused or not."""


@dataclass(frozen=True, slots=True)
class Cache:
    """`Layer` in bytes of one sequence."""

    per_token: int
    window: int | None
    fixed: int

    def bytes_for(self, tokens: int) -> int:
        kept = tokens if self.window is None else min(tokens, self.window)
        return self.per_token * kept + self.fixed


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes that a model will need. Everything is an upper estimate but `weights`, which is exact
    where mlx-lm loads the arrays as they are stored.

    `context` is the model's own limit in tokens, 0 = the config does not say. What a load is
    charged is `loaded`, `growth` and `room`.
    """

    weights: int
    caches: tuple[Cache, ...]
    activations: int
    """Of one prompt token in a prefill step."""
    scores: int
    """Attention scores of one prompt token and one token of context; 0 where they are fused."""
    logits: int
    """Of one sequence in one decode step."""
    vocabulary: int
    """Logits of one token."""
    context: int

    @property
    def kv_window_bytes_per_token(self) -> int:
        """What one more token of a sequence takes in the layers with windows, until these are
        full."""
        return sum(cache.per_token for cache in self.caches if cache.window is not None)

    @property
    def loaded(self) -> int:
        """What is in memory at the end of a load."""
        return self.weights + PROCESS + TOKENIZER * self.vocabulary

    @property
    def growth(self) -> int:
        """What the first requests add to that for good."""
        return GROWTH + GRAMMARS * self.vocabulary + GRAMMAR_BYTES

    def room(self, context: int) -> int:
        """What one conversation of 2,048 tokens takes in KV cache and while it is prefilled, or one
        of `context` tokens if that is shorter."""
        tokens = min(context, CHARGED_TOKENS)
        return self.kv(tokens) + self.transient(tokens)

    def kv(self, context: int, sequences: int = 1) -> int:
        """KV cache of `sequences`, each padded to the longest, of `context` tokens."""
        return sequences * sum(cache.bytes_for(rounded(context)) for cache in self.caches)

    def transient(self, context: int, sequences: int = 1) -> int:
        """What comes and goes while `sequences` of `context` tokens are served: a copy of a layer,
        since a cache that grows or whose rows change is copied layer by layer; a prefill step, or a
        part of one whose prompts are scored, if that is more; and the logits."""
        copy = sequences * max((c.bytes_for(rounded(context)) for c in self.caches), default=0)
        prefill = self.prefill_transient(context, sequences)
        step = max(prefill, self.scoring_transient(context, sequences))
        return with_freed(copy + step + sequences * self.logits)

    def scoring_transient(self, context: int, sequences: int = 1) -> int:
        """Logits of a part of a prefill step, in the model's numbers and in float32, and of one
        prompt's two more copies, for its likeliest tokens."""
        rows = min(PREFILL_BATCH, sequences)
        logits = 4 * self.vocabulary * rows
        part = min(max(SCORED_PART, LEAST_SCORED * logits), min(PREFILL_STEP, context) * logits)
        return 4 * part

    @property
    def prompt_token(self) -> int:
        """Of one token of a prefill step: activations, and what windows hold beyond their size."""
        return self.activations + self.kv_window_bytes_per_token

    def prefill_transient(
        self, context: int, sequences: int = 1, *, step: int = PREFILL_STEP
    ) -> int:
        """One prefill step, with the attention's scores."""
        tokens = min(PREFILL_BATCH, sequences) * min(step, context)
        return tokens * (self.prompt_token + self.scores * rounded(context))

    def longest(self, size: int) -> int:
        """The most tokens of one sequence that `size` bytes hold, in steps of 256, with what it
        takes to prefill them in the smallest steps. 0 = not even 256; MAX_TOKENS where nothing of
        the cache grows with the sequence."""
        kinds = Counter(self.caches)  # a handful, of however many layers
        fits, too_long = 0, MAX_TOKENS // STEP + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            tokens = middle * STEP
            kept = sum(count * cache.bytes_for(tokens) for cache, count in kinds.items())
            copy = max((cache.bytes_for(tokens) for cache in kinds), default=0)
            step = self.prefill_transient(tokens, step=LEAST_STEP)
            if kept + with_freed(copy + step + self.logits) <= size:
                fits = middle
            else:
                too_long = middle
        return fits * STEP

    def total(self, context: int, sequences: int) -> int:
        """What it takes to serve `sequences` of `context` tokens at once, all in all."""
        kept = self.loaded + self.growth + self.kv(context, sequences)
        return kept + self.transient(context, sequences)


def with_freed(transient: int) -> int:
    """`transient` and a quarter more, for buffers that MLX has freed and not yet reused: its
    measured peak was 0.93 to 1.12 of the sum."""
    return transient * 5 // 4


def rounded(tokens: int) -> int:
    """`tokens` as mlx-lm allocates them: in steps of 256."""
    return -(-tokens // STEP) * STEP


def estimate(folder: Path, *, fused: bool = sys.platform == "darwin") -> Estimate:
    """What the model in `folder` will need.

    Blocks on reading config.json and the safetensors headers: milliseconds as a rule, half a second
    for hundreds of shards with an array for each expert. `fused`: whether attention does without a
    matrix of scores, as in Metal's kernels and not in the CPU's. Raises EstimateError for files
    that are missing or broken.
    """
    config = read_config(folder)
    weights = read_weights(folder, config)
    layers = layers_of(config)
    text = config.merged("text_config")
    fused = fused and architecture(config) not in _UNFUSED
    scores = 0
    if not fused and any(layer.per_token for layer in layers):
        scores = _heads(text) * weights.item
    return Estimate(
        weights=weights.loaded,
        caches=tuple(_cache(layer, weights) for layer in layers),
        activations=_widths(text) * weights.item,
        scores=scores,
        # The logits, their log probabilities in float32, and the sampler's sorted copy.
        logits=text.integer("vocab_size", default=0) * (weights.item + 8),
        vocabulary=text.integer("vocab_size", default=0),
        context=_context(text),
    )


def _cache(layer: Layer, weights: Weights) -> Cache:
    item = weights.item
    fixed = layer.state * item + layer.state32 * 4 + layer.scan * weights.state_item
    return Cache(layer.per_token * item, layer.window, fixed)


def _widths(f: Facts) -> int:
    """Elements of one token that a layer's step holds at once: the stream, and gate, up and
    product of the widest feed-forward, every active expert of it."""
    hidden = f.largest("hidden_size", "n_embd", "d_model", "hidden_dim", default=4096)
    inner = f.largest("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    experts = f.largest("num_experts_per_tok", "moe_topk", "moe_top_k", default=0)
    width = f.largest("moe_intermediate_size", "expert_ffn_hidden_size", default=inner)
    return hidden + 3 * max(inner, experts * width)


def _heads(f: Facts) -> int:
    return f.integer("num_attention_heads", "n_heads", "n_head", "num_heads", default=32)


def _context(f: Facts) -> int:
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
    return f.integer(*names, default=0)
