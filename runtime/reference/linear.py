"""A linear without bias in every weight format: y = x Wᵀ (dsv4-reference §4.2, §9.3, §9.4).

Scales are powers of two in all formats but NVFP4, so that multiplying codes by them before the product instead of
after it, block by block, changes nothing but the order of the float32 sum.
"""

from __future__ import annotations

import torch

from dsv4.runtime.weight import Quantized, Weight


def linear(
    x: torch.Tensor | Quantized,
    weight: Weight,
    *,
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """x [.., in] or quantised, weight [out, in]: y [.., out] in ``out_dtype`` (default: that of x, bf16 if quantised).

    Products and sums in ``dtype``. On a GPU float32 products follow ``torch.backends.cuda.matmul``.
    """
    out_dtype = out_dtype or (torch.bfloat16 if isinstance(x, Quantized) else x.dtype)
    return (dense(x, dtype) @ weight.dequantize(dtype).transpose(-1, -2)).to(out_dtype)


def dense(x: torch.Tensor | Quantized, dtype: torch.dtype) -> torch.Tensor:
    """x as numbers in ``dtype``."""
    return x.dequantize(dtype) if isinstance(x, Quantized) else x.to(dtype)
