"""The configuration: the official files in both spellings, and what is written again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv4.runtime.errors import ConfigError
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.presets import FLASH, PRO, TINY

DATA = Path(__file__).parent / "data"
SPECS = Path(__file__).resolve().parents[2] / "specs" / "models"
KNOWN = {"flash": FLASH, "pro": PRO, "tiny": TINY}


def values_of(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_official_file_is_the_preset(name: str) -> None:
    config = ModelConfig.load(DATA / f"{name}.json")
    assert config.replace(expert_dtype="fp4") == KNOWN[name]  # absent from Flash's first config.json
    assert config.weight_scheme == "fp8_mxfp4"


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_inference_spelling_says_the_same(name: str) -> None:
    assert ModelConfig.load(DATA / f"{name}_inference.json") == KNOWN[name]


@pytest.mark.parametrize("name", ["flash", "pro", "tiny"])
def test_the_specs_for_the_generator_say_the_same(name: str) -> None:
    spec, config = yaml.safe_load((SPECS / f"{name}.yaml").read_text()), KNOWN[name]
    yarn = config.rope_scaling
    assert yarn is not None
    pairs = {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mtp_layers": config.num_nextn_predict_layers,
        "vocabulary": config.vocab_size,
        "heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "rotary_dim": config.qk_rope_head_dim,
        "q_lora": config.q_lora_rank,
        "o_lora": config.o_lora_rank,
        "o_groups": config.o_groups,
        "index_heads": config.index_n_heads,
        "index_head_dim": config.index_head_dim,
        "index_topk": config.index_topk,
        "window": config.sliding_window,
        "compress_ratios": list(config.compress_ratios),
        "experts": config.n_routed_experts,
        "shared_experts": config.n_shared_experts,
        "experts_per_token": config.num_experts_per_tok,
        "moe_inter": config.moe_intermediate_size,
        "hash_layers": config.num_hash_layers,
        "streams": config.hc_mult,
        "sinkhorn_iterations": config.hc_sinkhorn_iters,
        "max_positions": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "compress_rope_theta": config.compress_rope_theta,
        "rope_factor": yarn.factor,
        "rope_beta_fast": yarn.beta_fast,
        "rope_beta_slow": yarn.beta_slow,
        "rope_original_positions": yarn.original_max_position_embeddings,
        "routed_scaling": config.routed_scaling_factor,
        "swiglu_limit": config.swiglu_limit,
        "rms_norm_eps": config.rms_norm_eps,
        "stream_eps": config.hc_eps,
    }
    rest = set(spec) - set(pairs) - {"model", "doc", "tensor_parallel", "expert_parallel"}
    assert not rest
    assert {key: float(spec[key]) if "eps" in key else spec[key] for key in pairs} == pairs


@pytest.mark.parametrize("config", [*KNOWN.values(), TINY.replace(quantization_config=None, expert_dtype=None)])
def test_both_spellings_are_read_back_as_they_were_written(config: ModelConfig) -> None:
    for written in (config.to_hf(), config.to_inference()):
        assert ModelConfig.from_dict(json.loads(json.dumps(written))) == config


def test_the_written_inference_spelling_has_the_official_keys() -> None:
    assert FLASH.to_inference() == values_of("flash_inference")


def test_the_written_huggingface_spelling_is_the_official_file() -> None:
    official = values_of("pro")
    for unused in ("attention_dropout", "initializer_range", "transformers_version", "use_cache"):
        del official[unused]
    assert PRO.to_hf() == official


def test_numbers_that_the_inference_code_knows_are_written_where_they_differ() -> None:
    config = TINY.replace(rms_norm_eps=1e-5, hc_eps=1e-4, max_position_embeddings=4096)
    assert ModelConfig.from_dict(config.to_inference()) == config
    assert not {"norm_eps", "hc_eps", "max_seq_len"} & set(TINY.to_inference())


def test_a_configuration_is_frozen_and_hashable() -> None:
    assert hash(FLASH) == hash(ModelConfig.from_dict(FLASH.to_hf()))
    assert len({FLASH, PRO, TINY}) == 3
    with pytest.raises(Exception, match="frozen"):
        FLASH.hidden_size = 1  # type: ignore[misc]


def test_derived_sizes() -> None:
    """dsv4-reference §1.3."""
    assert [config.num_attention_heads * config.head_dim for config in (FLASH, PRO)] == [32768, 65536]
    assert [config.group_width for config in (FLASH, PRO)] == [4096, 4096]
    assert [config.o_groups * config.o_lora_rank for config in (FLASH, PRO)] == [8192, 16384]
    assert [config.hc_mult * config.hidden_size for config in (FLASH, PRO)] == [16384, 28672]
    assert FLASH.stream_mixes == 24
    assert FLASH.layer_count == 44


def test_nvidias_file_is_read(tmp_path: Path) -> None:
    values = values_of("flash")
    values["quantization_config"] |= {"moe_quant_algo": "NVFP4", "quant_algo": "MIXED_PRECISION", "group_size": 16}
    values["quantization_config"] |= {"producer": {"name": "modelopt"}, "ignore": ["mtp.*"], "quantized_layers": {}}
    assert ModelConfig.from_dict(values).weight_scheme == "fp8_nvfp4"


def test_a_file_of_newer_transformers_says_dtype_and_rope_type() -> None:
    values = values_of("flash")
    values["dtype"] = values.pop("torch_dtype")
    values["rope_scaling"]["rope_type"] = values["rope_scaling"].pop("type")
    assert ModelConfig.from_dict(values) == ModelConfig.from_dict(values_of("flash"))


def write(folder: Path, hf: dict[str, Any] | None, inference: dict[str, Any] | None) -> Path:
    (folder / "inference").mkdir()
    if hf is not None:
        (folder / "config.json").write_text(json.dumps(hf))
    if inference is not None:
        (folder / "inference" / "config.json").write_text(json.dumps(inference))
    return folder


def test_a_folder_is_read_by_its_config_json(tmp_path: Path) -> None:
    assert ModelConfig.load(write(tmp_path, PRO.to_hf(), PRO.to_inference())) == PRO


def test_a_folder_with_the_inference_file_only_will_do(tmp_path: Path) -> None:
    assert ModelConfig.load(write(tmp_path, None, TINY.to_inference())) == TINY


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.update(dim=1024), "dim: found 1024; valid: 512, as hidden_size in"),
        (lambda values: values.update(rope_factor=8), "rope_factor, beta_fast, beta_slow, original_seq_len: found"),
        (lambda values: values.update(compress_ratios=[0, 0, 4, 4, 4, 0]), "compress_ratios: found"),
    ],
)
def test_two_files_that_disagree_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    inference = TINY.to_inference()
    change(inference)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.load(write(tmp_path, TINY.to_hf(), inference))
    assert said in str(caught.value)
    assert "inference/config.json" in str(caught.value)
