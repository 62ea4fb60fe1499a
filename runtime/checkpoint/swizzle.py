"""Block scales in the order in which the tensor cores read them: tiles of 128 × 4 (dsv4-reference §9.4)."""

from __future__ import annotations

import torch

ROWS, COLUMNS = 128, 4


def swizzle_blockscale(scale: torch.Tensor) -> torch.Tensor:
    """Scales [.., R, C] of one byte each, row-major as on disk, as [.., ⌈R/128⌉·128, ⌈C/4⌉·4] in tiles of 128 × 4.

    Missing rows and columns become zero bytes. The byte of (row, column) is at
    ((row / 128) · (C / 4) + column / 4) · 512 + (row % 32) · 16 + ((row % 128) / 32) · 4 + column % 4, C padded.
    The dtype stays; the shape says how many bytes there are, not where they lie.
    """
    if scale.ndim < 2 or scale.itemsize != 1:
        raise ValueError(f"scale: found {scale.dtype} {list(scale.shape)}; valid: [.., R, C] of one byte each")
    rows, columns = scale.shape[-2:]
    raw = torch.nn.functional.pad(scale.view(torch.uint8), (0, -columns % COLUMNS, 0, -rows % ROWS))
    shape = raw.shape
    tiles = raw.unflatten(-1, (-1, COLUMNS)).unflatten(-3, (-1, 4, 32))  # [.., R/128, 4, 32, C/4, 4]
    return tiles.movedim(-2, -4).transpose(-3, -2).reshape(shape).view(scale.dtype)


def unswizzle_blockscale(swizzled: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Undoes ``swizzle_blockscale``: [.., rows, columns] row-major."""
    padded_rows, padded_columns = swizzled.shape[-2:]
    raw = swizzled.view(torch.uint8).flatten(-2)
    tiles = raw.unflatten(-1, (padded_rows // ROWS, padded_columns // COLUMNS, 32, 4, COLUMNS))
    plain = tiles.transpose(-3, -2).movedim(-4, -2).reshape(swizzled.shape)
    return plain[..., :rows, :columns].contiguous().view(swizzled.dtype)
