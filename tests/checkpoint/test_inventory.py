"""The tensors of Flash and Pro, held against the tables of dsv4-reference §14 and the released index files' counts."""

from __future__ import annotations

import functools
import math
from collections import Counter

import pytest

from dsv4.runtime.checkpoint.inventory import TensorSpec, groups
from dsv4.runtime.checkpoint.inventory import inventory as make_inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS
from dsv4.runtime.checkpoint.safetensors_file import DTYPE_BYTES
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.presets import FLASH, PRO, TINY

OFFICIAL = LAYOUTS["fp8_mxfp4"]
inventory = functools.cache(make_inventory)

E4M3, E8M0, PACKED = "F8_E4M3", "F8_E8M0", "I8"
TABLE: list[tuple[str, str, list[int], list[int]]] = [
    ("embed.weight", "BF16", [129280, 4096], [129280, 7168]),
    ("head.weight", "BF16", [129280, 4096], [129280, 7168]),
    ("norm.weight", "BF16", [4096], [7168]),
    ("hc_head_fn", "F32", [4, 16384], [4, 28672]),
    ("hc_head_base", "F32", [4], [4]),
    ("hc_head_scale", "F32", [1], [1]),
    ("layers.2.hc_attn_fn", "F32", [24, 16384], [24, 28672]),
    ("layers.2.hc_attn_base", "F32", [24], [24]),
    ("layers.2.hc_attn_scale", "F32", [3], [3]),
    ("layers.2.hc_ffn_fn", "F32", [24, 16384], [24, 28672]),
    ("layers.2.hc_ffn_base", "F32", [24], [24]),
    ("layers.2.hc_ffn_scale", "F32", [3], [3]),
    ("layers.2.attn_norm.weight", "BF16", [4096], [7168]),
    ("layers.2.ffn_norm.weight", "BF16", [4096], [7168]),
    ("layers.2.attn.attn_sink", "F32", [64], [128]),
    ("layers.2.attn.wq_a.weight", E4M3, [1024, 4096], [1536, 7168]),
    ("layers.2.attn.wq_a.scale", E8M0, [8, 32], [12, 56]),
    ("layers.2.attn.q_norm.weight", "BF16", [1024], [1536]),
    ("layers.2.attn.wq_b.weight", E4M3, [32768, 1024], [65536, 1536]),
    ("layers.2.attn.wq_b.scale", E8M0, [256, 8], [512, 12]),
    ("layers.2.attn.wkv.weight", E4M3, [512, 4096], [512, 7168]),
    ("layers.2.attn.wkv.scale", E8M0, [4, 32], [4, 56]),
    ("layers.2.attn.kv_norm.weight", "BF16", [512], [512]),
    ("layers.2.attn.wo_a.weight", E4M3, [8192, 4096], [16384, 4096]),
    ("layers.2.attn.wo_a.scale", E8M0, [64, 32], [128, 32]),
    ("layers.2.attn.wo_b.weight", E4M3, [4096, 8192], [7168, 16384]),
    ("layers.2.attn.wo_b.scale", E8M0, [32, 64], [56, 128]),
    ("layers.2.attn.compressor.ape", "F32", [4, 1024], [4, 1024]),
    ("layers.2.attn.compressor.wkv.weight", "BF16", [1024, 4096], [1024, 7168]),
    ("layers.2.attn.compressor.wgate.weight", "BF16", [1024, 4096], [1024, 7168]),
    ("layers.2.attn.compressor.norm.weight", "BF16", [512], [512]),
    ("layers.3.attn.compressor.ape", "F32", [128, 512], [128, 512]),
    ("layers.3.attn.compressor.wkv.weight", "BF16", [512, 4096], [512, 7168]),
    ("layers.3.attn.compressor.wgate.weight", "BF16", [512, 4096], [512, 7168]),
    ("layers.3.attn.compressor.norm.weight", "BF16", [512], [512]),
    ("layers.2.attn.indexer.wq_b.weight", E4M3, [8192, 1024], [8192, 1536]),
    ("layers.2.attn.indexer.wq_b.scale", E8M0, [64, 8], [64, 12]),
    ("layers.2.attn.indexer.weights_proj.weight", "BF16", [64, 4096], [64, 7168]),
    ("layers.2.attn.indexer.compressor.ape", "F32", [4, 256], [4, 256]),
    ("layers.2.attn.indexer.compressor.wkv.weight", "BF16", [256, 4096], [256, 7168]),
    ("layers.2.attn.indexer.compressor.wgate.weight", "BF16", [256, 4096], [256, 7168]),
    ("layers.2.attn.indexer.compressor.norm.weight", "BF16", [128], [128]),
    ("layers.2.ffn.gate.weight", "BF16", [256, 4096], [384, 7168]),
    ("layers.2.ffn.gate.tid2eid", "I64", [129280, 6], [129280, 6]),
    ("layers.3.ffn.gate.bias", "F32", [256], [384]),
    ("layers.2.ffn.experts.0.w1.weight", PACKED, [2048, 2048], [3072, 3584]),
    ("layers.2.ffn.experts.0.w1.scale", E8M0, [2048, 128], [3072, 224]),
    ("layers.2.ffn.experts.255.w3.weight", PACKED, [2048, 2048], [3072, 3584]),
    ("layers.2.ffn.experts.255.w3.scale", E8M0, [2048, 128], [3072, 224]),
    ("layers.2.ffn.experts.7.w2.weight", PACKED, [4096, 1024], [7168, 1536]),
    ("layers.2.ffn.experts.7.w2.scale", E8M0, [4096, 64], [7168, 96]),
    ("layers.2.ffn.shared_experts.w1.weight", E4M3, [2048, 4096], [3072, 7168]),
    ("layers.2.ffn.shared_experts.w1.scale", E8M0, [16, 32], [24, 56]),
    ("layers.2.ffn.shared_experts.w3.weight", E4M3, [2048, 4096], [3072, 7168]),
    ("layers.2.ffn.shared_experts.w2.weight", E4M3, [4096, 2048], [7168, 3072]),
    ("layers.2.ffn.shared_experts.w2.scale", E8M0, [32, 16], [56, 24]),
    ("mtp.0.e_proj.weight", E4M3, [4096, 4096], [7168, 7168]),
    ("mtp.0.e_proj.scale", E8M0, [32, 32], [56, 56]),
    ("mtp.0.h_proj.weight", E4M3, [4096, 4096], [7168, 7168]),
    ("mtp.0.enorm.weight", "BF16", [4096], [7168]),
    ("mtp.0.hnorm.weight", "BF16", [4096], [7168]),
    ("mtp.0.norm.weight", "BF16", [4096], [7168]),
    ("mtp.0.hc_head_fn", "F32", [4, 16384], [4, 28672]),
    ("mtp.0.ffn.gate.bias", "F32", [256], [384]),
]


def nbytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * DTYPE_BYTES[spec.dtypes[0]]


@pytest.mark.parametrize(("config", "count"), [(FLASH, 69_187), (PRO, 145_116)], ids=["flash", "pro"])
def test_as_many_tensors_as_the_released_index_files(config: ModelConfig, count: int) -> None:
    assert len(inventory(config, OFFICIAL)) == count


def test_as_many_bytes_as_the_released_index_files() -> None:
    """Flash 148.66 (GiB), Pro 864.69 (10⁹), NVIDIA's Pro about 913 (10⁹), dsv4-reference §1.2 and §14.2."""
    assert sum(map(nbytes, inventory(FLASH, OFFICIAL).values())) / 2**30 == pytest.approx(148.66, abs=0.02)
    assert sum(map(nbytes, inventory(PRO, OFFICIAL).values())) / 1e9 == pytest.approx(864.69, abs=0.02)
    assert sum(map(nbytes, inventory(PRO, LAYOUTS["fp8_nvfp4"]).values())) / 1e9 == pytest.approx(913, abs=0.5)


@pytest.mark.parametrize("place", [0, 1], ids=["flash", "pro"])
def test_names_dtypes_and_shapes(place: int) -> None:
    specs = inventory((FLASH, PRO)[place], OFFICIAL)
    for name, dtype, *shapes in TABLE:
        assert (specs[name].dtypes[0], list(specs[name].shape)) == (dtype, shapes[place]), name


def test_the_table_covers_every_kind_of_tensor() -> None:
    """With layer and expert numbers left out, every name of Flash is in the table or has a twin there."""

    def kind(name: str) -> str:
        return ".".join("N" if part.isdigit() else part for part in name.split("."))

    listed = {kind(name) for name, *_ in TABLE}
    mtp_block = {name.replace("layers.N", "mtp.N") for name in listed}
    twins = {name.replace(".w1.", ".w3.") for name in listed | mtp_block}
    ends = {"mtp.N.hc_head_base", "mtp.N.hc_head_scale", "mtp.N.h_proj.scale"}
    assert {kind(name) for name in inventory(FLASH, OFFICIAL)} <= listed | mtp_block | twins | ends


