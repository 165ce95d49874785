"""The parameters of other local servers, and what becomes of each here. Data.

Of Ollama, llama.cpp's server and its web UI, LM Studio, vLLM, SGLang, mlx_lm.server,
text-generation-webui, KoboldCpp and SillyTavern, as their clients send them to an OpenAI endpoint.
What changes no answer is ignored and named in `x-bulkhead-ignored`, what means the same as a
parameter of ours becomes that, and the rest is refused unless it asks for nothing.

docs/api.md repeats the tables; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.openai.constraints import BLANKS
from gateway.openai.fates import TEMPLATE, Fate, Ignored, Mapped, Members, Nested, Neutral, Refused
from gateway.openai.parameters import REPETITION_MAX

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_NO_SAMPLER = "this server has no such sampler"
_ONE_ORDER = "samplers always run in the same order"
_OFFERED = "use `response_format` or `structured_outputs`"


def _renamed(to: str) -> Mapped:
    return Mapped(f"`{to}`", lambda value: {to: value})


def _template(**members: Any) -> Members:
    return {TEMPLATE: members}


def _switch(on: bool) -> Members:
    """Qwen's and GLM's templates have one name for it, DeepSeek's another."""
    return _template(enable_thinking=on, thinking=on)


def _enable_thinking(value: Any) -> Members:
    if isinstance(value, bool):
        return _template(enable_thinking=value)
    raise ValueError("expected a boolean")


def _think(value: Any) -> Members:
    """Ollama's: a switch, or how much, which switches it on for templates that know no more.
    Anthropic's and DeepSeek's: an object with a type."""
    if isinstance(value, bool):
        return _switch(value)
    if isinstance(value, str):
        if value in ("on", "off"):
            return _switch(value == "on")
        if value in ("none", "minimal"):
            return {"reasoning_effort": value}
        if value in _EFFORTS:
            return {"reasoning_effort": value, **_switch(True)}
    if isinstance(value, dict) and value.get("type") in ("enabled", "adaptive", "disabled"):
        meant = _switch(value["type"] != "disabled")
        budget = value.get("budget_tokens")
        if budget is not None:
            meant[TEMPLATE]["thinking_budget"] = budget
        return meant
    raise ValueError("expected true, false, an effort such as `low`, or an object with a `type`")


def _reasoning(value: Any) -> Members:
    """OpenRouter's and OpenAI's object, LM Studio's word."""
    if not isinstance(value, dict):
        return _think(value)
    unknown = set(value) - {"effort", "enabled", "max_tokens", "summary", "exclude"}
    if unknown or value.get("exclude"):
        raise ValueError("of its members `effort`, `enabled` and `max_tokens` are supported")
    meant: Members = {}
    if value.get("effort") is not None:
        meant["reasoning_effort"] = value["effort"]
    if value.get("enabled") is not None:
        if not isinstance(value["enabled"], bool):
            raise ValueError("`enabled` must be a boolean")
        meant |= _switch(value["enabled"])
    if value.get("max_tokens") is not None:
        meant[TEMPLATE] = {**meant.get(TEMPLATE, {}), "thinking_budget": value["max_tokens"]}
    return meant


def _predict(value: Any) -> Members:
    """-1 is without end and -2 to the end of the context, which is the same here."""
    return {"max_tokens": -1 if value == -2 else value}


def _look_back(value: Any) -> Members:
    """llama.cpp's: 0 is no penalty, -1 the whole context."""
    if value == 0 and not isinstance(value, bool):
        return {"repetition_penalty": 1}
    return {"repetition_context_size": REPETITION_MAX if value == -1 else value}


def _range(value: Any) -> Members:
    """text-generation-webui's and KoboldAI's: 0 is the whole context."""
    whole = value in (0, -1) and not isinstance(value, bool)
    return {"repetition_context_size": REPETITION_MAX if whole else value}


def _seed(value: Any) -> Members:
    """-1 is a random one."""
    return {} if value == -1 else {"seed": value}


def _do_sample(value: Any) -> Members:
    if not isinstance(value, bool):
        raise ValueError("expected a boolean")
    return {} if value else {"temperature": 0}


def _format(value: Any) -> Members:
    """Ollama's: "json" or a schema."""
    if value == "":
        return {}
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, dict):
        return _schema(value)
    raise ValueError('expected "json" or a JSON Schema')


def _schema(value: Any) -> Members:
    if not isinstance(value, dict):
        raise ValueError("expected a JSON Schema")
    if not value:
        return {}
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def _chat_probabilities(value: Any) -> Members:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("expected an integer from 0 to 20")
    return {"logprobs": True, "top_logprobs": value} if value else {}


