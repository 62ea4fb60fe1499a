"""Raw rows of a packed page turned into bf16 keys, four or eight of a warp at once, without a branch.

The arrangement is that of ``kv_dequant``: a lane takes 16 codes, eight lanes that follow one another the same block of
two neighbouring rows, and no quarter warp meets itself in a bank of shared memory. A store holds back the loads behind
it, so what is worked on later is loaded before: with one step ahead in few registers, with more where there are some.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device.bulk_rows import load_shared, load_shared_if, store_shared, store_shared_if
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
    all_there: cutlass.Constexpr[bool] = False,
) -> None:
    """The ``count`` (4 or 8) rows at address ``raw``, to rows ``first_row`` … of the tile at address ``tile``.

    ``first_row`` is a multiple of ``count``. Row r is the key of lane ``first_lane`` + r: bit ``first_lane`` + r of
    ``keys`` says whether it counts, and ``low`` and ``high`` of that lane are its scales. A row that does not count
    becomes zeros, whatever lies at ``raw``. ``ahead``: steps that are loaded before one is worked on, four registers
    each. ``all_there``: where a row does not count zeros lie at ``raw``. All lanes of the warp call.
    """
    counts = keys >> Uint32(first_lane)
    factors = row_factors(count, first_lane, low, high, lane)
    steps = cutlass.const_expr(steps_of(count))
    loaded = [_load(step, count, raw, counts, lane, all_there) for step in range(ahead)]
    for step in cutlass.range_constexpr(steps):
        if cutlass.const_expr(step + ahead < steps):
            loaded.append(_load(step + ahead, count, raw, counts, lane, all_there))
        factor = factors[step] if cutlass.const_expr(step < count) else None
        store_step(step, count, loaded[step], factor, tile, first_row, lane)


def steps_of(count: int) -> int:
    """Steps of ``count`` rows: two rows and half of their codes' blocks each (0 … 3, or 4 … 6), then rotary numbers."""
    return count + count // ROTARY_ROWS


@cute.jit
def row_factors(
    count: cutlass.Constexpr[int], first_lane: Int32, low: Uint32, high: Uint32, lane: Int32
) -> tuple[Uint32, ...]:
    """What a lane's codes of each step of ``count`` rows are multiplied by, two equal bf16; the rows' scales are those
    of lanes ``first_lane`` …. Of a row that does not count it is that of code 0."""
    quarter, odd = lane >> 3, (lane >> 2) & 1
    factors = []
    for step in cutlass.range_constexpr(count):
        scales = cute.arch.shuffle_sync(low if step % 2 == 0 else high, first_lane + (step // 2 * 2 + odd))
        factors.append(scale_pair_of(scales, quarter))
    return tuple(factors)


@cute.jit
def load_step(step: cutlass.Constexpr[int], count: cutlass.Constexpr[int], raw: Int32, lane: Int32) -> tuple:
    """What a lane has of a step of the ``count`` rows at address ``raw``: four words. All rows are there, or zeros."""
    return _load(step, count, raw, Uint32(0), lane, True)


@cute.jit
def store_step(
    step: cutlass.Constexpr[int],
    count: cutlass.Constexpr[int],
    words: cutlass.Constexpr,
    factor: Uint32 | None,
    tile: Int32,
    first_row: Int32,
    lane: Int32,
) -> None:
    """The ``words`` of a step as bf16, times ``factor``, to rows ``first_row`` … of the tile at address ``tile``."""
    if cutlass.const_expr(step < count):
        quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
        swizzle = (2 * vector) ^ odd ^ (first_row & 4)
        target = tile + quarter * BLOCK_BYTES + (first_row + odd) * ROW_BYTES + swizzle * PIECE_BYTES
        pair, half = step // 2, step % 2
        for side in cutlass.range_constexpr(2):
            piece = cute.make_rmem_tensor((4,), Uint32)
            piece[0], piece[1] = scaled_codes(words[2 * side], factor)
            piece[2], piece[3] = scaled_codes(words[2 * side + 1], factor)
            place = (target ^ ((2 * pair) ^ side) * PIECE_BYTES) + 4 * half * BLOCK_BYTES + 2 * pair * ROW_BYTES
            if cutlass.const_expr(half == 0):
                store_shared(place, piece)
            else:
                store_shared_if(place, piece, Uint32(quarter + 4 < CODE_BLOCKS))
    else:
        numbers = cute.make_rmem_tensor((4,), Uint32)
        numbers[0], numbers[1], numbers[2], numbers[3] = words
        row = first_row + (step - count) * ROTARY_ROWS + (lane >> 3)
        place = tile + CODE_BLOCKS * BLOCK_BYTES + row * ROW_BYTES + ((lane ^ row) & 7) * PIECE_BYTES
        store_shared(place, numbers)


def _load(step: int, count: int, raw: Int32, counts: Uint32, lane: Int32, all_there: bool) -> tuple[Uint32, ...]:
    """What a lane has of a step; unless all rows are there, zeros where its row does not count or has no such block."""
    quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
    pair, half = step // 2, step % 2
    row = odd + 2 * pair
    address = raw + odd * KV_BODY_BYTES + quarter * 64 + vector * PIECE_BYTES + 2 * pair * KV_BODY_BYTES + half * 256
    if step >= count:
        row = (step - count) * ROTARY_ROWS + (lane >> 3)
        address = raw + KV_CODES + row * KV_BODY_BYTES + (lane & 7) * PIECE_BYTES
    if all_there:
        words = cute.make_rmem_tensor((4,), Uint32)
        load_shared(address, words)
        return words[0], words[1], words[2], words[3]
    wanted = (counts >> Uint32(row)) & Uint32(1)
    if step < count and half == 1:
        wanted = wanted & Uint32(quarter + 4 < CODE_BLOCKS)
    return load_shared_if(address, wanted)
