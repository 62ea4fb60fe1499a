"""Raw rows of a packed page turned into bf16 keys, four or eight of a warp at once, without a branch.

The arrangement is that of ``kv_dequant``: a lane takes 16 codes, eight lanes that follow one another the same block of
two neighbouring rows, and no quarter warp meets itself in a bank of shared memory. A store holds back the loads behind
it, so what is worked on later is loaded before: with one step ahead in few registers, with more where there are some.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device.bulk_rows import load_shared_if, store_shared, store_shared_if
from dsv4.generator.device.kv_dequant import (
    BLOCK_BYTES,
    CODE_BLOCKS,
    PIECE_BYTES,
    ROTARY_PIECES,
    ROW_BYTES,
    scale_pair_of,
    scaled_codes,
)
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES

ROTARY_ROWS = 32 // ROTARY_PIECES
"""Rows whose rotary numbers a warp moves at once, a piece a lane."""


@cute.jit
def dequantise_rows(
    count: cutlass.Constexpr[int],
    raw: Int32,
    tile: Int32,
    first_row: Int32,
    first_lane: Int32,
    keys: Uint32,
    low: Uint32,
    high: Uint32,
    lane: Int32,
    ahead: cutlass.Constexpr[int] = 1,
) -> None:
    """The ``count`` (4 or 8) rows at address ``raw``, to rows ``first_row`` … of the tile at address ``tile``.

    ``first_row`` is a multiple of ``count``. Row r is the key of lane ``first_lane`` + r: bit ``first_lane`` + r of
    ``keys`` says whether it counts, and ``low`` and ``high`` of that lane are its scales. A row that does not count
    becomes zeros, whatever lies at ``raw``. ``ahead``: steps that are loaded before one is worked on, four registers
    each. All lanes of the warp call.
    """
    quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
    source = raw + odd * KV_BODY_BYTES + quarter * 64 + vector * PIECE_BYTES
    swizzle = (2 * vector) ^ odd ^ (first_row & 4)
    target = tile + quarter * BLOCK_BYTES + (first_row + odd) * ROW_BYTES + swizzle * PIECE_BYTES
    counts = keys >> Uint32(first_lane)
    is_block = Uint32(quarter + 4 < CODE_BLOCKS)  # of the second half
    factors = []
    for step in cutlass.range_constexpr(count):
        scales = cute.arch.shuffle_sync(low if step % 2 == 0 else high, first_lane + (step // 2 * 2 + odd))
        factors.append(scale_pair_of(scales, quarter))  # of a row that does not count that of code 0
    steps = cutlass.const_expr(count + count // ROTARY_ROWS)
    loaded = [_load(step, count, raw, source, counts, is_block, lane) for step in range(ahead)]
    for step in cutlass.range_constexpr(steps):
        if cutlass.const_expr(step + ahead < steps):
            loaded.append(_load(step + ahead, count, raw, source, counts, is_block, lane))
        if cutlass.const_expr(step < count):
            pair, half = step // 2, step % 2
            for side in cutlass.range_constexpr(2):
                piece = cute.make_rmem_tensor((4,), Uint32)
                piece[0], piece[1] = scaled_codes(loaded[step][2 * side], factors[step])
                piece[2], piece[3] = scaled_codes(loaded[step][2 * side + 1], factors[step])
                place = (target ^ ((2 * pair) ^ side) * PIECE_BYTES) + 4 * half * BLOCK_BYTES + 2 * pair * ROW_BYTES
                if cutlass.const_expr(half == 0):
                    store_shared(place, piece)
                else:
                    store_shared_if(place, piece, is_block)
        else:
            numbers = cute.make_rmem_tensor((4,), Uint32)
            numbers[0], numbers[1], numbers[2], numbers[3] = loaded[step]
            row = first_row + (step - count) * ROTARY_ROWS + (lane >> 3)
            place = tile + CODE_BLOCKS * BLOCK_BYTES + row * ROW_BYTES + ((lane ^ row) & 7) * PIECE_BYTES
            store_shared(place, numbers)


def _load(
    step: int, count: int, raw: Int32, source: Int32, counts: Uint32, is_block: Uint32, lane: Int32
) -> tuple[Uint32, ...]:
    """What a lane has of a step, zeros where its row does not count or there is no such block.

    A step is two rows and half of their codes' blocks (0 … 3, or 4 … 6); after those come the rotary numbers.
    """
    if step < count:
        pair, half = step // 2, step % 2
        wanted = (counts >> Uint32(2 * pair + ((lane >> 2) & 1))) & Uint32(1)
        if half == 1:
            wanted = wanted & is_block
        return load_shared_if(source + 2 * pair * KV_BODY_BYTES + half * 256, wanted)
    row = (step - count) * ROTARY_ROWS + (lane >> 3)
    wanted = (counts >> Uint32(row)) & Uint32(1)
    return load_shared_if(raw + KV_CODES + row * KV_BODY_BYTES + (lane & 7) * PIECE_BYTES, wanted)
