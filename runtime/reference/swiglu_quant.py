"""The activation of an expert: clamped SwiGLU, times the route's weight, quantised on request (dsv4-reference §9.2)."""

from __future__ import annotations

import torch
from torch.nn.functional import silu

from dsv4.runtime.reference.quantize import quantize_fp8
from dsv4.runtime.weight import Quantized


def swiglu_quant(
    gate: torch.Tensor,
    up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    *,
    limit: float,
    block: int = 0,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """h = silu(min(gate, limit)) · clamp(up, ±limit) · route_weight: gate and up [S, I], route_weight [S] or none.

    The gate is clamped from above only. Plain in ``out_dtype`` (default: that of gate), or with ``block`` (32 or 128)
    E4M3 with an E8M0 scale for each ``block`` columns, from values that were not rounded before.
    """
    h = silu(gate.to(dtype).clamp(max=limit)) * up.to(dtype).clamp(-limit, limit)
    if route_weight is not None:
        h = h * route_weight.to(dtype)[..., None]
    return quantize_fp8(h, block) if block else h.to(out_dtype or gate.dtype)


RUN = 8
"""Gates and ups in a run, where they lie interleaved."""


def swiglu_quant_joined(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    *,
    limit: float,
    block: int = 0,
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """``swiglu_quant`` of gate_up [S, 2·I]: gates and then ups, or ``interleaved`` in runs of 8 of either by turns."""
    if interleaved:
        gate, up = (part.flatten(-2) for part in gate_up.unflatten(-1, (-1, 2, RUN)).unbind(-2))
    else:
        gate, up = gate_up.chunk(2, dim=-1)
    return swiglu_quant(gate, up, route_weight, limit=limit, block=block, dtype=dtype, out_dtype=out_dtype)
