"""Block scales in tiles of 128 × 4, held against the offset's formula (dsv4-reference §9.4)."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.checkpoint.swizzle import swizzle_blockscale, unswizzle_blockscale


def by_hand(scale: torch.Tensor) -> list[int]:
    """Byte by byte to ((row/128)·(C/4)+col/4)·512 + (row%32)·16 + ((row%128)/32)·4 + col%4."""
    rows, columns = scale.shape
    padded_rows, padded_columns = -(-rows // 128) * 128, -(-columns // 4) * 4
    out = [0] * (padded_rows * padded_columns)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * (padded_columns // 4) + column // 4
            out[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = int(scale[row, column])
    return out


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (256, 12), (1, 1), (127, 5), (129, 4), (200, 7)])
def test_every_byte_is_where_the_formula_says(rows: int, columns: int) -> None:
    scale = torch.randint(1, 256, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(rows))
    swizzled = swizzle_blockscale(scale)
    assert swizzled.is_contiguous()
    assert tuple(swizzled.shape) == (-(-rows // 128) * 128, -(-columns // 4) * 4)
    assert swizzled.flatten().tolist() == by_hand(scale)
    assert torch.equal(unswizzle_blockscale(swizzled, rows, columns), scale)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint8])
def test_stacks_and_dtypes(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 120, (3, 2, 130, 6), dtype=torch.uint8)
    swizzled = swizzle_blockscale(raw.view(dtype))
    assert swizzled.dtype == dtype
    assert tuple(swizzled.shape) == (3, 2, 256, 8)
    for first in range(3):
        for second in range(2):
            assert swizzled[first, second].view(torch.uint8).flatten().tolist() == by_hand(raw[first, second])
    assert torch.equal(unswizzle_blockscale(swizzled, 130, 6).view(torch.uint8), raw)


@pytest.mark.parametrize("scale", [torch.zeros(128, 4), torch.zeros(4, dtype=torch.uint8)])
def test_what_is_no_scale_is_refused(scale: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"valid: \[\.\., R, C\] of one byte each"):
        swizzle_blockscale(scale)
