"""The attention output turned back, as codes and as scales in the layout of a grouped product (dsv4-reference §8)."""

from __future__ import annotations

from typing import Literal

import torch

from dsv4.runtime.reference.inverse_rope_quant import inverse_rope_quant

GroupedLayout = Literal["m_major_f32", "m_major_packed"]
ROWS_MULTIPLE, HEAD_SCALES = 4, 4
"""Transposed rows are that long a multiple; a head has so many scales."""


def inverse_rope_quant_blocks(
    out: torch.Tensor,
    cos_sin: torch.Tensor,
    *,
    groups: int,
    scale_layout: GroupedLayout,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [T, H, 512]: (E4M3 codes [T, G, H/G·512], scales transposed, T rounded up to 4, 0 for tokens past the last).

    ``m_major_f32``: values f32 [G, H/G·4, T']. ``m_major_packed``: i32 [G, H/G, T'], the four E8M0 codes of a head, the
    first in the lowest byte. Raises ``ValueError`` for another layout.
    """
    if scale_layout not in ("m_major_f32", "m_major_packed"):
        raise ValueError(f"scale_layout: found {scale_layout!r}; valid: m_major_f32, m_major_packed")
    found = inverse_rope_quant(out, cos_sin, groups=groups, quantize=True, dtype=dtype)
    codes, scale = found[:2]
    missing = -scale.shape[0] % ROWS_MULTIPLE
    if scale_layout == "m_major_f32":
        rows = torch.nn.functional.pad(scale.to(torch.float32), (0, 0, 0, 0, 0, missing))
    else:
        raw = torch.nn.functional.pad(scale.view(torch.uint8), (0, 0, 0, 0, 0, missing))
        rows = raw.view(torch.int32)
    return codes, rows.permute(1, 2, 0).contiguous()
