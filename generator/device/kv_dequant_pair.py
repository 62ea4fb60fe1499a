"""Raw rows of a packed page turned into bf16 keys in two shared memories: see ``kv_dequant`` for the numbers.

What goes to another CTA travels in whole lines of 128 bytes, one row of one block: eight lanes that follow one another
take one each of its eight pieces, so a store of a warp is one row of four blocks. (``kv_dequant`` makes two pieces from
one 16-byte load; its stores are as free of bank conflicts, but hold half a line of two rows.) A lane takes eight codes
at a time, and all scales of the eight rows are made before, two a lane.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device.bulk_rows import load_shared, load_shared_pair, send_shared, store_shared
from dsv4.generator.device.kv_dequant import (
    BLOCK_BYTES,
    CODE_BLOCKS,
    PIECE_BYTES,
    ROTARY_PIECES,
    ROW_BYTES,
    scale_pair,
    scaled_codes,
)
from dsv4.generator.device.kv_rows import SLOT_ROWS
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES


@cute.jit
def dequantise_twice(
    raw: Int32,
    tile: Int32,
    first_row: Int32,
    keys: Uint32,
    low: Uint32,
    high: Uint32,
    lane: Int32,
    shift: Int32,
    barrier: Int32,
) -> None:
    """Eight raw rows at address ``raw``, to rows ``first_row`` … + 7 (a multiple of 8) of the tile at address ``tile``.

    They go to the same place in another CTA as well, ``shift`` bytes further among the cluster's shared addresses,
    where their 8 KB count on the mbarrier at ``barrier``. Bit i of ``keys`` says whether row i counts, lane i's ``low``
    and ``high`` are its scales. A row that does not count becomes zeros, whatever lies there. All lanes of the warp
    call.
    """
    quarter, piece = lane >> 3, lane & 7
    byte = Uint32(8 * quarter)
    factors = [  # of row ``piece``, blocks ``quarter`` and ``quarter`` + 4
        scale_pair((cute.arch.shuffle_sync(scales, piece) >> byte) & Uint32(0xFF)) for scales in (low, high)
    ]
    source = raw + quarter * 64 + piece * (PIECE_BYTES // 2)
    target = tile + quarter * BLOCK_BYTES + first_row * ROW_BYTES + piece * PIECE_BYTES
    ahead = _codes(source, 0, 0, keys)
    for row in cutlass.range_constexpr(SLOT_ROWS):
        place = (target ^ row * PIECE_BYTES) + row * ROW_BYTES
        for half in cutlass.range_constexpr(2):  # blocks 0 … 3, then 4 … 6
            codes = ahead
            if cutlass.const_expr(2 * row + half + 1 < 2 * SLOT_ROWS):
                ahead = _codes(source, row + half, 1 - half, keys)
            factor = cute.arch.shuffle_sync(factors[half], quarter * SLOT_ROWS + row)
            if quarter + 4 * half < CODE_BLOCKS:
                numbers = cute.make_rmem_tensor((4,), Uint32)
                numbers[0], numbers[1] = scaled_codes(codes[0], factor)
                numbers[2], numbers[3] = scaled_codes(codes[1], factor)
                _put(place + 4 * half * BLOCK_BYTES, numbers, shift, barrier)
    block = tile + CODE_BLOCKS * BLOCK_BYTES + first_row * ROW_BYTES
    for half in cutlass.range_constexpr(SLOT_ROWS * ROTARY_PIECES // 32):  # four rows each
        row = half * 4 + quarter
        numbers = cute.make_rmem_tensor((4,), Uint32)
        numbers.fill(0)
        if (keys >> Uint32(row)) & Uint32(1) != Uint32(0):
            load_shared(raw + KV_CODES + row * KV_BODY_BYTES + piece * PIECE_BYTES, numbers)
        _put(block + row * ROW_BYTES + (piece ^ row) * PIECE_BYTES, numbers, shift, barrier)


@cute.jit
def _codes(source: Int32, row: cutlass.Constexpr[int], half: cutlass.Constexpr[int], keys: Uint32) -> cute.Tensor:
    """Eight codes of a row, two words: from its blocks 0 … 3, or 4 … 7, of which the last are no codes."""
    codes = cute.make_rmem_tensor((2,), Uint32)
    codes.fill(0)
    if keys & Uint32(1 << row) != Uint32(0):
        load_shared_pair(source + row * KV_BODY_BYTES + half * 256, codes)
    return codes


@cute.jit
def _put(place: Int32, numbers: cute.Tensor, shift: Int32, barrier: Int32) -> None:
    store_shared(place, numbers)
    send_shared(place + shift, numbers, barrier)
