"""supervisor.models.estimate: what mlx-lm allocates, told from the files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from supervisor.models.estimate import Estimate, EstimateError, estimate
from supervisor.models.estimate.architectures import FAMILIES, architecture
from supervisor.models.estimate.facts import Facts
from supervisor.models.estimate.model import (
    CHARGED_TOKENS,
    GRAMMARS,
    GROWTH,
    LEAST_SCORED,
    LEAST_STEP,
    MAX_TOKENS,
    PREFILL_BATCH,
    PREFILL_STEP,
    PROCESS,
    SCORED_PART,
    TOKENIZER,
    rounded,
    with_freed,
)
from supervisor.models.estimate.weights import tensors
from supervisor.models.jsonfiles import MAX_BYTES
from supervisor.wire.frames import GRAMMAR_BYTES
from tests.helpers.architectures import SPECIAL, config_of, make_bare
from tests.helpers.published import published, write_headers, write_safetensors
from tests.helpers.tiny_llama import ARCHITECTURES, make_model
from worker.demo import MODEL_DIR
from worker.engine.mlx_lm_compat import load_lazily, make_prompt_cache

PUBLISHED = {entry["name"]: entry for entry in published()}
SIZED = {name: entry for name, entry in PUBLISHED.items() if "published_bytes" in entry}

# Computed by hand from the published configurations, not by the code under test:
# (bytes of one more token of a long sequence, what it costs above that until the windows are
# full, bytes of a sequence of any length).
BY_HAND = {
    # 80 layers x 2 (K and V) x 8 heads x 128 (8192 / 64) x 4 bytes (float32)
    "mattshumer/Reflection-Llama-3.1-70B": (655_360, 0, 0),
    # 40 x 2 x 8 x 128 x 2
    "Qwen3-14B-MLX-4bit": (163_840, 0, 0),
    # 28 x 2 x 8 x 128 x 2
    "Qwen3-1.7B-MLX-bf16": (114_688, 0, 0),
    # 80 x 2 x 64 x 128 x 2: every head has its own keys
    "Qwen/Qwen-72B": (2_621_440, 0, 0),
    # 56 x 2 x 8 x 128 (6144 / 48) x 2
    "WizardLM-2-8x22B": (229_376, 0, 0),
    # 24 x 2 x 8 x 64 (1024 / 16) x 4 (float32)
    "granite-3.1-1b-a400m-instruct (float32)": (98_304, 0, 0),
    # a layer: 2 x 16 x 128 x 2 = 8192; of 62, the 6th, 12th ... 60th see everything: 10;
    # the other 52 see 1024 tokens
    "google/medgemma-27b-it": (81_920, 425_984, 0),
    # a layer: 2 x 8 x 64 x 2 = 2048; 12 of 24 see everything, 12 see 128 tokens
    "openai/gpt-oss-20b, MXFP4-Q8": (24_576, 24_576, 0),
    # 61 x (512 + 64 + 128 (indexer's keys) + 128 (its values, unused)) x 2
    "mlx-community/DeepSeek-V3.2-4bit": (101_504, 0, 0),
    # 4 of 56 layers attend: 4 x 2 x 8 x 128 x 2 = 16384. 27 are Mamba: the convolution keeps
    # 3 x (128 x 80 + 2 x 8 x 128 = 12288) x 2 = 73728, the state 128 x 80 x 128 x 4 = 5242880
    "mlx-community/NVIDIA-Nemotron-Nano-9B-v2-4bits": (16_384, 0, 27 * 5_316_608),
    # 6 of 52 attend: 6 x 2 x 2 x 128 x 2 = 6144. 23 are Mamba: 3 x (64 x 64 + 2 x 8 x 128 = 6144)
    # x 2 = 36864, and 64 x 64 x 128 x 4 = 2097152
    "mlx-community/NVIDIA-Nemotron-3-Nano-30B-A3B-MLX-4Bit": (6_144, 0, 23 * 2_134_016),
    # 6 of 24 attend: 6 x 2 x 2 x 256 x 2 = 12288. 18 are linear: 3 x (2 x 2048 + 2048) x 2 =
    # 36864, and 16 x 128 x 128 x 4 = 1048576
    "Jev-Style-Qwen3.5-2B-Decision-MLX-bf16": (12_288, 0, 18 * 1_085_440),
    # 8 of 32 attend: 8 x 2 x 4 x 256 x 2 = 32768. 24 are linear: 3 x (2 x 2048 + 4096) x 2 =
    # 49152, and 32 x 128 x 128 x 4 = 2097152
    "mlx-community/Qwen3.5-9B-MLX-8bit": (32_768, 0, 24 * 2_146_304),
    # 61 x (512 + 64) x 2
    "deepseek-ai/DeepSeek-V3": (70_272, 0, 0),
    # 47 x (512 + 64) x 2
    "zai-org/GLM-4.7-Flash": (54_144, 0, 0),
}


def test_enough_published_models_of_every_kind() -> None:
    kinds = {entry["config"]["model_type"] for entry in SIZED.values()}
    assert len(SIZED) >= 12
    assert {"llama", "mixtral", "deepseek_v32", "gemma3", "nemotron_h", "qwen3_5"} <= kinds
    assert BY_HAND.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", SIZED)
def test_weights_are_those_published(name: str, tmp_path: Path) -> None:
    write_headers(tmp_path, SIZED[name])

    told = estimate(tmp_path)

    assert architecture(Facts(SIZED[name]["config"])) in FAMILIES
    assert told.weights == pytest.approx(SIZED[name]["published_bytes"], rel=0.05)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", SIZED)
def test_a_load_is_charged_little_more_than_the_weights(
    name: str, fused: bool, tmp_path: Path
) -> None:
    write_headers(tmp_path, SIZED[name])

    told = estimate(tmp_path, fused=fused)

    charged = told.loaded + told.growth + told.room(told.context)
    assert told.weights < charged <= 1.10 * told.weights + 1_200_000_000


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_longest_sequence_is_the_longest_that_fits(name: str, tmp_path: Path) -> None:
    write_tensors(tmp_path, PUBLISHED[name]["config"], dtype=PUBLISHED[name]["dtype"])
    told = estimate(tmp_path, fused=False)

    def needed(tokens: int) -> int:
        copy = max(cache.bytes_for(tokens) for cache in told.caches)
        step = told.prefill_transient(tokens, step=LEAST_STEP)
        return told.kv(tokens) + with_freed(copy + step + told.logits)

    for tokens in (256, 2048, 65536):
        size = needed(tokens)
        assert told.longest(size) == told.longest(needed(tokens + 256) - 1) == tokens
        assert told.longest(size - 1) == tokens - 256
    assert told.longest(0) == 0


def test_where_nothing_grows_no_sequence_is_too_long(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("mamba"))
    assert estimate(tmp_path).longest(10**9) == MAX_TOKENS


@pytest.mark.parametrize("name", PUBLISHED)
def test_kv_bytes_are_those_computed_by_hand(name: str, tmp_path: Path) -> None:
    entry = PUBLISHED[name]
    write_tensors(tmp_path, entry["config"], dtype=entry["dtype"])

    told = estimate(tmp_path)

    fixed = sum(cache.fixed for cache in told.caches)
    figures = (unbounded(told), told.kv_window_bytes_per_token, fixed)
    assert figures == BY_HAND[name]


@pytest.mark.parametrize("name", SPECIAL)
def test_kv_and_weights_are_what_mlx_lm_allocates(name: str, tmp_path: Path) -> None:
    model = make_bare(tmp_path / "model", config_of(name))

    told = estimate(tmp_path / "model")

    assert architecture(Facts(config_of(name))) in FAMILIES
    assert told.weights == nbytes_of(model)
    # Past every window: mlx-lm keeps exactly that much then, and 256 tokens at a time elsewhere.
    assert told.kv(301) == cached_nbytes(model, 300, 1)


@pytest.mark.parametrize("name", ["mamba", "falcon_h1", "granitemoehybrid", "lfm2"])
def test_states_in_half_precision(name: str, tmp_path: Path) -> None:
    import mlx.core as mx

    model = make_bare(tmp_path / "model", config_of(name), dtype=mx.bfloat16)

    assert estimate(tmp_path / "model").kv(301) == cached_nbytes(model, 300, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_of_a_model_on_disk_are_what_mlx_lm_loads(name: str, tmp_path: Path) -> None:
    from mlx_lm.utils import load

    make_model(tmp_path, name)
    model = load(str(tmp_path), lazy=True)[0]

    assert estimate(tmp_path).weights == nbytes_of(model)


def test_a_batch_is_padded_to_its_longest(tmp_path: Path) -> None:
    from mlx_lm.generate import BatchGenerator

    model = make_bare(tmp_path / "model", config_of("llama"))
    generator: Any = BatchGenerator(model, stop_tokens=[], prefill_step_size=256)
    generator.close()
    generator.insert([[1] * 300, [2] * 30, [3] * 5], max_tokens=[8] * 3)
    generator.next()  # 256 tokens of the longest
    generator.next()
    generator.next()
    held = sum(cache.nbytes for cache in generator._generation_batch.prompt_cache)

    assert len(generator._generation_batch.uids) == 3
    assert estimate(tmp_path / "model").kv(308, sequences=3) == held


def test_the_charge_covers_the_peak_of_a_batch(tmp_path: Path) -> None:
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator

    # What is transient is the larger part: there is one layer of it, of however many.
    model = make_bare(tmp_path / "model", {**config_of("llama"), "num_hidden_layers": 2})
    mx.eval(model.parameters())
    before = mx.get_active_memory() - nbytes_of(model)
    mx.reset_peak_memory()
    generator: Any = BatchGenerator(model, stop_tokens=[], prefill_step_size=PREFILL_STEP)
    generator.close()
    generator.insert([[row] * 600 for row in range(4)], max_tokens=[4] * 4)
    for _ in range(5):
        generator.next()

    told = estimate(tmp_path / "model", fused=False)
    fixed = told.loaded - told.weights + told.growth
    assert mx.get_peak_memory() - before <= told.total(604, 4) - fixed


def test_windows_hold_more_while_a_prompt_is_prefilled(tmp_path: Path) -> None:
    model = make_bare(tmp_path / "model", config_of("gemma3_text"))

    told = estimate(tmp_path / "model")
    at_rest, in_prefill = cached_nbytes(model, 300, 200, 1), cached_nbytes(model, 300, 200)

    assert told.kv(501) == at_rest < in_prefill
    # 199 more than the window of each of the near layers, which is less than a whole step.
    assert in_prefill - at_rest == 199 * told.kv_window_bytes_per_token
    assert told.kv(501) + told.transient(501) >= in_prefill


def test_the_demos_window_is_counted() -> None:
    import mlx.core as mx

    told = estimate(MODEL_DIR)
    model = load_lazily(str(MODEL_DIR))[0]
    caches = make_prompt_cache(model)
    for tokens in (3000, 1):
        model(mx.ones((1, tokens), mx.int32), cache=caches)
    assert told.kv(3001) == sum(cache.nbytes for cache in caches)
    assert told.kv(3001) < 3001 * sum(cache.per_token for cache in told.caches)


def test_the_charge_has_every_part(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("llama"), dtype="bfloat16")
    told = estimate(tmp_path, fused=True)
    # 2 x 2 heads x 24 x 2 bytes in each of 8 layers; 1,000 tokens take 1,024.
    one_layer = 2 * 2 * 24 * 2 * 1024
    # 64 wide, and gate, up and product of 96, for each of 512 tokens.
    prefill = 512 * (64 + 3 * 96) * 2
    # 48 logits of each in float32, four times; all of them, since they are few.
    scored = 512 * 48 * 4 * 4
    # 48 logits, and in float32 twice.
    logits = 48 * (2 + 4 + 4)

    assert told.kv(1000) == 8 * one_layer
    assert told.transient(1000) == (one_layer + scored + logits) * 5 // 4
    assert told.transient(1000, 3) == 3 * (one_layer + scored + logits) * 5 // 4
    assert told.transient(1000, 20) == (20 * (one_layer + logits) + 8 * scored) * 5 // 4
    assert scored > prefill
    assert told.prefill_transient(10) == prefill * 10 // 512
    assert told.loaded == told.weights + PROCESS + 48 * TOKENIZER
    assert told.growth == GROWTH + 48 * GRAMMARS + GRAMMAR_BYTES
    assert told.room(1000) == 8 * one_layer + told.transient(1000)
    assert told.room(100_000) == told.room(CHARGED_TOKENS)
    assert told.total(1000, 3) == (
        told.loaded + told.growth + 24 * one_layer + told.transient(1000, 3)
    )
    assert told.context == 4096


def test_what_scores_prompts_is_charged_where_it_takes_more_than_a_step(tmp_path: Path) -> None:
    write_tensors(tmp_path, {**config_of("llama"), "vocab_size": 100_000}, dtype="bfloat16")
    told = estimate(tmp_path, fused=True)

    # A part has room for 83 tokens; never more are computed than a prompt has,
    assert told.scoring_transient(1000) == told.scoring_transient(1000, 4) == 4 * SCORED_PART
    assert told.scoring_transient(10) == 4 * 10 * 100_000 * 4
    # and never fewer than eight of each prompt.
    write_tensors(tmp_path, {**config_of("llama"), "vocab_size": 200_000}, dtype="bfloat16")
    told = estimate(tmp_path, fused=True)
    assert told.scoring_transient(1000, 20) == 4 * 8 * 8 * 200_000 * 4
    assert told.prefill_transient(1000, 20) < told.scoring_transient(1000, 20)
    cached = 20 * max(cache.bytes_for(1024) for cache in told.caches)
    whole = cached + told.scoring_transient(1000, 20) + 20 * told.logits
    assert told.transient(1000, 20) == whole * 5 // 4


def test_scores_are_charged_where_attention_is_not_fused(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("llama"))
    unfused, fused = (estimate(tmp_path, fused=fused) for fused in (False, True))
    # heads x step x context x float32
    assert unfused.transient(1024) - fused.transient(1024) == 4 * 512 * 1024 * 4 * 5 // 4

    write_tensors(tmp_path, config_of("deepseek_v3"))
    assert estimate(tmp_path, fused=True).scores == 4 * 4


def test_the_prefill_step_is_the_workers() -> None:
    from worker.engine import kv_cost, slices

    assert (PREFILL_BATCH, PREFILL_STEP) == (slices.PREFILL_BATCH, slices.PREFILL_STEP)
    assert (SCORED_PART, LEAST_SCORED) == (kv_cost.PART_BYTES, kv_cost.LEAST_PART)


def test_rounding_is_to_steps_of_256() -> None:
    assert [rounded(tokens) for tokens in (0, 1, 256, 257)] == [0, 256, 256, 512]


def test_the_families_are_mlx_lms_modules() -> None:
    import importlib.util

    from mlx_lm.utils import MODEL_REMAPPING

    for name in FAMILIES:
        assert importlib.util.find_spec(f"mlx_lm.models.{name}"), name
    for name, module in MODEL_REMAPPING.items():
        if module in FAMILIES:
            assert architecture(Facts({"model_type": name})) == module


def test_an_unknown_architecture_is_taken_for_full_attention(tmp_path: Path) -> None:
    config = {**config_of("llama"), "model_type": "next_years_model"}
    write_tensors(tmp_path, config)
    told = estimate(tmp_path)

    assert unbounded(told) == 8 * 2 * 2 * 24 * 4


def test_an_unknown_architecture_without_the_usual_fields_has_weights_alone(
    tmp_path: Path,
) -> None:
    write_tensors(tmp_path, {"model_type": "next_years_model"})
    told = estimate(tmp_path)
    assert (told.weights, told.kv(1000)) == (64, 0)


def test_what_a_config_leaves_out_is_mlx_lms_default(tmp_path: Path) -> None:
    # The text_config of google/gemma-3-4b-it says nothing of heads, nor of their width.
    config = config_of("gemma3")
    for name in (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sliding_window_pattern",
    ):
        config.pop(name, None)
        config["text_config"].pop(name, None)
    model = make_bare(tmp_path / "model", config)

    assert estimate(tmp_path / "model").kv(301) == cached_nbytes(model, 300, 1)


def test_parts_that_mlx_lm_throws_away_are_not_charged(tmp_path: Path) -> None:
    names = ("model.embed_tokens.weight", "vision_tower.embed.weight", "model.visual.0.weight")
    header = {
        name: {"dtype": "BF16", "shape": [10, 10], "data_offsets": [200 * i, 200 * i + 200]}
        for i, name in enumerate(names)
    }
    write_config(tmp_path, config_of("llama"))
    write_safetensors(tmp_path / "model.safetensors", header, 600)
    assert estimate(tmp_path).weights == 200


def test_files_that_mlx_lm_does_not_load_are_not_charged(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("llama"))
    alone = estimate(tmp_path).weights
    header = {"all": {"dtype": "F32", "shape": [99], "data_offsets": [0, 396]}}
    write_safetensors(tmp_path / "consolidated.safetensors", header, 396)
    assert estimate(tmp_path).weights == alone
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", header, 396)
    assert estimate(tmp_path).weights == alone + 396


@pytest.mark.parametrize(
    ("quantization", "factor"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 2),
        ({"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, 1),
        ({"quant_method": "fp8", "weight_block_size": [32, 32]}, 2),
        ({"quant_method": "mxfp8"}, 1),
        (None, 2),
    ],
)
def test_fp8_becomes_bfloat16_unless_mlx_can_compute_with_it(
    quantization: dict[str, Any] | None, factor: int, tmp_path: Path
) -> None:
    header = {
        "model.layers.0.mlp.up_proj.weight": {
            "dtype": "F8_E4M3",
            "shape": [8, 8],
            "data_offsets": [0, 64],
        }
    }
    write_config(tmp_path, {**config_of("deepseek_v3"), "quantization_config": quantization})
    write_safetensors(tmp_path / "model.safetensors", header, 64)
    assert estimate(tmp_path).weights == 64 * factor


GOOD = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x04\0\0\0", "not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        ((MAX_BYTES + 1).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{]", "not JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "does not hold a JSON object"),
        (b"\x09\0\0\0\0\0\0\0" + b'{"w": {}}', "broken at 'w'"),
    ],
)
def test_a_broken_header_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(EstimateError, match=said):
        list(tensors(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]},
        {"dtype": 4, "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        7,
    ],
)
def test_a_broken_entry_is_told(entry: object, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": entry}, 8)
    with pytest.raises(EstimateError, match="broken at 'w'"):
        list(tensors(tmp_path / "model.safetensors"))


def test_a_file_that_is_cut_short_is_told(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", GOOD, 7)
    with pytest.raises(EstimateError, match="cut short"):
        list(tensors(tmp_path / "model.safetensors"))
    write_safetensors(tmp_path / "model.safetensors", GOOD, 8)
    assert [tensor.size for tensor in tensors(tmp_path / "model.safetensors")] == [8]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 10**6}, "1000000 layers"),
        ({"num_hidden_layers": "8"}, "num_hidden_layers is not a usable number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is not a usable number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"head_dim": -1}, "head_dim is not a usable number"),
        ({"head_dim": 10**10}, "head_dim is not a usable number"),
        ({"layer_types": ["full_attention"] * 10_001}, "layer_types has 10001 entries"),
        ({"layer_types": ["sliding_attention"] * 8}, "sliding_window is missing"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_tensors(tmp_path, {**config_of("llama"), **change})
    with pytest.raises(EstimateError, match=said):
        estimate(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "not JSON"), (b"[]", "JSON object"), (b"[" * 100_000, "not JSON"), (b"\xff", "JSON")],
)
def test_a_broken_config_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("llama"))
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(EstimateError, match=said):
        estimate(tmp_path)


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(EstimateError, match="cannot be read: no such file"):
        estimate(tmp_path)
    write_config(tmp_path, config_of("llama"))
    with pytest.raises(EstimateError, match="no model"):
        estimate(tmp_path)


def unbounded(told: Estimate) -> int:
    """Bytes of one more token of a long sequence: in the layers that keep every token."""
    return sum(cache.per_token for cache in told.caches if cache.window is None)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def write_tensors(folder: Path, config: dict[str, Any], *, dtype: str = "float32") -> None:
    """A folder with this config and one small matrix of this type."""
    write_config(folder, config)
    name, item = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}[dtype]
    header = {"embed": {"dtype": name, "shape": [4, 4], "data_offsets": [0, 16 * item]}}
    write_safetensors(folder / "model.safetensors", header, 16 * item)


def nbytes_of(model: Any) -> int:
    from mlx.utils import tree_flatten

    flat: Any = tree_flatten(model.parameters())
    return sum(array.nbytes for _, array in flat)


def caches_after(model: Any, *chunks: int) -> list[Any]:
    """mlx-lm's caches after prompts of that many tokens, one after the other. Their shapes: nothing
    is computed."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    caches: list[Any] = make_prompt_cache(model)
    for tokens in chunks:
        model(mx.ones((1, tokens), mx.int32), cache=caches)
    return caches


def cached_nbytes(model: Any, *chunks: int) -> int:
    return sum(cache.nbytes for cache in caches_after(model, *chunks))


def test_an_estimate_is_plain_data(tmp_path: Path) -> None:
    write_tensors(tmp_path, config_of("lfm2"))
    told = estimate(tmp_path)
    assert told == estimate(tmp_path)
    assert isinstance(told, Estimate)
