"""The routes of a token, which lie anywhere among rows, and the shared expert summed (dsv4-reference §9.2)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.moe_combine import moe_combine


def moe_combine_rows(
    rows: torch.Tensor,
    index: torch.Tensor,
    shared: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Σ_i rows[index[t, i]] + shared[t]: rows [S, d] (already weighted), index [T, k], −1 adds nothing; [T, d]."""
    if rows.shape[0] == 0:
        taken = rows.new_zeros((*index.shape, rows.shape[1]))
    else:
        taken = rows[index.clamp(min=0).to(torch.int64)].masked_fill((index < 0)[..., None], 0.0)
    return moe_combine(taken, shared, dtype=dtype, out_dtype=out_dtype)
