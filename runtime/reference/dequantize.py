"""The values of codes and their scales (§4.2, §9.3, §9.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.weight import Quantized


def dequantize(x: Quantized, *, out_dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """x [.., K] in ``out_dtype``: code · scale (· scale_2), computed in float32 (float64 for a float64 result)."""
    wide = torch.float64 if out_dtype == torch.float64 else torch.float32
    return x.dequantize(wide).to(out_dtype)
