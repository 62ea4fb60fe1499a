"""The values of codes and of scales in the layout of a product (dsv4-reference §4.2, §9.3, §9.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.block_layouts import Format, Layout, in_rows, require
from dsv4.runtime.weight import Quantized


def dequantize_blocks(
    codes: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    *,
    format: Format,
    scale_layout: Layout = "row_major",
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """[T, K] in ``out_dtype`` of what ``quantize_blocks`` gives, computed in float32 (float64 for a float64 result).

    Raises ``ValueError`` for a format and a layout that do not go together.
    """
    columns = codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)
    found = require(format, scale_layout, columns, input_scale)
    outer = None if input_scale is None else input_scale.view(())
    wide = torch.float64 if out_dtype == torch.float64 else torch.float32
    rows = in_rows(scale, scale_layout, codes.shape[0])
    return Quantized(codes, rows, found.block, outer).dequantize(wide).to(out_dtype)