def _text_probabilities(value: Any) -> Members:
    return {} if value == 0 and not isinstance(value, bool) else {"logprobs": value}


CHANGES_NOTHING = (
    # How the model is held, loaded and computed, which the configuration says here.
    *("keep_alive", "ttl", "num_ctx", "context_length", "truncation_length"),
    *("max_context_length", "num_keep", "n_keep", "n_discard", "context_overflow_policy"),
    *("shift", "num_batch", "n_batch", "num_gpu", "main_gpu", "num_gqa", "num_thread"),
    *("low_vram", "f16_kv", "use_mmap", "use_mlock", "numa", "vocab_only", "logits_all"),
    *("rope_frequency_base", "rope_frequency_scale", "n_ctx", "ctx_len", "ngl", "n_gpu_layers"),
    *("n_threads", "n_parallel", "cont_batching", "flash_attn", "cache_type_k", "cache_type_v"),
    # Caches and slots: what is reused never changes the answer.
    *("cache_prompt", "id_slot", "slot_id", "n_cache_reuse", "cache_salt"),
    *("kv_transfer_params",),
    # Who goes first, and under which name.
    *("priority", "request_id", "rid"),
    # Speculative decoding: the same answer, sooner.
    *("draft_model", "num_draft_tokens", "speculative", "speculative.n_max"),
    *("speculative.n_min", "speculative.p_min", "speculative_ngram", "backend_sampling"),
    # Reports beside the answer.
    *("timings_per_token", "return_progress", "stream_reasoning"),
    # Details of what is refused or off, so that they are of no consequence.
    *("mirostat_tau", "mirostat_eta", "dynatemp_low", "dynatemp_high", "dynatemp_exponent"),
    *("smoothing_curve", "adaptive_decay", "dry_base", "dry_allowed_length"),
    *("dry_penalty_last_n", "dry_sequence_breakers", "length_penalty", "early_stopping"),
    *("spaces_between_special_tokens", "guided_decoding_backend", "mm_processor_kwargs"),
    *("genkey", "quiet", "extra_key", "data_parallel_rank", "media_io_kwargs", "static_cache"),
    *("prompt_lookup_num_tokens", "return_cached_tokens_details", "sse_ping_interval"),
    # What is cut at a limit elsewhere is refused here, and else the same.
    *("truncate",),
)

