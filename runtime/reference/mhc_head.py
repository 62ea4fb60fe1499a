"""mHC before the LM head: the streams mixed into one (dsv4-reference §2.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.mhc_mix import mixing_logits, weighted_streams
from dsv4.runtime.reference.rms_norm import rms_norm


def mhc_head(
    streams: torch.Tensor,
    fn: torch.Tensor,
    base: torch.Tensor,
    scale: torch.Tensor,
    norm: torch.Tensor | None = None,
    *,
    norm_eps: float = 1e-6,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """h [T, d] = Σ_k (σ(μ_k·scale + base_k) + eps) · streams[t, k, :].

    With ``norm`` [d] the RMSNorm of h as it is rounded to ``out_dtype`` (default: the dtype of streams).
    streams [T, n, d]; fn [n, n·d], base [n] and scale [1] are f32 parameters, μ the mixing logits of ``mhc_pre``.
    """
    mu = mixing_logits(streams, fn, norm_eps=norm_eps, dtype=dtype)
    weights = torch.sigmoid(mu * scale.to(dtype) + base.to(dtype)) + eps
    h = weighted_streams(weights, streams, dtype=dtype).to(out_dtype or streams.dtype)
    return h if norm is None else rms_norm(h, norm, norm_eps, dtype=dtype)
