"""linear: y = x Wᵀ in every weight format."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import linear as reference
from dsv4.runtime.weight import Quantized, Weight

_operator = Operator("linear", reference.linear, "x: activation [.., i]", "weight: weight [o, i]")


def linear(
    x: torch.Tensor | Quantized,
    weight: Weight,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """y [.., out] of x [.., in], plain or quantised, and weight [out, in] in any format.

    ``dtype`` is that of products and sums; ``out_dtype`` by default that of x, bf16 if it is quantised. Raises
    ``ContractError``. dsv4-reference §4.2, §9.
    """
    return _operator(x, weight, dtype=dtype, out_dtype=out_dtype)