@pytest.mark.parametrize("config", [FLASH, PRO], ids=["flash", "pro"])
def test_which_layers_have_what(config: ModelConfig) -> None:
    specs = inventory(config, OFFICIAL)
    for layer, ratio in enumerate(config.compress_ratios[:-1]):
        assert (f"layers.{layer}.attn.compressor.ape" in specs) == (ratio > 0)
        assert (f"layers.{layer}.attn.indexer.wq_b.weight" in specs) == (ratio == 4)
        assert (f"layers.{layer}.ffn.gate.tid2eid" in specs) == (layer < 3)
        assert (f"layers.{layer}.ffn.gate.bias" in specs) == (layer >= 3)
    assert not [name for name in specs if name.startswith(("mtp.0.attn.compressor", "mtp.0.attn.indexer", "mtp.1"))]
    assert "mtp.0.ffn.gate.tid2eid" not in specs
    assert not [name for name in specs if name.startswith("mtp.0.") and ("embed" in name or "head.weight" in name)]
    assert f"layers.{config.num_hidden_layers}.attn_norm.weight" not in specs


def test_nvidias_layout_changes_the_routed_experts_of_the_main_layers_only() -> None:
    official, nvidia = inventory(FLASH, OFFICIAL), inventory(FLASH, LAYOUTS["fp8_nvfp4"])
    changed = {name for name in official if nvidia.get(name) != official[name]}
    assert changed == {name for name in official if name.startswith("layers.") and ".ffn.experts." in name}
    assert len(nvidia) == len(official) + 2 * 3 * 256 * 43
    for part, shape in (("w1", [2048, 4096]), ("w3", [2048, 4096]), ("w2", [4096, 2048])):
        name = f"layers.42.ffn.experts.255.{part}"
        assert f"{name}.scale" not in nvidia
        rows, columns = shape
        assert (nvidia[f"{name}.weight"].dtypes[0], list(nvidia[f"{name}.weight"].shape)) == (
            "U8",
            [rows, columns // 2],
        )
        scale = nvidia[f"{name}.weight_scale"]
        assert (scale.dtypes, list(scale.shape)) == (("F8_E4M3",), [rows, columns // 16])
        for scalar in ("weight_scale_2", "input_scale"):
            assert (nvidia[f"{name}.{scalar}"].dtypes, nvidia[f"{name}.{scalar}"].shape) == (("F32",), ())


def test_full_nvfp4_has_no_e8m0_scale_and_keeps_what_is_not_a_linear() -> None:
    official, full = inventory(TINY, OFFICIAL), inventory(TINY, LAYOUTS["nvfp4"])
    assert not [name for name, spec in full.items() if "F8_E8M0" in spec.dtypes]
    assert full["layers.2.attn.indexer.wq_b.weight"].shape == (1024, 256)
    same = {name for name in official if f"{name.rpartition('.')[0]}.scale" not in official}
    assert all(full[name] == official[name] for name in same)


@pytest.mark.parametrize(("dtype", "wide"), [("bfloat16", "BF16"), ("float32", "F32")])
def test_plain_has_no_scales_and_the_configured_dtype(dtype: str, wide: str) -> None:
    config = TINY.replace(quantization_config=None, expert_dtype=None, torch_dtype=dtype)
    specs = inventory(config, LAYOUTS["plain"])
    assert not [name for name in specs if name.endswith(".scale")]
    assert specs["layers.0.attn.wq_a.weight"].dtypes == (wide,)
    assert specs["layers.0.ffn.experts.15.w2.weight"].shape == (512, 256)
    assert specs["layers.0.attn.attn_sink"].dtypes == ("F32",)
    assert Counter(spec.dtypes for spec in specs.values()).keys() == {(wide,), ("F32",), ("I64",)}


def test_groups_come_in_loading_order_and_keys_are_names_within_them() -> None:
    specs = inventory(TINY, OFFICIAL)
    assert list(dict.fromkeys(spec.group for spec in specs.values())) == list(groups(TINY))
    assert groups(TINY) == ("embed", *(f"layers.{layer}" for layer in range(5)), "head", "mtp.0")
    assert specs["layers.3.attn.wq_a.weight"].key == "attn.wq_a.weight"
    assert specs["mtp.0.norm.weight"].key == "norm.weight"
    expert = specs["layers.3.ffn.experts.7.w2.scale"]
    assert expert.key == expert.stack == "ffn.experts.w2.scale"
    assert {spec.name for spec in specs.values() if spec.stack} == {name for name in specs if ".ffn.experts." in name}
    assert {spec.key for spec in specs.values() if spec.group == "head"} == {
        "head.weight",
        "norm.weight",
        "hc_head_fn",
        "hc_head_base",
        "hc_head_scale",
    }


def test_scales_of_a_cut_block_are_counted() -> None:
    specs = inventory(TINY.replace(hidden_size=544), OFFICIAL)
    assert specs["layers.0.attn.wkv.scale"].shape == (4, 5)
    assert specs["layers.0.attn.wo_b.scale"].shape == (5, 2)
