"""moe_combine: the routes of a token and the shared expert summed."""

from __future__ import annotations

import torch

from dsv4.runtime.ops.plain import Operator
from dsv4.runtime.reference import moe_combine as reference

_operator = Operator("moe_combine", reference.moe_combine, "routed: float [T, k, d]", "shared: float [T, d]")


def moe_combine(
    routed: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Σ_i routed[t, i] + shared[t], [T, d] in ``out_dtype`` (default: that of shared), summed in ``dtype``.

    Raises ``ContractError``. dsv4-reference §9.2.
    """
    return _operator(routed, shared, dtype=dtype, out_dtype=out_dtype)
