"""The model's configuration: every number that decides shapes, layers and arithmetic, checked once and then frozen.

Field names are those of the Hugging Face ``config.json`` (dsv4-reference §1.1). ``config_spelling`` reads and writes
the two spellings of the official files, ``config_checks`` holds the fields against one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dsv4.runtime.errors import ConfigError
from dsv4.runtime.model import config_checks, config_spelling

WeightScheme = Literal["plain", "fp8_mxfp4", "fp8_nvfp4", "nvfp4"]
"""How the linears are stored: not quantised; FP8 with MXFP4 routed experts (the official release); FP8 with NVFP4
routed experts (NVIDIA's); NVFP4 throughout."""


class _Frozen(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class RopeScaling(_Frozen):
    """YaRN, used in the layers that have a compressor (dsv4-reference §3.3)."""

    type: Literal["yarn"] = "yarn"
    factor: float
    beta_fast: float
    beta_slow: float
    original_max_position_embeddings: int


class Quantization(_Frozen):
    """How weights are stored. ``moe_quant_algo`` is NVIDIA's addition for NVFP4 routed experts (dsv4-reference §14.2);
    ``quant_method="modelopt"`` with ``quant_algo="NVFP4"`` says that every linear is NVFP4."""

    quant_method: Literal["fp8", "modelopt"] = "fp8"
    fmt: Literal["e4m3"] = "e4m3"
    scale_fmt: Literal["ue8m0"] = "ue8m0"
    activation_scheme: Literal["dynamic"] = "dynamic"
    weight_block_size: tuple[int, int] = (128, 128)
    moe_quant_algo: Literal["NVFP4"] | None = None
    quant_algo: Literal["MIXED_PRECISION", "NVFP4"] | None = None
    group_size: int | None = None


class ModelConfig(_Frozen):
    """A consistent DeepSeek-V4 configuration; hashable.

    Made by ``ModelConfig.load`` (a folder or a file) or ``ModelConfig.from_dict`` (either spelling), which raise
    ``ConfigError`` with every problem in one message. The constructor takes the fields below and raises pydantic's
    ``ValidationError``. Fields with a default are those that the official files may leave out.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int = 1
    num_attention_heads: int
    num_key_value_heads: Literal[1] = 1
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    sliding_window: int
    compress_ratios: tuple[int, ...]
    """One a layer, those of the MTP layers last: 0 window only, 4 CSA, 128 HCA."""
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    n_routed_experts: int
    n_shared_experts: Literal[1] = 1
    num_experts_per_tok: int
    moe_intermediate_size: int
    num_hash_layers: int
    scoring_func: Literal["sqrtsoftplus"] = "sqrtsoftplus"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    norm_topk_prob: Literal[True] = True
    routed_scaling_factor: float
    swiglu_limit: float
    hidden_act: Literal["silu"] = "silu"
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    bos_token_id: int = 0
    eos_token_id: int = 1
    tie_word_embeddings: Literal[False] = False
    attention_bias: Literal[False] = False
    torch_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    expert_dtype: Literal["fp4"] | None = None
    quantization_config: Quantization | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if found := config_checks.problems(self):
            raise ValueError("\n".join(found))
        return self

    @classmethod
    def load(cls, path: Path | str) -> ModelConfig:
        """Read ``config.json`` of the folder ``path``, or the file ``path``, in either spelling.

        Where a folder has ``inference/config.json`` too, the two must agree. Raises ``ConfigError``.
        """
        sources = config_spelling.read(Path(path))
        config = cls.from_dict(sources[0].values, source=sources[0].name)
        for other in sources[1:]:
            config_spelling.require_agreement(
                sources[0].name, config, other.name, cls.from_dict(other.values, source=other.name), other.values
            )
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
        """The configuration in ``values``, in either spelling; ``source`` is what errors call it.

        Raises ``ConfigError`` naming each field that is missing, unknown, of the wrong type or in contradiction, with
        what would be valid.
        """
        fields = config_spelling.to_fields(values, source)
        try:
            return cls(**fields)
        except ValidationError as error:
            raise ConfigError(config_checks.told(source, config_spelling.from_pydantic(error, values))) from None

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with other values, checked as a whole. Raises ``ConfigError``."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        unknown = set(changes) - set(fields)
        if unknown:
            raise ConfigError(f"replace: found {', '.join(sorted(unknown))}; valid: a field of ModelConfig")
        try:
            return ModelConfig(**{**fields, **changes})
        except ValidationError as error:
            raise ConfigError(config_checks.told("replace", config_spelling.from_pydantic(error, {}))) from None

    def to_hf(self) -> dict[str, Any]:
        """What the Hugging Face ``config.json`` of this configuration holds."""
        return config_spelling.to_hf(self)

    def to_inference(self) -> dict[str, Any]:
        """What the official ``inference/config.json`` of this configuration holds; it does not say everything."""
        return config_spelling.to_inference(self)

    @property
    def weight_scheme(self) -> WeightScheme:
        """How this configuration says that the checkpoint's linears are stored."""
        quantization = self.quantization_config
        if quantization is None:
            return "plain"
        if quantization.quant_method == "modelopt":
            return "nvfp4"
        return "fp8_mxfp4" if quantization.moe_quant_algo is None else "fp8_nvfp4"

    @property
    def layer_count(self) -> int:
        """Main layers and MTP layers."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def group_width(self) -> int:
        """Columns of one group's part of the attention output, the input of its share of wo_a."""
        return self.num_attention_heads // self.o_groups * self.head_dim

    @property
    def stream_mixes(self) -> int:
        """Rows of an mHC projection: pre, post and the residual matrix (24 for 4 streams)."""
        return (2 + self.hc_mult) * self.hc_mult
