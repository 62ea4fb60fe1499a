"""Dense attention in plain PyTorch: the oracle of the fmha kernels and the CPU path."""

from __future__ import annotations

import math

import torch

SCORE_BYTES_MAX = 64 << 20
"""Scores held at a time: queries are taken in chunks, one batch at a time, so memory does not grow with Sq · Sk."""


def fmha(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    softmax_scale: float | None = None,
    sink: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """O = softmax(softmax_scale · q kᵀ) v and the log of the softmax's denominator (dsv4-reference §7.2).

    q [B, Sq, Hq, D], k and v [B, Sk, Hkv, D] in any floating dtype on any device; Hq is a multiple of Hkv and query
    head h reads key head h // (Hq / Hkv). ``causal``: query i sees key j iff j ≤ i + Sk − Sq. ``softmax_scale``
    defaults to 1/√D. ``sink`` [Hq] holds one more logit a head, a column without a value: it scales O by
    1 / (1 + e^(sink − lse)).

    Returns (out [B, Sq, Hq, D] in ``out_dtype``, default that of ``q``; lse [B, Hq, Sq] in ``dtype``, natural log,
    never including the sink). A row without keys has O = 0 and lse = −∞. Computed in ``dtype``. On a GPU float32
    products follow ``torch.backends.cuda.matmul``; float64 is the oracle.
    """
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    scale = width**-0.5 if softmax_scale is None else softmax_scale
    out = torch.zeros(batch, queries, heads, width, dtype=out_dtype or q.dtype, device=q.device)
    lse = torch.full((batch, heads, queries), -math.inf, dtype=dtype, device=q.device)
    if out.numel() == 0 or keys == 0:
        return out, lse
    group = heads // kv_heads
    chunk = max(1, SCORE_BYTES_MAX // (heads * keys * dtype.itemsize))
    column = torch.arange(keys, device=q.device)
    for b in range(batch):
        k_wide = k[b].to(dtype).transpose(0, 1)[:, None]  # [Hkv, 1, Sk, D]
        v_wide = v[b].to(dtype).transpose(0, 1)[:, None]
        for first in range(0, queries, chunk):
            last = min(first + chunk, queries)
            seen = min(keys, last + keys - queries) if causal else keys
            if seen <= 0:
                continue
            rows = q[b, first:last].to(dtype).view(last - first, kv_heads, group, width).permute(1, 2, 0, 3)
            scores = (rows @ k_wide[:, :, :seen].transpose(-1, -2)) * scale  # [Hkv, group, rows, seen]
            if causal:
                row = torch.arange(first, last, device=q.device)
                scores.masked_fill_(column[:seen] > row[:, None] + (keys - queries), -math.inf)
            values, row_lse = _softmax_times(scores, v_wide[:, :, :seen])
            if sink is not None:
                values *= _kept_beside_sink(row_lse, sink.to(dtype).view(kv_heads, group, 1))[..., None]
            out[b, first:last] = values.permute(2, 0, 1, 3).reshape(last - first, heads, width)
            lse[b, :, first:last] = row_lse.reshape(heads, last - first)
    return out, lse


def _softmax_times(scores: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax over the last dimension of ``scores`` (overwritten) times ``values``, and its lse; 0 and −∞ where all
    scores of a row are −∞."""
    peak = scores.amax(dim=-1, keepdim=True)
    peak = torch.where(torch.isneginf(peak), 0.0, peak)
    weights = scores.sub_(peak).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    lse = (total.log() + peak).squeeze(-1)
    return ((weights @ values) / total).masked_fill(total == 0, 0.0), lse


def _kept_beside_sink(lse: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e^(sink − lse)): the share of the denominator that real keys have; a row without keys keeps nothing."""
    return torch.where(torch.isneginf(lse), 0.0, torch.sigmoid(lse - sink))