_SAMPLERS = Neutral(
    (
        "",
        *("edkypmxt", "dkypmxt", "edskypmxt", "kfypmxt", "kfypmt"),
        [
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature",
        ],
        ["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
        ["dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
    ),
    _ONE_ORDER,
)

NOT_SUPPORTED: dict[str, Neutral | Refused] = {
    # Samplers
    "mirostat": Neutral((0,), _NO_SAMPLER),
    "mirostat_mode": Neutral((0,), _NO_SAMPLER),
    "tfs_z": Neutral((1,), _NO_SAMPLER),
    "tfs": Neutral((1,), _NO_SAMPLER),
    "typical_p": Neutral((1,), _NO_SAMPLER),
    "typical": Neutral((1,), _NO_SAMPLER),
    "typ_p": Neutral((1,), _NO_SAMPLER),
    "top_a": Neutral((0,), _NO_SAMPLER),
    "top_n_sigma": Neutral((0, -1), _NO_SAMPLER),
    "nsigma": Neutral((0, -1), _NO_SAMPLER),
    "epsilon_cutoff": Neutral((0,), _NO_SAMPLER),
    "eta_cutoff": Neutral((0,), _NO_SAMPLER),
    "dynamic_temperature": Neutral((False,), _NO_SAMPLER),
    "dynatemp_range": Neutral((0,), _NO_SAMPLER),
    "smoothing_factor": Neutral((0,), _NO_SAMPLER),
    "adaptive_target": Neutral((-1, -0.01, 0), _NO_SAMPLER),
    "dry_multiplier": Neutral((0,), _NO_SAMPLER),
    "skew": Neutral((0,), _NO_SAMPLER),
    "penalty_alpha": Neutral((0,), _NO_SAMPLER),
    "no_repeat_ngram_size": Neutral((0,), _NO_SAMPLER),
    "encoder_repetition_penalty": Neutral((1,), _NO_SAMPLER),
    "min_keep": Neutral((0, 1), _NO_SAMPLER),
    "guidance_scale": Neutral((1,), _NO_SAMPLER),
    "cfg_scale": Neutral((1,), _NO_SAMPLER),
    "negative_prompt": Neutral(("",), _NO_SAMPLER),
    "use_beam_search": Neutral((False,), _NO_SAMPLER),
    "num_beams": Neutral((1,), _NO_SAMPLER),
    "penalize_nl": Neutral((True,), "penalties count line breaks as well"),
    "penalize_newline": Neutral((True,), "penalties count line breaks as well"),
    "samplers": _SAMPLERS,
    "sampler_order": Neutral(([6, 0, 1, 3, 4, 2, 5],), _ONE_ORDER),
    "sampler_priority": Neutral((), _ONE_ORDER),
    "temperature_last": Neutral((True,), _ONE_ORDER),
    # What may be written
    "allowed_token_ids": Neutral(([],), "use `logit_bias`"),
    "bad_words": Neutral(([],), "use `logit_bias`"),
    "banned_strings": Neutral(([], ""), "use `logit_bias`"),
    "banned_tokens": Neutral(([], ""), "use `logit_bias`"),
    "custom_token_bans": Neutral(([], ""), "use `logit_bias`"),
    "logits_processors": Neutral(([],), "use `logit_bias`"),
    "vllm_xargs": Neutral(({},), _NO_SAMPLER),
    "grammar_lazy": Neutral((False,), _OFFERED),
    "grammar_triggers": Neutral(([],), _OFFERED),
    "preserved_tokens": Neutral(([],), "special tokens are not told"),
    "structural_tag": Neutral((), _OFFERED),
    "guided_whitespace_pattern": Neutral(("", *BLANKS), "JSON is written with single blanks"),
    # Where it ends
    "stop_token_ids": Neutral(([],), "use `stop` with their text"),
    "min_length": Neutral((0,), "use `min_tokens`"),
    "t_max_predict_ms": Neutral((0, -1), "an answer ends by tokens, not by time"),
    "t_max_prompt_ms": Neutral((0, -1), "an answer ends by tokens, not by time"),
    "max_tokens_second": Neutral((0,), "tokens come as fast as they can"),
    "n_indent": Neutral((0,), "use `stop`"),
    "auto_max_new_tokens": Neutral((False,), "use `max_tokens`"),
    # What the prompt is
    "add_generation_prompt": Neutral((True,), "every chat asks for an answer"),
    "continue_final_message": Neutral((False,), "use /v1/completions"),
    "add_special_tokens": Neutral((), "the tokenizer adds what its model was made with"),
    "add_bos_token": Neutral((True,), "the tokenizer adds what its model was made with"),
    "chat_template": Neutral(("",), "the model's own is used"),
    "documents": Neutral(([],), "put them into a message"),
    "truncate_prompt_tokens": Neutral((-1,), "a prompt that is too long is refused"),
    "system": Neutral(("",), "send a message with the role `system`"),
    "template": Neutral(("",), "the model's own is used"),
    "context": Neutral(([], ""), "send the messages"),
    "raw": Neutral((False,), "use /v1/completions"),
    "system_prompt": Neutral(("",), "send a message with the role `system`"),
    "memory": Neutral(("",), "send the messages"),
    "images": Neutral(([],), "language models take text only"),
    "image_data": Neutral(([],), "language models take text only"),
    "mode": Neutral(("instruct",), "send the messages"),
    "lora": Neutral(([],), "adapters are configured"),
    "lora_request": Neutral((), "adapters are configured"),
    "adapters": Neutral(("",), "adapters are configured"),
    "role_mapping": Neutral(({},), "the model's chat template is used"),
    # What the answer tells
    "skip_special_tokens": Neutral((True,), "special tokens are not told"),
    "include_stop_str_in_output": Neutral((False,), "a stop string is not part of the answer"),
    "return_tokens": Neutral((False,), "tokens are told as text"),
    "return_token_ids": Neutral((False,), "tokens are told as text"),
    "return_tokens_as_token_ids": Neutral((False,), "tokens are told as text"),
    "post_sampling_probs": Neutral((False,), "log probabilities are those before sampling"),
    "prompt_logprobs": Neutral((), "use `echo` with `logprobs` of /v1/completions"),
    "reasoning_format": Neutral(("auto", "deepseek"), "thoughts are told apart from the answer"),
    "reasoning_in_content": Neutral((False,), "thoughts are told apart from the answer"),
    "include_reasoning": Neutral((True,), "thoughts are told apart from the answer"),
    "separate_reasoning": Neutral((True,), "thoughts are told apart from the answer"),
    "thinking_forced_open": Neutral((False,), "the chat template says where thoughts begin"),
    "thinking_budget_tokens": Neutral((-1,), "use `chat_template_kwargs.thinking_budget`"),
    "reasoning_budget": Neutral((-1,), "use `chat_template_kwargs.thinking_budget`"),
    "render_special": Neutral((False,), "special tokens are not told"),
    "detokenize": Neutral((True,), "tokens are told as text"),
    "trim_stop": Neutral((True,), "a stop string is not part of the answer"),
    "no_stop_trim": Neutral((False,), "a stop string is not part of the answer"),
    "return_hidden_states": Neutral((False,), "the answer is text"),
    "response_fields": Neutral(([],), "an answer is told whole"),
    "parse_tool_calls": Neutral((True,), "use `tool_choice`"),
}

MEANS_THE_SAME: dict[str, Mapped | Nested] = {
    "options": Nested(
        frozenset(
            {
                *("temperature", "top_p", "top_k", "min_p", "stop", "ignore_eos", "logit_bias"),
                *("presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens"),
                *("xtc_probability", "xtc_threshold", "max_tokens"),
            }
        ),
        {"seed": Mapped("`seed`", _seed)},
    ),
    "num_predict": Mapped("`max_tokens`", _predict),
    "n_predict": Mapped("`max_tokens`", _predict),
    "max_new_tokens": _renamed("max_tokens"),
    "repeat_last_n": Mapped("`repetition_context_size`", _look_back),
    "penalty_last_n": Mapped("`repetition_context_size`", _look_back),
    "rep_pen_range": Mapped("`repetition_context_size`", _range),
    "repetition_penalty_range": Mapped("`repetition_context_size`", _range),
    # After those: a range of 0 means none, whatever the penalty.
    "repeat_penalty": _renamed("repetition_penalty"),
    "rep_pen": _renamed("repetition_penalty"),
    "grammar_string": _renamed("grammar"),
    "format": Mapped("`response_format`", _format),
    "json_schema": Mapped("`response_format`", _schema),
    "stopping_strings": _renamed("stop"),
    "stop_sequences": _renamed("stop"),
    "stop_sequence": _renamed("stop"),
    "sampler_seed": Mapped("`seed`", _seed),
    "ban_eos_token": _renamed("ignore_eos"),
    "do_sample": Mapped("`temperature` 0 when false", _do_sample),
}
"""Of both endpoints."""

OF_TEMPLATES: dict[str, Mapped] = {
    "think": Mapped(f"`{TEMPLATE}` or `reasoning_effort`", _think),
    "thinking": Mapped(f"`{TEMPLATE}` or `reasoning_effort`", _think),
    "reasoning": Mapped(f"`{TEMPLATE}` or `reasoning_effort`", _reasoning),
    "enable_thinking": Mapped(f"`{TEMPLATE}`", _enable_thinking),
    "thinking_budget": Mapped(f"`{TEMPLATE}`", lambda value: _template(thinking_budget=value)),
}
"""A completion has no template, and they change nothing there."""

OF_ANSWERS: dict[str, Mapped] = {
    "n_probs": Mapped("`logprobs` and `top_logprobs`", _chat_probabilities),
}
"""Of chats. A completion counts its log probabilities otherwise."""

_IGNORED: dict[str, Fate] = dict.fromkeys(CHANGES_NOTHING, Ignored())

CHAT_FATES: Mapping[str, Fate] = {
    **_IGNORED,
    **NOT_SUPPORTED,
    **MEANS_THE_SAME,
    **OF_TEMPLATES,
    **OF_ANSWERS,
    "add_special_tokens": Neutral((False,), "chat templates write their own"),
    "echo": Neutral((False,), "use /v1/completions"),
    "best_of": Neutral((1,), "use `n`"),
}

TEXT_FATES: Mapping[str, Fate] = {
    **_IGNORED,
    **NOT_SUPPORTED,
    **MEANS_THE_SAME,
    **dict.fromkeys([*OF_TEMPLATES, TEMPLATE, "reasoning_effort"], Ignored()),
    "add_special_tokens": Neutral((True,), "the tokenizer adds what its model was made with"),
    "n_probs": Mapped("`logprobs`", _text_probabilities),
}

EMBEDDING_FATES: Mapping[str, Fate] = {
    **_IGNORED,
    "add_special_tokens": Neutral((True,), "the tokenizer adds what its model was made with"),
    "normalize": Neutral((True,), "vectors have length 1"),
    "embd_normalize": Neutral((2,), "vectors have length 1"),
    "truncate_prompt_tokens": Neutral((-1,), "an input that is too long is refused"),
    "options": Nested(frozenset(), {}),
}
