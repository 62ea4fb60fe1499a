"""Where the scale of a row's block lies: beside its row, in the tiles that SM100's block-scaled MMA reads, transposed.

Scale codes are bytes in 32-bit registers. Row strides, and so the offsets, are 64 bits wide.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint8, Uint32

from dsv4.generator.device.e8m0 import e8m0_value
from dsv4.generator.device.fp8_codes import decode_e4m3x4
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS, has_partial_last

TILE_ROWS = 128
TILE_BLOCKS = 4


@cute.jit
def store_scales(
    scales: list[Uint32],
    target: cute.Tensor,
    layout: cutlass.Constexpr[str],
    block: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    row: Int32,
    part: Int32,
    lane: Int32,
) -> None:
    """Store the scale of each of this lane's vectors of part ``part`` of a row, where the vector is its block's first.

    ``columns``: of a part, spread over ``lanes`` as in ``packed_rows``.
    """
    for v in cutlass.range_constexpr(len(scales)):
        column = (v * lanes + lane) * VECTOR_ELEMENTS  # in this part
        inside = lane % (block // VECTOR_ELEMENTS) == 0
        if cutlass.const_expr(v == len(scales) - 1 and has_partial_last(columns, lanes)):
            inside = inside and column < columns
        if inside:
            number = (part * columns + column) // block
            if cutlass.const_expr(layout == "swizzled_128x4"):
                store_swizzled(target, row, number, scales[v])
            elif cutlass.const_expr(layout == "m_major"):
                store_transposed(target, row, number, scales[v])
            else:
                store_row_major(target, row, number, scales[v])


@cute.jit
def load_scale(
    source: cute.Tensor, layout: cutlass.Constexpr[str], row: Int32, block: Int32, e8m0: cutlass.Constexpr[bool]
) -> Float32:
    """The value of one scale, from where :func:`store_scales` puts it; ``e8m0``: the bytes are E8M0, else E4M3."""
    if cutlass.const_expr(layout == "m_major"):
        value = source[block, row]
    else:
        at = swizzled_offset(source, row, block) if layout == "swizzled_128x4" else row * source.stride[0] + block
        code = Uint32(_byte(source, at)[0])
        value = e8m0_value(code) if e8m0 else decode_e4m3x4(code)[0]
    return value


@cute.jit
def store_row_major(scale: cute.Tensor, row: Int32, block: Int32, code: Uint32) -> None:
    """``scale`` (rows, blocks) of bytes."""
    _byte(scale, row * scale.stride[0] + block)[0] = code.to(Uint8)


@cute.jit
def store_swizzled(scale: cute.Tensor, row: Int32, block: Int32, code: Uint32) -> None:
    """``scale`` (tiles of 128 rows, 128 · blocks) of bytes: 512 for 128 rows of 4 blocks (dsv4-reference §9.4)."""
    _byte(scale, swizzled_offset(scale, row, block))[0] = code.to(Uint8)


@cute.jit
def store_transposed(scale: cute.Tensor, row: Int32, block: Int32, code: Uint32) -> None:
    """``scale`` (blocks, rows) of float32: the value of an E8M0 code."""
    scale[block, row] = e8m0_value(code)


@cute.jit
def swizzled_offset(scale: cute.Tensor, row: Int32, block: Int32) -> Int64:
    """Bytes from the start of tiled scales to the one of (row, block)."""
    in_tile = block // TILE_BLOCKS * (TILE_ROWS * TILE_BLOCKS) + block % TILE_BLOCKS
    of_row = row % 32 * 16 + row % TILE_ROWS // 32 * TILE_BLOCKS
    return row // TILE_ROWS * scale.stride[0] + (in_tile + of_row)


@cute.jit
def _byte(scale: cute.Tensor, offset: Int64) -> cute.Tensor:
    return cute.make_tensor(cute.recast_ptr(scale.iterator, dtype=Uint8) + offset, cute.make_layout((1,)))
