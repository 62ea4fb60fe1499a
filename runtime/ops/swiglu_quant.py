"""swiglu_quant: the clamped activation of an expert, quantised on request."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import swiglu_quant as reference
from dsv4.runtime.weight import Quantized

_operator = Operator(
    "swiglu_quant",
    reference.swiglu_quant,
    "gate: float [T, I]",
    "up: float [T, I]",
    "route_weight?: wide [T]",
)


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
    """silu(min(gate, limit)) · clamp(up, ±limit) · route_weight: gate and up float [T, I], route_weight [T] or none.

    Plain in ``out_dtype`` (default: that of gate), or with ``block`` 32 or 128 E4M3 with an E8M0 scale for each
    ``block`` columns. ``dtype`` is that of the arithmetic. Raises ``ContractError``. dsv4-reference §9.2.
    """
    return _operator(gate, up, route_weight, limit=limit, block=block, dtype=dtype, out_dtype=out_dtype)
