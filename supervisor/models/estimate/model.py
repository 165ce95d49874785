"""The estimate itself: weights, KV cache, prefill transient and runtime, in bytes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from supervisor.models.estimate.architectures import architecture, layers_of
from supervisor.models.estimate.facts import Facts, read_config
from supervisor.models.estimate.layers import Layer
from supervisor.models.estimate.weights import Weights, read_weights

STEP = 256
"""Tokens by which mlx-lm's caches grow."""
PREFILL_BATCH = 8
PREFILL_STEP = 512
"""What the worker takes through the layers at once: that many tokens of that many prompts."""
SCORED_PART = 2**25
LEAST_SCORED = 8
"""Bytes of the float32 logits that it computes at once where it scores prompts, but of that many
tokens of each prompt at least."""
RUNTIME = 300_000_000
"""A worker without weights: the interpreter, mlx-lm and Metal's own (77 MB, idle, on Linux), a
tokenizer of a quarter of a million words, and compiled kernels."""
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

    `context` is the model's own limit in tokens, 0 = the config does not say.
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
        """What stays in memory while nothing runs."""
        return self.weights + RUNTIME

    def kv(self, context: int, sequences: int = 1) -> int:
        """KV cache of `sequences`, each padded to the longest, of `context` tokens."""
        return sequences * sum(cache.bytes_for(rounded(context)) for cache in self.caches)

    def transient(self, context: int, sequences: int = 1) -> int:
        """What comes and goes while `sequences` of `context` tokens are served: a copy of a layer,
        since a cache that grows or whose rows change is copied layer by layer; a prefill step, or a
        part of one whose prompts are scored, if that is more; and the logits. A quarter is added
        for buffers that MLX has freed and not yet reused: its measured peak was 0.93 to 1.12 of the
        sum."""
        copy = sequences * max((c.bytes_for(rounded(context)) for c in self.caches), default=0)
        prefill = self.prefill_transient(context, sequences)
        step = max(prefill, self.scoring_transient(context, sequences))
        return (copy + step + sequences * self.logits) * 5 // 4

    def scoring_transient(self, context: int, sequences: int = 1) -> int:
        """Logits of a part of a prefill step, in the model's numbers and in float32, and of one
        prompt's two more copies, for its likeliest tokens."""
        rows = min(PREFILL_BATCH, sequences)
        logits = 4 * self.vocabulary * rows
        part = min(max(SCORED_PART, LEAST_SCORED * logits), min(PREFILL_STEP, context) * logits)
        return 4 * part

    def prefill_transient(self, context: int, sequences: int = 1) -> int:
        """Activations, scores, and what windows hold beyond their size, in one prefill step."""
        tokens = min(PREFILL_BATCH, sequences) * min(PREFILL_STEP, context)
        each = self.activations + self.scores * rounded(context) + self.kv_window_bytes_per_token
        return tokens * each

    def total(self, context: int, sequences: int) -> int:
        """The charge for serving `sequences` of `context` tokens at once."""
        return self.loaded + self.kv(context, sequences) + self.transient(context, sequences)


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
