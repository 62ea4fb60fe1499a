"""mHC after a sub-layer: its output spread over the streams, and the streams mixed among themselves (§2.3)."""

from __future__ import annotations

import torch


def mhc_post(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """X'[t, k, :] = post[t, k] · update[t, :] + Σ_j comb[t, j, k] · streams[t, j, :].

    update [T, d], streams [T, n, d] (those that ``mhc_pre`` took), post [T, n], comb [T, n, n] with the source stream
    first: the transpose of comb is applied. Returns [T, n, d] in ``out_dtype`` (default: that of streams).
    """
    mixed = comb.to(dtype).transpose(-1, -2) @ streams.to(dtype)
    return (post.to(dtype)[..., None] * update.to(dtype)[:, None, :] + mixed).to(out_dtype or streams.dtype)
