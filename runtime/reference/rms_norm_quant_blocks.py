"""RMSNorm, its bf16 result as codes and as scales in the layout of a product (dsv4-reference §3.1, §4.2, §9)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.block_layouts import Format, Layout, laid_out, quantized, require
from dsv4.runtime.reference.rms_norm import rms_norm


def rms_norm_quant_blocks(
    x: torch.Tensor,
    weight: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    format: Format,
    scale_layout: Layout = "row_major",
    with_y: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:
    """x [T, d]: (codes, scales) of y = RMSNorm(x) in the dtype of x, and with ``with_y`` y behind them.

    Raises ``ValueError`` for a format and a layout that do not go together.
    """
    require(format, scale_layout, x.shape[1], input_scale)
    y = rms_norm(x, weight, eps, dtype=dtype)
    found = quantized(y, format, input_scale)
    result = found.codes, laid_out(found.scale, scale_layout)
    return (*result, y) if with_y else result
