"""inverse_rope_quant: the attention output rotated back, grouped, quantised on request."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import inverse_rope_quant as reference
from dsv4.runtime.weight import Quantized

_operator = Operator("inverse_rope_quant", reference.inverse_rope_quant, "out: float [T, H, D]", "cos_sin: wide [T, r]")


def inverse_rope_quant(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    quantize: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """out [T, H, D] as [T, G, H/G·D], plain in ``out_dtype`` or E4M3 with an E8M0 scale for each 128 columns.

    cos_sin [T, r] is ``rope_table`` of the queries' positions, applied with the opposite sign. Raises
    ``ContractError``. dsv4-reference §3.5, §8.
    """
    return _operator(out, cos_sin, groups=groups, quantize=quantize, dtype=dtype, out_dtype=out_dtype)
