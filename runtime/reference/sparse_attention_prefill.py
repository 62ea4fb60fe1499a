"""Attention of many queries over rows of one tensor of keys, with the row maxima of the logits (§7.5)."""

from __future__ import annotations

import math

import torch

GATHER_BYTES_MAX = 128 << 20
"""Keys gathered at a time: queries are taken in chunks."""


def sparse_attention_prefill(
    q: torch.Tensor,
    kv: torch.Tensor,
    rows: torch.Tensor,
    length: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    empty_lse: float = -math.inf,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(out [T, H, D], max_logits [T, H], lse [T, H]) of q [T, H, D] over rows [T, K] of kv [S, D].

    ``length`` [T]: only the leftmost so many rows of a query count. A row outside 0 … S − 1 is no key. ``max_logits``
    is the largest scaled logit, ``lse`` the natural log-sum-exp; ``sink`` [H] changes neither of them. A query without
    keys has out = 0, max_logits = −∞ and lse = ``empty_lse``.
    """
    tokens, heads, width = q.shape
    scale = width**-0.5 if softmax_scale is None else softmax_scale
    absent = (rows < 0) | (rows >= kv.shape[0])
    if length is not None:
        absent = absent | (torch.arange(rows.shape[1], device=rows.device) >= length[:, None])
    out = torch.empty(tokens, heads, width, dtype=out_dtype or q.dtype, device=q.device)
    max_logits, lse = (torch.empty(tokens, heads, dtype=dtype, device=q.device) for _ in range(2))
    step = max(1, GATHER_BYTES_MAX // max(1, rows.shape[1] * width * dtype.itemsize))
    for first in range(0, tokens, step):
        here = slice(first, first + step)
        gone = absent[here]
        found = kv[rows[here].masked_fill(gone, 0).long()] if kv.shape[0] else kv.new_zeros(*gone.shape, width)
        keys = found.to(dtype).masked_fill(gone[..., None], 0.0)
        logits = (q[here].to(dtype) @ keys.transpose(-1, -2) * scale).masked_fill(gone[:, None], -math.inf)
        empty = gone.all(dim=1)[:, None]
        max_logits[here] = logits.amax(dim=-1) if rows.shape[1] else -math.inf
        own_lse = logits.logsumexp(dim=-1)
        below = own_lse if sink is None else torch.logaddexp(own_lse, sink.to(dtype).expand_as(own_lse))
        weights = (logits - below.masked_fill(empty, 0.0)[..., None]).exp()
        out[here] = weights @ keys
        lse[here] = own_lse.masked_fill(empty, empty_lse)
    return out, max_logits, lse
