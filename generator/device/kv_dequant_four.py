"""Four raw rows of a packed page turned into bf16 keys: half of what one of eight gathering warps has of a tile.

The arrangement is that of ``kv_dequant``, whose eight rows at once would need twice the raw bytes in a slot: a lane
takes 16 codes, eight lanes that follow one another the same block of two neighbouring rows, and no quarter warp meets
itself in a bank of shared memory.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.kv_dequant import (
    BLOCK_BYTES,
    CODE_BLOCKS,
    PIECE_BYTES,
    ROTARY_PIECES,
    ROW_BYTES,
    scale_pair,
    scaled_codes,
)
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES

ROWS = 4
SLOT_BYTES = ROWS * KV_BODY_BYTES
assert ROWS * ROTARY_PIECES == 32, "a lane takes one piece of rotary numbers"


@cute.jit
def dequantise_four(
    raw: Int32,
    tile: Int32,
    first_row: Int32,
    first_lane: Int32,
    keys: Uint32,
    low: Uint32,
    high: Uint32,
    lane: Int32,
) -> None:
    """The four rows at address ``raw``, to rows ``first_row`` … + 3 (a multiple of 4) of the tile at address ``tile``.

    Row r is the key of lane ``first_lane`` + r: bit ``first_lane`` + r of ``keys`` says whether it counts, and ``low``
    and ``high`` of that lane are its scales. A row that does not count becomes zeros, whatever lies at ``raw``. All
    lanes of the warp call.
    """
    quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
    source = raw + odd * KV_BODY_BYTES + quarter * 64 + vector * PIECE_BYTES
    swizzle = (2 * vector) ^ odd ^ (first_row & 4)
    target = tile + quarter * BLOCK_BYTES + (first_row + odd) * ROW_BYTES + swizzle * PIECE_BYTES
    counts = keys >> Uint32(first_lane)
    for pair in cutlass.range_constexpr(ROWS // 2):
        for half in cutlass.range_constexpr(2):  # blocks 0 … 3, then 4 … 6
            scales = cute.arch.shuffle_sync(low if half == 0 else high, first_lane + (2 * pair + odd))
            if quarter + 4 * half < CODE_BLOCKS:
                codes = cute.make_rmem_tensor((4,), Uint32)
                codes.fill(0)
                factor = Uint32(0)
                if (counts >> Uint32(2 * pair + odd)) & Uint32(1) != Uint32(0):
                    load_shared(source + 2 * pair * KV_BODY_BYTES + half * 256, codes)
                    factor = scale_pair((scales >> Uint32(8 * quarter)) & Uint32(0xFF))
                for side in cutlass.range_constexpr(2):
                    piece = cute.make_rmem_tensor((4,), Uint32)
                    piece[0], piece[1] = scaled_codes(codes[2 * side], factor)
                    piece[2], piece[3] = scaled_codes(codes[2 * side + 1], factor)
                    place = target ^ ((2 * pair) ^ side) * PIECE_BYTES
                    store_shared(place + 4 * half * BLOCK_BYTES + 2 * pair * ROW_BYTES, piece)
    own_row, own_piece = lane >> 3, lane & 7
    numbers = cute.make_rmem_tensor((4,), Uint32)
    numbers.fill(0)
    if (counts >> Uint32(own_row)) & Uint32(1) != Uint32(0):
        load_shared(raw + KV_CODES + own_row * KV_BODY_BYTES + own_piece * PIECE_BYTES, numbers)
    row = first_row + own_row
    place = tile + CODE_BLOCKS * BLOCK_BYTES + row * ROW_BYTES + (own_piece ^ (row & 7)) * PIECE_BYTES
    store_shared(place, numbers)
