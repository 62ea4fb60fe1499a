"""Attention over parts of the keys put together, the sink applied once at the end (dsv4-reference §7.2)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.sparse_attention import kept_beside_sink


def attention_combine(
    parts: torch.Tensor,
    part_lse: torch.Tensor,
    sink: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """parts [P, T, H, D] without sink and part_lse [P, T, H] give (out [T, H, D], lse [T, H]).

    lse = log Σ e^(part_lse), out = Σ e^(part_lse − lse) · part. A part without keys has lse −∞ or (FlashMLA's) +∞ and
    counts nothing, whatever its values; where no part has keys, out = 0 and lse = −∞. ``sink`` [H] scales out at last.
    """
    wide = part_lse.to(dtype)
    wide = wide.masked_fill(wide.isposinf(), -torch.inf)
    lse = torch.logsumexp(wide, dim=0)
    finite = lse.masked_fill(lse.isneginf(), 0.0)
    weights = (wide - finite).exp()[..., None]
    out = torch.where(weights == 0, 0.0, weights * parts.to(dtype)).sum(dim=0)
    if sink is not None:
        out = out * kept_beside_sink(lse, sink)[..., None]
    return out.to(out_dtype or parts.dtype), lse
