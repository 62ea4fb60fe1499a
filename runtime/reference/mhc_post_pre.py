"""mHC between two sub-layers: the output of one spread over the streams, these mixed into the input of the next."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.mhc_post import mhc_post
from dsv4.runtime.reference.mhc_pre import mhc_pre


def mhc_post_pre(
    update: torch.Tensor,
    streams: torch.Tensor,
    post: torch.Tensor,
    comb: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None = None,
    *,
    norm_eps: float = 1e-6,
    eps: float = 1e-6,
    iterations: int = 20,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(new streams, u, post, comb): ``mhc_post``, then ``mhc_pre`` of its rounded result (§2.2, §2.3)."""
    new = mhc_post(update, streams, post, comb, dtype=dtype, out_dtype=out_dtype)
    options = {"norm_eps": norm_eps, "eps": eps}
    mixed = mhc_pre(new, fn, base, scale, norm, iterations=iterations, dtype=dtype, out_dtype=out_dtype, **options)
    return (new, *mixed)
