"""What the fields of a configuration must satisfy together, and how it is said when they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv4.runtime.model.config import ModelConfig

RATIOS = {0: "window only", 4: "CSA", 128: "HCA"}
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "qk_rope_head_dim",
    "q_lora_rank",
    "o_lora_rank",
    "o_groups",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "sliding_window",
    "rope_theta",
    "compress_rope_theta",
    "max_position_embeddings",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "routed_scaling_factor",
    "swiglu_limit",
    "hc_mult",
    "hc_sinkhorn_iters",
    "hc_eps",
    "rms_norm_eps",
)
_LARGEST = 2**31 - 1


def told(source: str, problems: Sequence[str]) -> str:
    """All ``problems`` of ``source`` in one message."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    return f"{source}: {len(problems)} problems\n" + "\n".join(f"  {problem}" for problem in problems)


def problems(config: ModelConfig) -> list[str]:
    """Every contradiction in ``config``: the field, the layer where there is one, what was found, what is valid."""
    ranges = list(_ranges(config))
    if ranges:
        return ranges  # what follows divides by these
    return [*_schedule(config), *_attention(config), *_rope(config), *_moe(config), *_storage(config), *_tokens(config)]


def _ranges(config: ModelConfig) -> Iterator[str]:
    for name in _POSITIVE:
        value = getattr(config, name)
        if not 0 < value <= _LARGEST:
            yield f"{name}: found {value}; valid: a number > 0 and < 2³¹"
    for name in ("num_hash_layers", "num_nextn_predict_layers"):
        if getattr(config, name) < 0:
            yield f"{name}: found {getattr(config, name)}; valid: 0 or more"


def _schedule(config: ModelConfig) -> Iterator[str]:
    layers, mtp, ratios = config.num_hidden_layers, config.num_nextn_predict_layers, config.compress_ratios
    if mtp > 1:
        yield f"num_nextn_predict_layers: found {mtp}; valid: 0 or 1 (one MTP layer, layer {layers})"
    for layer, ratio in enumerate(ratios):
        if ratio not in RATIOS:
            valid = ", ".join(f"{value} ({kind})" for value, kind in RATIOS.items())
            yield f"compress_ratios[{layer}] (layer {layer}): found {ratio}; valid: {valid}"
    if len(ratios) != layers + mtp:
        where = f"num_hidden_layers {layers} + num_nextn_predict_layers {mtp}"
        hint = "; the further ones of a DSpark upload are of a draft head that is not supported" if mtp else ""
        yield f"compress_ratios: found {len(ratios)} entries; valid: {layers + mtp}, one a layer ({where}){hint}"
    else:
        for layer in range(layers, layers + mtp):
            if ratios[layer] != 0:
                found = f"compress_ratios[{layer}] (layer {layer}, MTP): found {ratios[layer]}"
                yield f"{found}; valid: 0, the MTP layer attends to its window only"
    if config.num_hash_layers > layers:
        found = f"num_hash_layers: found {config.num_hash_layers}"
        yield f"{found}; valid: 0 to {layers}, the number of main layers (the MTP layer {layers} is never hash-routed)"


def _attention(config: ModelConfig) -> Iterator[str]:
    heads, groups, rotary = config.num_attention_heads, config.o_groups, config.qk_rope_head_dim
    if heads % groups:
        yield f"o_groups: found {groups}; valid: a divisor of num_attention_heads {heads}"
    if rotary % 2 or rotary >= config.head_dim:
        yield f"qk_rope_head_dim: found {rotary}; valid: even and less than head_dim {config.head_dim}"
    csa = [layer for layer, ratio in enumerate(config.compress_ratios) if ratio == 4]
    width = config.index_head_dim
    if csa and (width < rotary or width & (width - 1)):
        valid = f"a power of two (its Hadamard rotation) not less than qk_rope_head_dim {rotary}"
        yield f"index_head_dim: found {width}; valid: {valid}, for the CSA layers ({spelled_layers(csa)})"


def _rope(config: ModelConfig) -> Iterator[str]:
    compressed = [layer for layer, ratio in enumerate(config.compress_ratios) if ratio]
    scaling = config.rope_scaling
    if scaling is None:
        if compressed:
            where = spelled_layers(compressed)
            yield f"rope_scaling: found none; valid: YaRN, which the layers with a compressor use ({where})"
        return
    if not scaling.factor >= 1:
        yield f"rope_scaling.factor: found {scaling.factor}; valid: 1 or more"
    if scaling.original_max_position_embeddings < 1:
        length = scaling.original_max_position_embeddings
        yield f"rope_scaling.original_max_position_embeddings: found {length}; valid: 1 or more"
    if not scaling.beta_fast > scaling.beta_slow > 0:
        found = f"beta_fast {scaling.beta_fast} and beta_slow {scaling.beta_slow}"
        yield f"rope_scaling: found {found}; valid: beta_fast > beta_slow > 0"
    for name in ("rope_theta", "compress_rope_theta"):
        if getattr(config, name) <= 1:
            yield f"{name}: found {getattr(config, name)}; valid: more than 1"


def _moe(config: ModelConfig) -> Iterator[str]:
    if config.num_experts_per_tok > config.n_routed_experts:
        found = f"num_experts_per_tok: found {config.num_experts_per_tok}"
        yield f"{found}; valid: 1 to n_routed_experts {config.n_routed_experts}"


def _storage(config: ModelConfig) -> Iterator[str]:
    quantization = config.quantization_config
    if quantization is None:
        if config.expert_dtype is not None:
            found = f"expert_dtype: found {config.expert_dtype!r} without quantization_config"
            yield f"{found}; valid: both (FP8 with FP4 experts) or neither (not quantised)"
        return
    if quantization.weight_block_size != (128, 128):
        found = f"quantization_config.weight_block_size: found {list(quantization.weight_block_size)}"
        yield f"{found}; valid: [128, 128]"
    if quantization.quant_method == "modelopt" and quantization.quant_algo != "NVFP4":
        found = f"quantization_config.quant_algo: found {quantization.quant_algo!r} with quant_method 'modelopt'"
        yield f"{found}; valid: 'NVFP4' (every linear), or quant_method 'fp8' with moe_quant_algo (the experts)"
    if quantization.quant_method == "fp8" and quantization.quant_algo == "NVFP4":
        found = "quantization_config.quant_algo: found 'NVFP4' with quant_method 'fp8'"
        yield f"{found}; valid: 'MIXED_PRECISION', or quant_method 'modelopt'"
    if quantization.group_size not in (None, 16):
        yield f"quantization_config.group_size: found {quantization.group_size}; valid: 16, that of NVFP4"
    for name in ("hidden_size", "moe_intermediate_size", "q_lora_rank", "group_width"):
        width = getattr(config, name)
        if width % 32:
            what = "num_attention_heads / o_groups · head_dim" if name == "group_width" else name
            yield f"{what}: found {width}; valid: a multiple of 32, as scales along the inputs of a linear need"


def _tokens(config: ModelConfig) -> Iterator[str]:
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(config, name)
        if not 0 <= token < config.vocab_size:
            yield f"{name}: found {token}; valid: 0 to {config.vocab_size - 1}, a token of vocab_size"


def spelled_layers(layers: Sequence[int]) -> str:
    """``layers`` as people write them: the first few, and how many more."""
    shown = ", ".join(map(str, layers[:4]))
    more = f" and {len(layers) - 4} more" if len(layers) > 4 else ""
    return f"layer{'s' if len(layers) > 1 else ''} {shown}{more}"
