"""Attention over rows of two pools, window and compressed entries, with a sink and the log-sum-exp (§7.1, §7.2)."""

from __future__ import annotations

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import pages

GATHER_BYTES_MAX = 128 << 20
"""Keys gathered at a time: queries are taken in chunks."""


def sparse_attention(
    q: torch.Tensor,
    window: Pool,
    window_rows: torch.Tensor,
    compressed: Pool | None = None,
    compressed_rows: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    softmax_scale: float | None = None,
    probability_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every query attends to its own rows, which are keys and values of all heads: (out [T, H, D], lse [T, H]).

    q [T, H, D]; window_rows [T, K0] and compressed_rows [T, K1] hold flat rows of the pools, −1 for none, in any order.
    ``sink`` [H] is one more logit a head, without a value, counted once: out is scaled by 1 / (1 + e^(sink − lse)).
    ``softmax_scale`` defaults to 1/√D. ``probability_dtype``: e^(s − max) is rounded to it before it meets the values
    (bf16 in the official code and the kernels), the sum of the softmax is not. lse is in ``dtype``, natural log,
    without the sink. A query without keys has out = 0 and lse = −∞.
    """
    tokens, heads, width = q.shape
    scale = width**-0.5 if softmax_scale is None else softmax_scale
    out = torch.empty(tokens, heads, width, dtype=out_dtype or q.dtype, device=q.device)
    lse = torch.empty(tokens, heads, dtype=dtype, device=q.device)
    columns = window_rows.shape[1] + (0 if compressed_rows is None else compressed_rows.shape[1])
    step = max(1, GATHER_BYTES_MAX // max(1, columns * width * dtype.itemsize))
    for first in range(0, tokens, step):
        here = slice(first, first + step)
        rows = window_rows[here]
        keys = pages.read_rows(window, rows, dtype=dtype)
        if compressed is not None and compressed_rows is not None:
            more = compressed_rows[here]
            keys = torch.cat((keys, pages.read_rows(compressed, more, dtype=dtype)), dim=1)
            rows = torch.cat((rows, more), dim=1)
        scores = (q[here].to(dtype) @ keys.transpose(-1, -2)) * scale
        scores = scores.masked_fill_((rows < 0)[:, None], -torch.inf)
        out[here], lse[here] = _attended(scores, keys, sink, probability_dtype)
    return out, lse


def _attended(
    scores: torch.Tensor, values: torch.Tensor, sink: torch.Tensor | None, probability_dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if scores.shape[-1] == 0:
        return values.new_zeros(*scores.shape[:2], values.shape[-1]), scores.new_full(scores.shape[:2], -torch.inf)
    peak = scores.amax(dim=-1, keepdim=True)
    peak = peak.masked_fill(peak.isneginf(), 0.0)
    weights = (scores - peak).exp()
    total = weights.sum(dim=-1, keepdim=True)
    lse = (total.log() + peak).squeeze(-1)
    if probability_dtype is not None:
        weights = weights.to(probability_dtype).to(scores.dtype)
    out = (weights @ values) / total.masked_fill(total == 0, 1.0)
    return (out if sink is None else out * kept_beside_sink(lse, sink)[..., None]), lse


def kept_beside_sink(lse: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e^(sink − lse)) [T, H]: the share of the denominator that real keys have; none without keys."""
    return torch.sigmoid(lse - sink.to(lse.dtype)).masked_fill(lse.isneginf(), 0.0)
