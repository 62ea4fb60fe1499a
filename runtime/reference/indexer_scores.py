"""Scores of the compressed entries for each query: weighted ReLU of the heads' products (dsv4-reference §6.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.pool import Pool
from dsv4.runtime.reference import pages
from dsv4.runtime.weight import Quantized

SCORE_BYTES_MAX = 64 << 20
"""Products of heads and entries held at a time."""


def indexer_scores(
    q: torch.Tensor | Quantized,
    weights: torch.Tensor,
    pool: Pool,
    rows: torch.Tensor,
    visible: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    scale: float = 1.0,
    folded: bool = False,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """I[t, e] = Σ_h (weights[t, h] · scale) · max(0, q[t, h] · k[e]), [T, E] in ``dtype``; −∞ from ``visible[t]`` on.

    q [T, h, D] or quantised; weights [T, h] from weights_proj; the keys k are ``rows`` [S, E] of ``pool``, one row of
    entries a sequence; ``lengths`` says how many of the T tokens, in order, belong to each of the S sequences;
    visible [T] entries may be seen. Entries may be negative, because the weights may be. ``folded``: the weights hold
    the scale of each query that has one (``indexer_q_folded``), which is not looked at then. ``stage_dtype``: round the
    scaled weight, the product, the weighted product and the sum to it (the official code, bf16).
    """
    queries = _numbers(q, without_scale=folded, dtype=dtype)
    stage = stage_dtype or dtype
    scaled = (weights.to(stage) * scale).to(dtype)
    tokens, heads, _ = queries.shape
    sequences, entries = rows.shape
    scores = torch.empty(tokens, entries, dtype=dtype, device=queries.device)
    if not tokens or not entries:
        return scores
    keys = pages.read_rows(pool, rows, dtype=dtype).transpose(-1, -2)  # [S, D, E]
    if len(set(lengths)) == 1 and tokens * heads * entries * dtype.itemsize <= SCORE_BYTES_MAX:
        shape = (sequences, lengths[0])
        products = queries.view(*shape, heads, -1).flatten(1, 2) @ keys
        scores = _weighted(products.view(tokens, heads, entries), scaled, stage)
    else:
        step = max(1, SCORE_BYTES_MAX // (heads * entries * dtype.itemsize))
        first = 0
        for sequence, length in enumerate(lengths):
            for start in range(first, first + length, step):
                end = min(start + step, first + length)
                products = queries[start:end] @ keys[sequence]
                scores[start:end] = _weighted(products, scaled[start:end], stage)
            first += length
    seen = torch.arange(entries, device=queries.device) < visible[:, None]
    return scores.masked_fill_(~seen, -torch.inf)


def _numbers(q: torch.Tensor | Quantized, *, without_scale: bool, dtype: torch.dtype) -> torch.Tensor:
    """The queries [T, h, D] in ``dtype``; ``without_scale``: the codes where a query has one scale."""
    if not isinstance(q, Quantized):
        return q.to(dtype)
    return q.codes.to(dtype) if without_scale and q.scale.shape[-1] == 1 else q.dequantize(dtype)


def _weighted(products: torch.Tensor, weights: torch.Tensor, stage: torch.dtype) -> torch.Tensor:
    """Σ_h weights[t, h] · max(0, products[t, h, e]), each step rounded to ``stage``; in the dtype of ``products``."""
    if stage == products.dtype:
        return (weights[:, None, :] @ products.relu()).squeeze(1)
    weighted = (products.to(stage).relu() * weights.to(stage)[..., None]).to(products.dtype)
    return weighted.sum(dim=1).to(stage).to(products.dtype)
