"""The indexer's queries: rotated, Hadamard-transformed, quantised (dsv4-reference §6.1 – §6.3)."""

from __future__ import annotations

from typing import Literal

import torch

from dsv4.runtime.reference.hadamard import hadamard
from dsv4.runtime.reference.quantize import quantize_fp8, quantize_mxfp4
from dsv4.runtime.reference.rope import rotate
from dsv4.runtime.weight import Quantized

IndexCode = Literal["none", "fp8", "fp4"]


def indexer_q(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    code: IndexCode = "none",
    rotate_hadamard: bool = False,
    stage_dtype: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """q [T, h, D] from the indexer's wq_b; cos_sin [T, r] of the tokens' positions.

    The last r dimensions are rotated, then the Hadamard transform, then ``code``: ``"none"`` gives [T, h, D] in
    ``out_dtype`` (default: that of q), ``"fp4"`` MXFP4, ``"fp8"`` E4M3 with one scale a head. ``stage_dtype``: round to
    it after each step (the official code, bf16).
    """
    stage = stage_dtype or dtype
    rotated = rotate(q, cos_sin, dtype=dtype, out_dtype=stage)
    if rotate_hadamard:
        rotated = hadamard(rotated.to(dtype)).to(stage)
    if code == "fp4":
        return quantize_mxfp4(rotated)
    if code == "fp8":
        return quantize_fp8(rotated, rotated.shape[-1])
    return rotated.to(out_dtype or q.dtype)


def indexer_q_folded(
    q: torch.Tensor,
    cos_sin: torch.Tensor,
    weights: torch.Tensor,
    *,
    scale: float,
    code: IndexCode = "none",
    rotate_hadamard: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor | Quantized, torch.Tensor]:
    """``indexer_q`` and, of weights [T, h] from weights_proj, ``fold_weights``."""
    made = indexer_q(q, cos_sin, code=code, rotate_hadamard=rotate_hadamard, dtype=dtype, out_dtype=out_dtype)
    return made, fold_weights(weights, made, scale=scale, dtype=dtype)


def fold_weights(
    weights: torch.Tensor, q: torch.Tensor | Quantized, *, scale: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """weights [T, h] · scale, times the scale of each query where q has one a head (fp8), in ``dtype``.

    The scale of a query is positive, so it may leave the ReLU and join the weight: the scores then take the codes as
    they are (§6.5). ``q`` is what :func:`indexer_q` returned; MXFP4 queries and plain ones keep their scales.
    """
    folded = weights.to(dtype) * scale
    if isinstance(q, Quantized) and q.scale.shape[-1] == 1:
        folded = folded * q.scale.to(dtype).squeeze(-1)
    return folded
