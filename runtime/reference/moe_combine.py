"""The routes of a token and the shared expert summed (dsv4-reference §9.2)."""

from __future__ import annotations

import torch


def moe_combine(
    routed: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Σ_i routed[t, i] + shared[t]: routed [T, k, d] (already weighted), shared [T, d]; [T, d] in ``out_dtype``.

    Summed in ``dtype`` and rounded once; ``out_dtype`` defaults to that of shared.
    """
    return (routed.to(dtype).sum(dim=1) + shared.to(dtype)).to(out_dtype or shared.dtype)
