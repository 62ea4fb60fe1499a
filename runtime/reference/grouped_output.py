"""The grouped half of the output projection, wo_a (dsv4-reference §8); wo_b, which follows, is a ``linear``."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.linear import dense
from dsv4.runtime.weight import Quantized, Weight


def grouped_output(
    out: torch.Tensor | Quantized,
    wo_a: Weight,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """out [T, G, W] or quantised, wo_a [G·R, W] with the rows of group g from g·R on: z [T, G·R].

    z[t, g·R + r] = Σ_i out[t, g, i] · wo_a[g·R + r, i].

    In ``out_dtype`` (default: that of out, bf16 if quantised).
    """
    out_dtype = out_dtype or (torch.bfloat16 if isinstance(out, Quantized) else out.dtype)
    groups = dense(out, dtype).transpose(0, 1)  # [G, T, W]
    per_group = wo_a.dequantize(dtype).unflatten(0, (groups.shape[0], -1))  # [G, R, W]
    return (groups @ per_group.transpose(-1, -2)).transpose(0, 1).flatten(1).to(out_dtype)
