"""The estimate itself: weights, KV cache, prefill transient and runtime, in bytes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.models.estimate.architectures import architecture, layers_of
from supervisor.models.estimate.facts import Facts, read_config
from supervisor.models.estimate.layers import Layer
from supervisor.models.estimate.weights import read_adapter, read_weights

STEP = 256
"""Tokens by which mlx-lm's caches grow."""
PREFILL_BATCH = 8
PREFILL_STEP = 512
"""What the worker takes through the layers at once: that many tokens of that many prompts."""
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
class KvQuantization:
    """`bits` for each element, and a scale and a bias for each group of them."""

    bits: int
    group_size: int = 64

    def bytes_for(self, elements: int, item: int) -> int:
        return elements * self.bits // 8 + elements // self.group_size * 2 * item


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

    `known` is False for an architecture without a formula: its KV figures are those of full
    attention, or 0 when the config lacks the usual fields. `context` is the model's own limit in tokens, 0 = the config does not say.
    """

    weights: int
    caches: tuple[Cache, ...]
    activations: int
    """Of one prompt token in a prefill step."""
    scores: int
    """Attention scores of one prompt token and one token of context; 0 where they are fused."""
    logits: int
    """Of one sequence in one decode step."""
    context: int
    known: bool
    runtime: int = RUNTIME
    adapter: int = 0
    draft: int = 0
    """Weights of the draft model; its caches are among `caches`."""

    @property
    def kv_bytes_per_token(self) -> int:
        """What one more token of a long sequence costs: layers that keep every token alone."""
        return sum(cache.per_token for cache in self.caches if cache.window is None)

    @property
    def kv_window_bytes_per_token(self) -> int:
        """What one more token costs above that, until the windows are full."""
        return sum(cache.per_token for cache in self.caches if cache.window is not None)

    @property
    def kv_fixed(self) -> int:
        """What a sequence costs whatever its length: recurrent and convolution states."""
        return sum(cache.fixed for cache in self.caches)

    @property
    def loaded(self) -> int:
        """What stays in memory while nothing runs."""
        return self.weights + self.adapter + self.draft + self.runtime

    def learned(self, loaded: int) -> Estimate:
        """The same with `loaded` bytes, the footprint measured at the end of a load, in place of
        what was estimated of weights, adapter, draft and runtime."""
        return replace(self, weights=loaded, runtime=0, adapter=0, draft=0)

    def kv(self, context: int, sequences: int = 1) -> int:
        """KV cache of `sequences`, each padded to the longest, of `context` tokens."""
        return sequences * sum(cache.bytes_for(rounded(context)) for cache in self.caches)

    def transient(self, context: int, sequences: int = 1) -> int:
        """What comes and goes while `sequences` of `context` tokens are served: one layer's copy,
        since a cache that grows or whose rows change is copied layer by layer, a prefill step with
        what windows hold too much of it, and the logits. A quarter is added for buffers that MLX has
        freed and not yet reused: its measured peak was 0.93 to 1.12 of the sum."""
        copy = sequences * max((c.bytes_for(rounded(context)) for c in self.caches), default=0)
        parts = copy + self.prefill_transient(context, sequences) + sequences * self.logits
        return parts * 5 // 4

    def prefill_transient(self, context: int, sequences: int = 1) -> int:
        """Activations, scores, and what windows hold too much of, in one prefill step."""
        tokens = min(PREFILL_BATCH, sequences) * min(PREFILL_STEP, context)
        each = self.activations + self.scores * rounded(context) + self.kv_window_bytes_per_token
        return tokens * each

    def total(self, context: int, sequences: int, *, prompt_cache: int = 0) -> int:
        """The charge for serving `sequences` of `context` tokens at once, beside `prompt_cache`
        bytes of reusable KV."""
        kv = self.kv(context, sequences)
        return self.loaded + kv + self.transient(context, sequences) + prompt_cache

    def with_budget(self, kv_budget: int, context: int, *, prompt_cache: int = 0) -> int:
        """The charge when all sequences together may take `kv_budget` bytes, one as long as
        `context`: DESIGN's weights + KV budget + prompt cache + prefill transient + runtime."""
        return self.loaded + kv_budget + self.transient(context) + prompt_cache

    def sequences(self, kv_budget: int, context: int) -> int:
        """How many sequences of `context` tokens `kv_budget` bytes hold."""
        each = self.kv(context)
        return kv_budget // each if each else sys.maxsize


def rounded(tokens: int) -> int:
    """`tokens` as mlx-lm allocates them: in steps of 256."""
    return -(-tokens // STEP) * STEP


def estimate(
    folder: Path,
    *,
    adapter: Path | None = None,
    draft: Path | None = None,
    kv_quantization: KvQuantization | None = None,
    fused: bool = sys.platform == "darwin",
) -> Estimate:
    """What the model in `folder` will need, with its `adapter` and `draft` model's folders.

    Blocks on reading config.json and the safetensors headers: milliseconds as a rule, half a second
    for hundreds of shards with an array for each expert. `fused`: attention
    without a matrix of scores, as Metal's kernels do it and the CPU's do not. Raises EstimateError
    for files that are missing or broken.
    """
    config = read_config(folder)
    weights = read_weights(folder, config)
    layers, known = layers_of(config)
    text = config.merged("text_config")
    fused = fused and architecture(config) not in _UNFUSED
    scores = 0
    if not fused and any(layer.per_token for layer in layers):
        scores = _heads(text) * weights.item
    result = Estimate(
        weights=weights.loaded,
        caches=tuple(
            _cache(layer, weights.item, weights.state_item, kv_quantization) for layer in layers
        ),
        activations=_widths(text) * weights.item,
        scores=scores,
        # The logits, their log probabilities in float32, and the sampler's sorted copy.
        logits=text.integer("vocab_size", default=0) * (weights.item + 8),
        context=_context(text),
        known=known,
        adapter=read_adapter(adapter) if adapter is not None else 0,
    )
    if draft is None:
        return result
    other = estimate(draft, kv_quantization=kv_quantization, fused=fused)
    return replace(result, draft=other.weights, caches=result.caches + other.caches)


def _cache(layer: Layer, item: int, scan_item: int, quantized: KvQuantization | None) -> Cache:
    if quantized is not None and layer.quantizable:
        per_token = quantized.bytes_for(layer.per_token, item)
    else:
        per_token = layer.per_token * item
    fixed = layer.state * item + layer.state32 * 4 + layer.scan * scan_item
    return Cache(per_token, layer.window, fixed)


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
