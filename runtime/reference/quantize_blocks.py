"""Rows as codes and as scales in the layout of a product (dsv4-reference §4.2, §9.3, §9.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.block_layouts import Format, Layout, laid_out, quantized, require


def quantize_blocks(
    x: torch.Tensor, input_scale: torch.Tensor | None = None, *, format: Format, scale_layout: Layout = "row_major"
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K]: (codes [T, K] in E4M3 or [T, K/2] in bytes of two E2M1, scales in ``scale_layout``).

    Raises ``ValueError`` for a format and a layout that do not go together.
    """
    require(format, scale_layout, x.shape[1], input_scale)
    found = quantized(x, format, input_scale)
    return found.codes, laid_out(found.scale, scale_layout)
