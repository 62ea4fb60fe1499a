"""The activation of an expert as codes and as scales in the layout of a product (dsv4-reference §9.2 – §9.4)."""

from __future__ import annotations

import torch

from dsv4.runtime.reference.block_layouts import Format, Layout, laid_out, quantized, require
from dsv4.runtime.reference.swiglu_quant import swiglu_quant_joined


def swiglu_quant_blocks(
    gate_up: torch.Tensor,
    route_weight: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    *,
    limit: float,
    format: Format,
    scale_layout: Layout = "row_major",
    interleaved: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """gate_up [S, 2·I]: (codes, scales) of ``swiglu_quant_joined``'s values, which are not rounded before.

    Raises ``ValueError`` for a format and a layout that do not go together.
    """
    require(format, scale_layout, gate_up.shape[1] // 2, input_scale)
    h = swiglu_quant_joined(gate_up, route_weight, limit=limit, interleaved=interleaved, dtype=dtype, out_dtype=dtype)
    assert isinstance(h, torch.Tensor)
    found = quantized(h, format, input_scale)
    return found.codes, laid_out(found.scale, scale_layout)
