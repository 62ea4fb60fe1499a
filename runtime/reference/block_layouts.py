"""Codes and scales as tensors, for products that take them so: formats, and where the scales of rows lie.

``row_major``: [T, blocks]. ``swizzled_128x4``: [⌈T/128⌉, 128 · blocks], bytes in tiles of 128 rows by 4 blocks, 0 where
there is no row (§9.4). ``m_major``: the values in float32, [blocks, T], each row of them aligned to 16 bytes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from dsv4.runtime.checkpoint.swizzle import swizzle_blockscale, unswizzle_blockscale
from dsv4.runtime.reference.quantize import quantize_fp8, quantize_mxfp4, quantize_nvfp4
from dsv4.runtime.weight import Quantized

Format = Literal["fp8_128", "fp8_32", "mxfp4", "nvfp4"]
Layout = Literal["row_major", "swizzled_128x4", "m_major"]
TILE_ROWS, TILE_BLOCKS = 128, 4
M_MAJOR_MULTIPLE = 4
"""Rows of transposed scales begin at multiples of it."""


class BlockFormat(NamedTuple):
    """``block`` columns share a scale in ``scale_dtype``; ``packed``: E2M1, two codes a byte, else E4M3."""

    block: int
    packed: bool
    scale_dtype: torch.dtype

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.uint8 if self.packed else torch.float8_e4m3fn


FORMATS: dict[str, BlockFormat] = {
    "fp8_128": BlockFormat(128, False, torch.float8_e8m0fnu),
    "fp8_32": BlockFormat(32, False, torch.float8_e8m0fnu),
    "mxfp4": BlockFormat(32, True, torch.float8_e8m0fnu),
    "nvfp4": BlockFormat(16, True, torch.float8_e4m3fn),
}


def problem(format: str, layout: str, columns: int, input_scale: torch.Tensor | None) -> str | None:
    """What would be valid instead of these for rows of ``columns``; None where they are."""
    found = FORMATS.get(format)
    if found is None:
        return f"format: found {format!r}; valid: {', '.join(FORMATS)}"
    if layout not in ("row_major", "swizzled_128x4", "m_major"):
        return f"scale_layout: found {layout!r}; valid: row_major, swizzled_128x4, m_major"
    if (input_scale is None) == (format == "nvfp4"):
        return f"input_scale: found {'none' if input_scale is None else 'one'} with {format}; valid: with nvfp4 alone"
    if layout == "m_major" and format != "fp8_128":
        return f"scale_layout: found m_major with {format}; valid: with fp8_128"
    multiple = found.block * (TILE_BLOCKS if layout == "swizzled_128x4" else 1)
    if columns % multiple:
        return f"x: found {columns} columns with {format}, {layout}; valid: a multiple of {multiple}"
    return None


def require(format: str, layout: str, columns: int, input_scale: torch.Tensor | None) -> BlockFormat:
    """Raises ``ValueError`` for what ``problem`` names."""
    if said := problem(format, layout, columns, input_scale):
        raise ValueError(said)
    return FORMATS[format]


def quantized(x: torch.Tensor, format: str, input_scale: torch.Tensor | None) -> Quantized:
    """x [T, K] by ``format``; ``input_scale`` is a scalar of one element."""
    if input_scale is not None:
        return quantize_nvfp4(x, input_scale.view(()))
    return quantize_mxfp4(x) if format == "mxfp4" else quantize_fp8(x, FORMATS[format].block)


def laid_out(scale: torch.Tensor, layout: str) -> torch.Tensor:
    """Scales [T, blocks] in ``layout``."""
    if layout == "row_major":
        return scale
    rows, blocks = scale.shape
    if layout == "swizzled_128x4":
        return swizzle_blockscale(scale).view(-(-rows // TILE_ROWS), TILE_ROWS * blocks)
    transposed = scale.new_zeros((blocks, -(-rows // M_MAJOR_MULTIPLE) * M_MAJOR_MULTIPLE), dtype=torch.float32)
    transposed[:, :rows] = scale.to(torch.float32).T
    return transposed[:, :rows]


def in_rows(scale: torch.Tensor, layout: str, rows: int) -> torch.Tensor:
    """The scales of ``rows`` as [T, blocks]: undoes ``laid_out``."""
    if layout == "m_major":
        return scale.T.to(torch.float8_e8m0fnu)
    if layout == "row_major":
        return scale
    tiles, width = scale.shape
    return unswizzle_blockscale(scale.view(tiles * TILE_ROWS, width // TILE_ROWS), rows, width // TILE_ROWS)
