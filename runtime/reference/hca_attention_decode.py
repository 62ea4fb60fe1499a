"""Attention of decoding queries over their window and all compressed entries of their request (HCA, §7.1, §7.2)."""

from __future__ import annotations

import math

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference.sparse_attention_decode import sparse_attention_decode


def hca_attention_decode(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool,
    pages: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    empty_lse: float = -math.inf,
    probability_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [B, Q, H, D], lse [B, H, Q]) of q [B, Q, H, D].

    Keys are the rows ``window_rows`` [B, Q, K0] of ``window``, and of the entries of the request the first ``visible``
    [B, Q]: entry e lies in row e mod P of page ``pages`` [B, e // P] of ``compressed``. What is no row of its pool is
    no key. The rest is as in ``sparse_attention_decode``.
    """
    page = compressed.page
    entries = torch.arange(pages.shape[1] * page, device=pages.device)
    owner = pages.long()[:, entries // page]
    rows = torch.where(owner < 0, -1, owner * page + entries % page)
    seen = entries < visible[..., None]
    return sparse_attention_decode(
        q,
        window,
        window_rows,
        None,
        compressed,
        rows[:, None].expand(-1, q.shape[1], -1).masked_fill(~seen, -1),
        None,
        sink,
        softmax_scale=softmax_scale,
        empty_lse=empty_lse,
        probability_dtype=probability_dtype,
        dtype=dtype,
        out_dtype=out_dtype,
    )
