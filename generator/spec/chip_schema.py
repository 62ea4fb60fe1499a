"""The schemas of ``specs/archs/<arch>.yaml`` and ``specs/models/<model>.yaml``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dsv4.generator.resources.limits import Limits
from dsv4.generator.spec.base import Name, Positive, Strict, Text
from dsv4.generator.spec.errors import Invalid

_NO_SIZE = {"compress_ratios"}


class BuildTarget(Strict):
    """A ``--gpu-arch`` value and the compute capabilities that its cubin runs on."""

    target: Name
    compute_capabilities: tuple[tuple[int, int], ...] = Field(min_length=1)


class Figure(Strict):
    """A rate with its origin: nobody may take a datasheet's promise for a measurement."""

    value: float
    unit: Literal["TB/s", "TFLOP/s", "Gop/s"]
    origin: Literal["datasheet", "measured"]

    @classmethod
    def shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("value"), int):
            return {**data, "value": float(data["value"])}
        return data


class ArchSpec(Strict):
    """A chip: limits that refuse, build targets (the first that compiles), features, and rates to predict with."""

    arch: Name
    doc: Text
    build_targets: tuple[BuildTarget, ...] = Field(min_length=1)
    sms: Positive
    limits: Limits
    features: tuple[Name, ...] = ()
    rates: dict[Name, Figure] = Field({})


class ModelSpec(Strict):
    """The dimensions of one DeepSeek-V4 model, with the meanings of its config.json.

    ``tensor_parallel`` and ``expert_parallel`` divide heads and experts over GPUs. ``compress_ratios`` has one entry a
    layer, the MTP layers last: 0 sliding window only, 4 CSA, 128 HCA.
    """

    model: Name
    doc: Text
    hidden: Positive
    layers: Positive
    mtp_layers: int = Field(ge=0)
    vocabulary: Positive
    heads: Positive
    head_dim: Positive
    rotary_dim: Positive
    q_lora: Positive
    o_lora: Positive
    o_groups: Positive
    index_heads: Positive
    index_head_dim: Positive
    index_topk: Positive
    window: Positive
    compress_ratios: tuple[Literal[0, 4, 128], ...]
    experts: Positive
    shared_experts: Positive
    experts_per_token: Positive
    moe_inter: Positive
    hash_layers: int = Field(ge=0)
    streams: Positive
    sinkhorn_iterations: Positive
    max_positions: Positive
    rope_theta: Positive
    compress_rope_theta: Positive
    rope_factor: Positive
    rope_beta_fast: Positive
    rope_beta_slow: Positive
    rope_original_positions: Positive
    routed_scaling: float = Field(gt=0)
    swiglu_limit: float = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    stream_eps: float = Field(gt=0)
    tensor_parallel: Positive = 1
    expert_parallel: Positive = 1

    def model_post_init(self, _: Any) -> None:
        wanted = self.layers + self.mtp_layers
        if len(self.compress_ratios) != wanted:
            raise Invalid(f"{len(self.compress_ratios)} ratios", f"{wanted}, one a layer", field="compress_ratios")
        for key, divisor in (("heads", "tensor_parallel"), ("experts", "expert_parallel"), ("heads", "o_groups")):
            if getattr(self, key) % getattr(self, divisor):
                raise Invalid(getattr(self, key), f"a multiple of {divisor}", field=key)
        if self.rotary_dim >= self.head_dim:
            raise Invalid(self.rotary_dim, f"less than head_dim ({self.head_dim})", field="rotary_dim")
        if self.experts_per_token > self.experts:
            raise Invalid(self.experts_per_token, f"at most {self.experts} experts", field="experts_per_token")

    @classmethod
    def sizes(cls) -> tuple[str, ...]:
        """The names that ``$model.…`` can name: every whole number above, ``local_heads`` and ``local_experts``."""
        whole = (key for key, item in cls.model_fields.items() if key not in _NO_SIZE and item.annotation is int)
        return (*whole, "local_heads", "local_experts")

    @property
    def local_heads(self) -> int:
        """Query heads on one GPU."""
        return self.heads // self.tensor_parallel

    @property
    def local_experts(self) -> int:
        """Routed experts on one GPU."""
        return self.experts // self.expert_parallel

    def names(self) -> dict[str, int]:
        """The value of every name in ``sizes``."""
        return {key: getattr(self, key) for key in self.sizes()}
