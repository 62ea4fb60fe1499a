"""Attention of every request's queries over their own rows of one or two pools, with lengths (§7.2, §7.4)."""

from __future__ import annotations

import math

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.sparse_attention import sparse_attention


def sparse_attention_decode(
    q: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    length: torch.Tensor | None = None,
    extra: Pool | None = None,
    extra_rows: torch.Tensor | None = None,
    extra_length: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    empty_lse: float = -math.inf,
    probability_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [B, Q, H, D], lse [B, H, Q]) of q [B, Q, H, D] over rows [B, Q, K0] of ``pool`` and [B, Q, K1] of ``extra``.

    ``length`` and ``extra_length`` [B]: only the leftmost so many rows of a request's queries count. A row outside its
    pool is no key. The options are those of ``sparse_attention``; without keys out = 0 and lse = ``empty_lse``.
    """
    requests, queries, heads, width = q.shape
    out, lse = sparse_attention(
        q.reshape(requests * queries, heads, width),
        pool,
        counted(pool, rows, length),
        extra,
        None if extra is None or extra_rows is None else counted(extra, extra_rows, extra_length),
        sink,
        softmax_scale=softmax_scale,
        probability_dtype=probability_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
    lse = lse.masked_fill(lse.isneginf(), empty_lse)
    return out.view(q.shape), lse.view(requests, queries, heads).transpose(1, 2)


def counted(pool: Pool, rows: torch.Tensor, length: torch.Tensor | None) -> torch.Tensor:
    """``rows`` [B, Q, K] as [B·Q, K], with −1 for those that are no rows of ``pool`` or lie beyond the length."""
    absent = (rows < 0) | (rows >= pool.rows)
    if length is not None:
        absent = absent | (torch.arange(rows.shape[2], device=rows.device) >= length[:, None, None])
    return rows.masked_fill(absent, -1).flatten(0, 1)
