"""gateway.openai.local_servers: other servers' parameters, on our endpoints and in the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.openai.chat import CHAT_BODY
from gateway.openai.completions import COMPLETION_BODY
from gateway.openai.embeddings import EMBEDDING_BODY
from gateway.openai.fates import Ignored, Mapped, Nested, Neutral
from gateway.openai.local_servers import (
    CHANGES_NOTHING,
    CHAT_FATES,
    MEANS_THE_SAME,
    NOT_SUPPORTED,
    OF_ANSWERS,
    OF_TEMPLATES,
    TEXT_FATES,
)
from gateway.openai.validation import Body
from supervisor.errors import BulkheadError, InvalidType, InvalidValue, UnsupportedParameter
from tests.helpers.openai_bodies import ENDPOINTS, SECRET, chat, completion, refusal

BODIES = {"chat": CHAT_BODY, "text": COMPLETION_BODY, "embedding": EMBEDDING_BODY}
API = Path(__file__).parents[4] / "docs" / "api.md"


def test_no_parameter_has_two_fates() -> None:
    tables = [CHANGES_NOTHING, NOT_SUPPORTED, MEANS_THE_SAME, OF_TEMPLATES, OF_ANSWERS]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_parameter_of_our_own_has_a_fate(body: Body[Any]) -> None:
    own = {*body.kind.__struct_fields__, *body.harmless, *body.neutral}
    assert not own & body.fates.keys()


@ENDPOINTS
@pytest.mark.parametrize("name", CHANGES_NOTHING)
@pytest.mark.parametrize("value", [0, "x", {"a": [1]}, True])
def test_what_changes_nothing_is_accepted(ask: Any, name: str, value: Any) -> None:
    assert ask(**{name: value}) == ask()
    assert ask(options={name: value}) == ask()


@ENDPOINTS
@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_asks_for_nothing_is_accepted_and_the_rest_refused(ask: Any, name: str) -> None:
    fate = (CHAT_FATES if ask is chat else TEXT_FATES)[name]
    for value in fate.values if isinstance(fate, Neutral) else ():
        assert ask(**{name: value}) == ask()
    for other in (SECRET, 0.37, [SECRET], {"a": SECRET}):
        error = refusal(ask, {name: other})
        assert type(error) is UnsupportedParameter
        assert error.param == name


def test_what_is_ignored_is_named() -> None:
    raw = {"num_ctx": 4096, "options": {"num_gpu": 1, "top_k": 3}, "mirostat": 0, "user": "me"}
    assert CHAT_BODY.ignored(raw) == ("num_ctx", "mirostat", "options.num_gpu")
    assert CHAT_BODY.ignored({"think": True}) == ()
    assert COMPLETION_BODY.ignored({"prompt": "x", "think": True}) == ("think",)
    assert EMBEDDING_BODY.ignored({"input": "x", "keep_alive": "5m"}) == ("keep_alive",)


@ENDPOINTS
@pytest.mark.parametrize(
    ("sent", "own"),
    [
        ({"num_predict": 7}, {"max_tokens": 7}),
        ({"num_predict": -1}, {}),
        ({"num_predict": -2}, {}),
        ({"n_predict": 7, "max_tokens": 5}, {"max_tokens": 5}),
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        ({"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
        (
            {"rep_pen": 1.1, "rep_pen_range": 0},
            {"repetition_penalty": 1.1, "repetition_context_size": 4096},
        ),
        ({"repeat_last_n": 64}, {"repetition_context_size": 64}),
        ({"repeat_last_n": -1}, {"repetition_context_size": 4096}),
        ({"repeat_penalty": 1.2, "repeat_last_n": 0}, {"repetition_penalty": 1}),
        ({"stopping_strings": ["a"], "stop": ["a"]}, {"stop": ["a"]}),
        ({"stop_sequence": ["a"]}, {"stop": ["a"]}),
        ({"sampler_seed": 5}, {"seed": 5}),
        ({"sampler_seed": -1}, {}),
        ({"ban_eos_token": True}, {"ignore_eos": True}),
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": True}, {}),
        (
            {"options": {"num_predict": 9, "temperature": 0.5, "stop": ["x"], "seed": 3}},
            {"max_tokens": 9, "temperature": 0.5, "stop": ["x"], "seed": 3},
        ),
        ({"options": {"seed": -1, "repeat_penalty": 1.3}}, {"repetition_penalty": 1.3}),
    ],
)
def test_what_means_the_same_becomes_our_own(
    ask: Any, sent: dict[str, Any], own: dict[str, Any]
) -> None:
    assert ask(**sent) == ask(**own)


@pytest.mark.parametrize(
    ("sent", "own"),
    [
        ({"think": False}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            {"think": "high"},
            {
                "reasoning_effort": "high",
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
            },
        ),
        ({"think": "none"}, {"reasoning_effort": "none"}),
        ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"thinking": True}, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 99}},
            {
                "chat_template_kwargs": {
                    "enable_thinking": True,
                    "thinking": True,
                    "thinking_budget": 99,
                }
            },
        ),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        (
            {"reasoning": {"enabled": False}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (
            {"reasoning": "off"},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        ({"thinking_budget": 5}, {"chat_template_kwargs": {"thinking_budget": 5}}),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        (
            {"format": {"type": "array"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "array"}},
                }
            },
        ),
        (
            {"json_schema": {"const": None}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"const": None}},
                }
            },
        ),
        ({"n_probs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"n_probs": 0}, {}),
    ],
)
def test_what_means_the_same_in_a_chat(sent: dict[str, Any], own: dict[str, Any]) -> None:
    assert chat(**sent) == chat(**own)
    assert chat(**sent) != chat() or not own


def test_probabilities_of_a_completion() -> None:
    assert completion(n_probs=3) == completion(logprobs=3)
    assert completion(n_probs=0) == completion()


@pytest.mark.parametrize(
    ("members", "kind", "param"),
    [
        ({"repeat_penalty": 11}, InvalidValue, "repeat_penalty"),
        ({"num_predict": "x"}, InvalidType, "num_predict"),
        ({"num_predict": 0}, InvalidValue, "max_tokens"),
        ({"repeat_last_n": 5000}, InvalidValue, "repeat_last_n"),
        ({"stopping_strings": ["a", ""]}, InvalidValue, "stopping_strings[1]"),
        ({"options": {"temperature": 3}}, InvalidValue, "options.temperature"),
        ({"options": {"frobnicate": 1}}, UnsupportedParameter, "options.frobnicate"),
        ({"think": 5}, InvalidType, "think"),
        ({"reasoning": {"exclude": True}}, InvalidType, "reasoning"),
        ({"format": "xml"}, InvalidType, "format"),
    ],
)
def test_a_bad_value_is_told_in_the_clients_words(
    members: dict[str, Any], kind: type[BulkheadError], param: str
) -> None:
    error = refusal(chat, members)
    assert type(error) is kind
    assert error.param == param


WEB_UI: dict[str, Any] = {  # llama.cpp's, as it sends its defaults
    "reasoning_format": "auto", "temperature": 0.8, "max_tokens": -1, "dynatemp_range": 0,
    "dynatemp_exponent": 1, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "xtc_probability": 0,
    "xtc_threshold": 0.1, "typ_p": 1, "repeat_last_n": 64, "repeat_penalty": 1,
    "presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75,
    "dry_allowed_length": 2, "dry_penalty_last_n": -1, "timings_per_token": True,
    "return_progress": True, "samplers": "edkypmxt", "cache_prompt": True, "n_probs": 0,
    "post_sampling_probs": False, "backend_sampling": False,
}  # fmt: skip
OPEN_WEBUI: dict[str, Any] = {
    "num_ctx": 4096, "num_keep": 24, "repeat_penalty": 1.1, "repeat_last_n": 64, "mirostat": 0,
    "mirostat_eta": 0.1, "mirostat_tau": 5, "tfs_z": 1, "min_p": 0.05, "top_k": 40, "think": True,
    "keep_alive": "5m", "use_mmap": True, "use_mlock": False, "num_thread": 4, "num_gpu": 1,
    "num_batch": 512, "logit_bias": {}, "seed": 5,
}  # fmt: skip
VLLM: dict[str, Any] = {
    "min_tokens": 1, "ignore_eos": False, "skip_special_tokens": True, "priority": 0,
    "include_stop_str_in_output": False, "spaces_between_special_tokens": True, "cache_salt": "x",
    "stop_token_ids": [], "add_generation_prompt": True, "use_beam_search": False,
    "chat_template_kwargs": {"enable_thinking": False}, "bad_words": [], "length_penalty": 1,
}  # fmt: skip
SILLY_TAVERN: dict[str, Any] = {
    "max_new_tokens": 100, "max_tokens": 100, "typical_p": 1, "typical": 1, "sampler_seed": -1,
    "repetition_penalty": 1.1, "rep_pen": 1.1, "rep_pen_range": 0, "repetition_penalty_range": 0,
    "skew": 0, "min_length": 0, "add_bos_token": True, "smoothing_factor": 0, "smoothing_curve": 1,
    "dry_multiplier": 0, "dry_sequence_breakers": "[]", "stopping_strings": ["\nYou:"],
    "stop": ["\nYou:"], "truncation_length": 8192, "ban_eos_token": False, "nsigma": 0,
    "skip_special_tokens": True, "include_reasoning": True, "top_a": 0, "tfs": 1,
    "mirostat_mode": 0, "custom_token_bans": "", "banned_strings": [], "guidance_scale": 1,
    "negative_prompt": "", "grammar_string": "", "do_sample": True, "num_beams": 1,
    "penalty_alpha": 0, "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "min_keep": 0,
    "adaptive_target": -0.01, "adaptive_decay": 0.9, "early_stopping": False, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "dynamic_temperature": False, "temperature_last": True,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5],
}  # fmt: skip


@pytest.mark.parametrize("sent", [WEB_UI, OPEN_WEBUI, VLLM, SILLY_TAVERN])
def test_what_other_servers_clients_send_by_default_is_taken(sent: dict[str, Any]) -> None:
    assert chat(**sent).max_tokens in (None, 100)
    assert completion(**sent)


# ── the docs ─────────────────────────────────────────────────────────────────────────────────────


def _section(title: str) -> str:
    text = API.read_text()
    begin = text.index(f"\n## {title}\n")
    return text[begin : text.index("\n## ", begin + 1)]


def _listed(section: str, opening: str) -> list[str]:
    """The names in the paragraph after the one that begins like that."""
    after = section[section.index(opening) :]
    return re.findall(r"`([^`]+)`", after.split("\n\n")[1])


def test_the_docs_list_what_changes_nothing() -> None:
    section = _section("Settings of other local servers")
    assert _listed(section, "These change nothing") == sorted(CHANGES_NOTHING)


def test_the_docs_list_what_is_mapped() -> None:
    section = _section("Settings of other local servers")
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \|$", section, re.MULTILINE)
    tables = {**MEANS_THE_SAME, **OF_TEMPLATES, **OF_ANSWERS}
    mapped = {name: fate.to for name, fate in tables.items() if isinstance(fate, Mapped)}
    told = dict(rows)
    nested = {name for name, fate in tables.items() if isinstance(fate, Nested)}
    for name in mapped:
        assert told.get(name, "").startswith(mapped[name]), name
    assert nested <= set(told)


def test_the_docs_list_what_is_refused() -> None:
    section = _section("Settings of other local servers")
    assert _listed(section, "These would change the answer") == sorted(NOT_SUPPORTED)


def test_ignored_everywhere_means_ignored_for_embeddings_too() -> None:
    for name in CHANGES_NOTHING:
        assert isinstance(EMBEDDING_BODY.fates[name], Ignored)


def test_a_schema_of_other_servers_is_a_response_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for ask in (chat, completion):
        asked = ask(json_schema=schema)
        assert asked == ask(
            response_format={"type": "json_schema", "json_schema": {"schema": schema}}
        )
        assert asked == ask(format=schema)
        assert asked != ask()


def test_a_completions_parameter_that_asks_for_nothing_may_come_with_a_chat() -> None:
    assert chat(best_of=1, echo=False) == chat()
    assert refusal(chat, {"best_of": 2}).param == "best_of"
    usage = {"include_usage": True}
    assert chat(stream_options={**usage, "continuous_usage_stats": True}) == chat()
