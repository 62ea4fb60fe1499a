"""The attention output turned back by the query's position, in groups, quantised on request (§3.5, §8)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.quantize import quantize_fp8
from dsv4.runtime.reference.rope import rotate
from dsv4.runtime.weight import Quantized

FLOOR = 1e-10
"""The least amax of a block here; the fused kernels of public engines have this one, not the 1e-4 of other linears."""


def inverse_rope_quant(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    quantize: bool = False,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor | Quantized:
    """out [T, H, D] with its last r dimensions rotated by −position, as [T, G, H/G·D], head-major inside a group.

    cos_sin [T, r] of the queries' positions. Plain in ``out_dtype`` (default: that of out), or with ``quantize`` E4M3
    with an E8M0 scale for each 128 columns.
    """
    tokens, heads, width = out.shape
    turned = rotate(out, cos_sin, inverse=True, dtype=dtype, out_dtype=dtype if quantize else out_dtype or out.dtype)
    grouped = turned.reshape(tokens, groups, heads // groups * width)
    return quantize_fp8(grouped, 128, floor=FLOOR) if quantize else grouped
