"""The part that the three mHC operators share: mixing logits from the flattened, normalised streams (§2.2, §2.4)."""

from __future__ import annotations

import torch


def mixing_logits(streams: torch.Tensor, fn: torch.Tensor, *, norm_eps: float, dtype: torch.dtype) -> torch.Tensor:
    """μ [T, m] = ρ · (fn · x), x the streams [T, n, d] flattened stream-major, ρ = 1/√(mean(x²) + norm_eps).

    The normalisation is applied after the product, as the official code does.
    """
    x = streams.to(dtype).flatten(-2)
    rho = (x.square().mean(dim=-1, keepdim=True) + norm_eps).rsqrt()
    return (x @ fn.to(dtype).transpose(0, 1)) * rho


def weighted_streams(weights: torch.Tensor, streams: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Σ_k weights[t, k] · streams[t, k, :], [T, d] in ``dtype``."""
    return (weights[:, None, :] @ streams.to(dtype)).squeeze(-2)
