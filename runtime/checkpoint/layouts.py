"""How a checkpoint stores its linears: the official release, NVIDIA's NVFP4 experts, NVFP4 throughout, or plain.

A layout gives each class of linears one format. Which layout it is comes from the configuration; what uploads of the
same layout do differently (the MTP layer's experts are MXFP4 in some NVFP4 uploads and NVFP4 in others, its projections
are kept in bf16 by some) comes from the tensors' names.

The full NVFP4 layout follows the rules of the routed experts' for every linear. No public checkpoint of it could be
read, so the names of its attention tensors are **unverified** (dsv4-reference §14.3); the loader says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dsv4.runtime.errors import CheckpointError
from dsv4.runtime.model.config import ModelConfig, WeightScheme
from dsv4.runtime.weight import Format

Class = Literal["attention", "shared", "experts", "mtp_projections", "mtp_attention", "mtp_shared", "mtp_experts"]

UNVERIFIED = "the names of the attention tensors of a full NVFP4 checkpoint are unverified"


@dataclass(frozen=True)
class Layout:
    """The format of each class of linears; ``name`` is the configuration's weight scheme."""

    name: WeightScheme
    attention: Format
    shared: Format
    experts: Format
    mtp_projections: Format
    mtp_attention: Format
    mtp_shared: Format
    mtp_experts: Format

    @property
    def unverified(self) -> str | None:
        """What of this layout could not be held against a real checkpoint."""
        return UNVERIFIED if self.name == "nvfp4" else None


def _layout(name: WeightScheme, dense: Format, experts: Format, mtp: Format, mtp_experts: Format) -> Layout:
    return Layout(name, dense, dense, experts, mtp, mtp, mtp, mtp_experts)


LAYOUTS: Mapping[WeightScheme, Layout] = {
    "plain": _layout("plain", Format.PLAIN, Format.PLAIN, Format.PLAIN, Format.PLAIN),
    "fp8_mxfp4": _layout("fp8_mxfp4", Format.FP8_BLOCK, Format.MXFP4, Format.FP8_BLOCK, Format.MXFP4),
    "fp8_nvfp4": _layout("fp8_nvfp4", Format.FP8_BLOCK, Format.NVFP4, Format.FP8_BLOCK, Format.MXFP4),
    "nvfp4": _layout("nvfp4", Format.NVFP4, Format.NVFP4, Format.NVFP4, Format.NVFP4),
}

PROBES: Mapping[Class, str] = {
    "attention": "layers.0.attn.wq_a",
    "shared": "layers.0.ffn.shared_experts.w1",
    "experts": "layers.0.ffn.experts.0.w1",
    "mtp_projections": "mtp.0.e_proj",
    "mtp_attention": "mtp.0.attn.wq_a",
    "mtp_shared": "mtp.0.ffn.shared_experts.w1",
    "mtp_experts": "mtp.0.ffn.experts.0.w1",
}
"""One linear of each class, whose companions' names tell the format."""


def layout_of(config: ModelConfig, names: Collection[str]) -> Layout:
    """The layout that ``config`` says, adapted to what ``names`` (all tensors' of the checkpoint) say of the MTP layer.

    Raises ``CheckpointError`` where the names of the main layers contradict the configuration.
    """
    layout = LAYOUTS[config.weight_scheme]
    found = {kind: _format(kind, prefix, names) for kind, prefix in PROBES.items()}
    for kind in ("attention", "experts"):
        expected: Format = getattr(layout, kind)
        seen = found[kind]
        if seen not in (None, expected):
            raise CheckpointError(_contradiction(layout.name, PROBES[kind], expected, seen))
    adapted = {kind: found[kind] for kind in PROBES if kind.startswith("mtp_") and found[kind] is not None}
    return replace(layout, **adapted)  # type: ignore[arg-type]


def _format(kind: Class, prefix: str, names: Collection[str]) -> Format | None:
    """The format that the names of the linear ``prefix`` tell; ``None`` where there is no such linear."""
    if f"{prefix}.weight_scale" in names or f"{prefix}.weight_scale_2" in names:
        return Format.NVFP4
    if f"{prefix}.scale" in names:
        return Format.MXFP4 if kind in ("experts", "mtp_experts") else Format.FP8_BLOCK
    return Format.PLAIN if f"{prefix}.weight" in names else None


def _contradiction(scheme: WeightScheme, prefix: str, expected: Format, seen: Format) -> str:
    says = {
        "plain": "no quantization_config",
        "fp8_mxfp4": "quantization_config without moe_quant_algo",
        "fp8_nvfp4": "quantization_config.moe_quant_algo 'NVFP4'",
        "nvfp4": "quantization_config.quant_method 'modelopt'",
    }[scheme]
    valid = {
        Format.NVFP4: "moe_quant_algo 'NVFP4' (NVFP4 experts) or quant_method 'modelopt' (every linear NVFP4)",
        Format.MXFP4: "quant_method 'fp8' without moe_quant_algo",
        Format.FP8_BLOCK: "quant_method 'fp8'",
        Format.PLAIN: "no quantization_config",
    }[seen]
    return (
        f"config.json says {expected.value} for {prefix} ({says}), its tensors' names say {seen.value}; "
        f"valid for these tensors: {valid}"
    )
