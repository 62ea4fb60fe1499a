"""mHC before a sub-layer: the four streams mixed into its input, and the weights for mixing back (§2.2)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.mhc_mix import mixing_logits, weighted_streams
from dsv4.runtime.reference.rms_norm import rms_norm


def mhc_pre(
    streams: torch.Tensor,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns (u [T, d] in ``out_dtype``, post [T, n] and comb [T, n, n] in ``dtype``).

    With ``norm`` [d], the weight of the RMSNorm that follows, u is the norm of the mixture as it is rounded to
    ``out_dtype``.

    streams [T, n, d]; fn [(2+n)·n, n·d], base [(2+n)·n] and scale [3] are f32 parameters. With μ the mixing logits,
    pre = σ(μ·scale₀ + base) + eps, post = 2σ(μ·scale₁ + base), comb = ``sinkhorn``(μ·scale₂ + base), whose first index
    is the source stream; u = Σ_j pre_j · streams_j.
    """
    n = streams.shape[1]
    mu = mixing_logits(streams, fn, norm_eps=norm_eps, dtype=dtype)
    pre_logits, post_logits, comb_logits = mu.split((n, n, n * n), dim=-1)
    scale_pre, scale_post, scale_comb = scale.to(dtype).unbind()
    base_pre, base_post, base_comb = base.to(dtype).split((n, n, n * n))
    pre = torch.sigmoid(pre_logits * scale_pre + base_pre) + eps
    post = 2 * torch.sigmoid(post_logits * scale_post + base_post)
    comb = sinkhorn((comb_logits * scale_comb + base_comb).unflatten(-1, (n, n)), eps=eps, iterations=iterations)
    u = weighted_streams(pre, streams, dtype=dtype).to(out_dtype or streams.dtype)
    return (u if norm is None else rms_norm(u, norm, norm_eps, dtype=dtype)), post, comb


def sinkhorn(logits: torch.Tensor, *, eps: float, iterations: int) -> torch.Tensor:
    """A nearly doubly stochastic matrix from logits [.., n, n], rows the second last dimension.

    The softmax of the rows, plus eps, is the first row step; then ``iterations`` column steps with the other row steps
    between them, so that it ends on columns. Each step divides by the sum plus eps.
    """
    guard = logits.new_full((), eps)  # a Python number would be converted anew at each of the 40 sums
    matrix = torch.softmax(logits, dim=-1).add_(guard)
    matrix.div_(matrix.sum(dim=-2, keepdim=True).add_(guard))
    for _ in range(iterations - 1):
        matrix.div_(matrix.sum(dim=-1, keepdim=True).add_(guard))
        matrix.div_(matrix.sum(dim=-2, keepdim=True).add_(guard))
    return matrix
