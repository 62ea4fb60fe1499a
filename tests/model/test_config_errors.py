"""A configuration that is wrong: every error names the file, the field, the layer, and what would be valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv4.runtime.errors import ConfigError
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.presets import TINY


def refused(values: dict[str, Any], source: str = "some/config.json") -> str:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(values, source=source)
    message = str(caught.value)
    assert message.startswith(source)
    return message


CONTRADICTIONS = [
    ({"compress_ratios": [0, 0, 4, 128, 4]}, "compress_ratios: found 5 entries; valid: 6, one a layer"),
    ({"compress_ratios": [0, 0, 4, 128, 4, 0, 0, 0]}, "compress_ratios: found 8 entries; valid: 6"),
    ({"compress_ratios": [0, 0, 4, 64, 4, 0]}, "compress_ratios[3] (layer 3): found 64; valid: 0 (window only)"),
    ({"compress_ratios": [0, 0, 4, 128, 4, 4]}, "compress_ratios[5] (layer 5, MTP): found 4; valid: 0"),
    ({"compress_ratios": [0, 0, -4, 128, 4, 0]}, "compress_ratios[2] (layer 2): found -4"),
    ({"compress_ratios": [0, 0, 4, 128, 4.0, 0]}, "compress_ratios[4] (layer 4): found 4.0; valid: a valid integer"),
    ({"compress_ratios": "0,0,4"}, "compress_ratios: found '0,0,4'"),
    ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers: found 2; valid: 0 or 1"),
    ({"num_hash_layers": 6}, "num_hash_layers: found 6; valid: 0 to 5"),
    ({"num_hash_layers": -1}, "num_hash_layers: found -1; valid: 0 or more"),
    ({"o_groups": 3}, "o_groups: found 3; valid: a divisor of num_attention_heads 8"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim: found 63; valid: even and less than head_dim 512"),
    ({"qk_rope_head_dim": 512}, "qk_rope_head_dim: found 512; valid: even and less than head_dim 512"),
    ({"index_head_dim": 96}, "index_head_dim: found 96; valid: a power of two"),
    ({"index_head_dim": 32}, "index_head_dim: found 32; valid: a power of two (its Hadamard rotation) not less than"),
    ({"num_experts_per_tok": 17}, "num_experts_per_tok: found 17; valid: 1 to n_routed_experts 16"),
    ({"n_shared_experts": 2}, "n_shared_experts: found 2; valid: 1"),
    ({"num_key_value_heads": 8}, "num_key_value_heads: found 8; valid: 1"),
    ({"scoring_func": "sigmoid"}, "scoring_func: found 'sigmoid'; valid: 'sqrtsoftplus'"),
    ({"topk_method": "greedy"}, "topk_method: found 'greedy'; valid: 'noaux_tc'"),
    ({"norm_topk_prob": False}, "norm_topk_prob: found False; valid: True"),
    ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'; valid: 'silu'"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings: found True; valid: False"),
    ({"attention_bias": True}, "attention_bias: found True; valid: False"),
    ({"hidden_size": 0}, "hidden_size: found 0; valid: a number > 0"),
    ({"hidden_size": True}, "hidden_size: found True"),
    ({"hidden_size": "512"}, "hidden_size: found '512'; valid: a valid integer"),
    ({"hidden_size": 500}, "hidden_size: found 500; valid: a multiple of 32"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps: found 0.0; valid: a number > 0"),
    ({"swiglu_limit": -1.0}, "swiglu_limit: found -1.0; valid: a number > 0"),
    ({"swiglu_limit": float("inf")}, "swiglu_limit: found inf; valid: a finite number"),
    ({"eos_token_id": 1024}, "eos_token_id: found 1024; valid: 0 to 1023"),
    ({"rope_scaling": None}, "rope_scaling: found none; valid: YaRN"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type: found 'linear'; valid: 'yarn'"),
    ({"expert_dtype": "fp8"}, "expert_dtype: found 'fp8'; valid: 'fp4'; 'fp8' is that of the Base uploads"),
    ({"quantization_config": None}, "expert_dtype: found 'fp4' without quantization_config"),
    ({"quantization_config": {"weight_block_size": [64, 64]}}, "weight_block_size: found [64, 64]; valid: [128, 128]"),
    ({"quantization_config": {"scale_fmt": "float"}}, "quantization_config.scale_fmt: found 'float'; valid: 'ue8m0'"),
    ({"quantization_config": {"quant_method": "modelopt"}}, "quantization_config.quant_algo: found None"),
    ({"quantization_config": {"moe_quant_algo": "IQ3"}}, "quantization_config.moe_quant_algo: found 'IQ3'"),
    ({"model_type": "deepseek_v4_1"}, "model_type: found 'deepseek_v4_1'; valid: 'deepseek_v4'"),
    ({"architectures": ["DeepseekV3ForCausalLM"]}, "architectures: found ['DeepseekV3ForCausalLM']"),
    ({"engram_layer_ids": [1]}, "engram_layer_ids: unknown; valid: the keys of the official files"),
]


@pytest.mark.parametrize(("change", "said"), CONTRADICTIONS, ids=[said.split(":")[0] for _, said in CONTRADICTIONS])
def test_a_contradiction_is_refused(change: dict[str, Any], said: str) -> None:
    assert said in refused({**TINY.to_hf(), **change})


def test_a_scale_factor_below_one_is_refused() -> None:
    values = TINY.to_hf()
    values["rope_scaling"] |= {"factor": 0.5, "beta_slow": 64, "original_max_position_embeddings": 0}
    message = refused(values)
    assert "rope_scaling.factor: found 0.5; valid: 1 or more" in message
    assert "valid: beta_fast > beta_slow > 0" in message
    assert "rope_scaling.original_max_position_embeddings: found 0; valid: 1 or more" in message


@pytest.mark.parametrize("name", sorted(set(TINY.to_hf()) - {"architectures", "model_type"}))
def test_a_missing_field_is_named_unless_the_official_files_may_leave_it_out(name: str) -> None:
    values = TINY.to_hf()
    del values[name]
    field = ModelConfig.model_fields[name]
    if name == "rope_scaling":
        assert "rope_scaling: found none" in refused(values)
    elif name == "quantization_config":
        assert "expert_dtype" in refused(values)
    elif field.is_required():
        assert f"{name}: missing" in refused(values)
    else:
        ModelConfig.from_dict(values)


def test_all_problems_are_in_one_error() -> None:
    values = {**TINY.to_hf(), "o_groups": 3, "num_hash_layers": 9, "num_experts_per_tok": 99}
    message = refused(values)
    assert "3 problems" in message
    assert all(name in message for name in ("o_groups", "num_hash_layers", "num_experts_per_tok"))


def test_the_inference_spelling_is_answered_in_its_own_names() -> None:
    values = {**TINY.to_inference(), "n_heads": 9, "n_activated_experts": 99}
    message = refused(values)
    assert "n_activated_experts (num_experts_per_tok): found 99" in message
    assert "o_groups: found 2" in message
    assert "rope_factor: found 'x'" in refused({**TINY.to_inference(), "rope_factor": "x"})
    assert "rope_factor: found inf; valid: a finite number" in refused({**TINY.to_inference(), "rope_factor": 1e999})
    assert "dim: missing" in refused({key: value for key, value in TINY.to_inference().items() if key != "dim"})
    assert "dtype: found 'fp16'" in refused({**TINY.to_inference(), "dtype": "fp16"})
    assert "scale_dtype: found 'fp32'" in refused({**TINY.to_inference(), "scale_dtype": "fp32"})
    assert "beta_fast: missing" in refused({k: v for k, v in TINY.to_inference().items() if k != "beta_fast"})


def test_both_spellings_in_one_file_are_refused() -> None:
    assert "valid: one spelling" in refused({**TINY.to_hf(), "dim": 512})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "found list; valid: an object"),
        ('{"dim": 1, "dim": 2}', "the key 'dim' twice"),
        ('{"rms_norm_eps": NaN}', "the constant NaN"),
        ("[" * 100_000, "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "twice", "nan", "deep"],
)
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.load(tmp_path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no config"):
        ModelConfig.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelConfig.load(tmp_path / "nothing.json")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        ModelConfig.load(tmp_path)


def test_replace_checks_the_whole() -> None:
    with pytest.raises(ConfigError, match="o_groups: found 3"):
        TINY.replace(o_groups=3)
    with pytest.raises(ConfigError, match="found nonsense; valid: a field of ModelConfig"):
        TINY.replace(nonsense=1)


def test_an_error_says_the_file_that_was_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY.to_hf(), "o_groups": 3}))
    with pytest.raises(ConfigError) as caught:
        ModelConfig.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: o_groups: found 3")
