"""Token embedding and the initial residual streams in plain PyTorch (dsv4-reference §2.1)."""

from __future__ import annotations

import torch


def embed(
    tokens: torch.Tensor, table: torch.Tensor, *, streams: int = 4, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """X[t, k, :] = table[tokens[t]] for k < streams: [T, streams, d] in ``out_dtype`` (default: that of the table).

    tokens i64 or i32 [T], table [vocabulary, d]. ``streams=0`` gives the plain embedding [T, d].
    """
    rows = table[tokens].to(out_dtype or table.dtype)
    return rows if streams == 0 else rows[:, None].expand(-1, streams, -1).contiguous()
