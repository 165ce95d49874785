"""What the worker expects of mlx-lm: `mlx_lm_compat` looks for all of it before it is used."""

from __future__ import annotations

NAMES = {
    "mlx_lm.generate": (
        "GenerationBatch._step",
        "GenerationBatch.empty",
        "GenerationBatch.extend",
        "GenerationBatch.extract_cache",
        "GenerationBatch.filter",
        "GenerationBatch.next",
        "PromptProcessingBatch.empty",
        "PromptProcessingBatch.extract_cache",
        "PromptProcessingBatch.filter",
        "PromptProcessingBatch.prompt",
        "PromptProcessingBatch.split",
        "StopSequences",
    ),
    "mlx_lm.models.cache": ("make_prompt_cache",),
    "mlx_lm.tokenizer_utils": (
        "NewlineTokenizer",
        "TokenizerWrapper.eos_token_ids",
        "TokenizerWrapper.has_thinking",
        "TokenizerWrapper.response_initial_state",
        "TokenizerWrapper.response_transitions",
        "TokenizerWrapper.structural_markers",
        "TokenizerWrapper.think_end",
        "TokenizerWrapper.think_end_tokens",
        "TokenizerWrapper.think_start",
        "TokenizerWrapper.think_start_tokens",
        "TokenizerWrapper.tool_call_end",
        "TokenizerWrapper.tool_call_start",
        "TokenizerWrapper.tool_parser",
        "_byte_decoder",
    ),
    "mlx_lm.utils": ("load",),
}
"""By module, what must be there."""
CALLERS = {
    "GenerationBatch.__init__": "_step",
    "GenerationBatch.next": "_step",
}
"""In `mlx_lm.generate`, functions and a name that each must use: else what `mlx_lm_generator` puts
in its place would never be called."""
CALLS: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    ("mlx_lm.generate", "GenerationBatch"): (
        0,
        (
            "model",
            "uids",
            "inputs",
            "prompt_cache",
            "tokens",
            "samplers",
            "fallback_sampler",
            "logits_processors",
            "stop_sequences",
            "max_tokens",
        ),
    ),
    ("mlx_lm.generate", "GenerationBatch.empty"): (2, ()),
    ("mlx_lm.generate", "GenerationBatch.extract_cache"): (2, ()),
    ("mlx_lm.generate", "GenerationBatch.next"): (1, ()),
    ("mlx_lm.generate", "PromptProcessingBatch"): (
        0,
        (
            "model",
            "uids",
            "caches",
            "tokens",
            "prefill_step_size",
            "samplers",
            "fallback_sampler",
            "logits_processors",
            "stop_sequences",
            "max_tokens",
        ),
    ),
    ("mlx_lm.generate", "PromptProcessingBatch.empty"): (2, ()),
    ("mlx_lm.generate", "PromptProcessingBatch.extract_cache"): (2, ()),
    ("mlx_lm.generate", "PromptProcessingBatch.filter"): (2, ()),
    ("mlx_lm.generate", "StopSequences"): (1, ()),
    ("mlx_lm.models.cache", "make_prompt_cache"): (1, ()),
    ("mlx_lm.tokenizer_utils", "_byte_decoder"): (0, ()),
    ("mlx_lm.utils", "load"): (1, ("lazy", "return_config")),
}
"""How the worker calls mlx-lm: the number of positional arguments, `self` among them, and the
keywords."""
TOKENIZER_CALLS: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    ("mlx_lm.tokenizer_utils", "load"): (1, ("defaults",)),
}
"""And how `mlx_lm_tokenizers` does, which no worker uses."""
MODEL_TABLES = ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING")
"""Literals in `mlx_lm.utils` that say which module a model is of."""
TOKENIZER_DEFAULTS = "TOKENIZER_DEFAULTS"
"""The literal in a model's module with settings for tokenizers that say nothing themselves."""
OVERRIDDEN = {
    "GenerationBatch._step": ("self",),
    "GenerationBatch.extend": ("self", "batch"),
    "GenerationBatch.filter": ("self", "keep"),
    "PromptProcessingBatch.prompt": ("self", "tokens"),
    "PromptProcessingBatch.split": ("self", "indices"),
}
"""In `mlx_lm.generate`, methods that `mlx_lm_generator` replaces in a subclass, and their
parameters."""
FIELDS = {
    "GenerationBatch.Response": ("uid", "token", "logprobs", "finish_reason"),
}
"""In `mlx_lm.generate`, dataclasses or named tuples, and the fields that are read."""
GENERATION_BATCH = frozenset(
    [
        "model",
        "uids",
        "prompt_cache",
        "tokens",
        "samplers",
        "fallback_sampler",
        "stop_sequences",
        "max_tokens",
        "_current_tokens",
        "_current_logprobs",
        "_next_tokens",
        "_next_logprobs",
        "_num_tokens",
    ]
)
"""Attributes of a `GenerationBatch` that are used."""
PER_PROMPT = frozenset(
    [
        "uids",
        "prompt_cache",
        "tokens",
        "samplers",
        "logits_processors",
        "stop_sequences",
        "max_tokens",
    ]
)
"""Attributes of a `PromptProcessingBatch` that are lists with an entry for each prompt."""
PROMPT_BATCH = PER_PROMPT | {"model", "prefill_step_size", "fallback_sampler"}
"""All attributes that a `PromptProcessingBatch` has: a new one might hold something for each
prompt, which `split` would have to hand over as well."""
WRAPPER = frozenset(("_tokenizer", "_chat_template"))
"""Attributes of a `TokenizerWrapper`."""
