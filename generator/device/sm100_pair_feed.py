"""Gathering warps of a CTA of a pair (``sm100_pair_mma``): half of a tile's keys as K, half of all keys' columns as V.

A warp has 16 keys of a tile, eight of which are the CTA's own: the first eight in the CTA of side 0, the last eight in
that of side 1. These become rows of K, with all columns, and of V; the others rows of V only, and of them only the
CTA's half of the columns is dequantised. Both CTAs ask for all rows: they find one another's in L2.

Keys and flags are those of ``kv_rows``; rows come by bulk copies or by gather4, as in ``kv_feed`` and ``kv_gather4``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device import kv_gather4, kv_rows, sm90_ring
from dsv4.generator.device.bulk_rows import load_shared_if, store_shared, store_shared_if
from dsv4.generator.device.kv_dequant import (
    BLOCK_BYTES,
    CODE_BLOCKS,
    PIECE_BYTES,
    ROW_BYTES,
    TILE_BYTES,
    scale_pair_of,
    scaled_codes,
)
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES
from dsv4.generator.device.sm100_pair_mma import K_BLOCK_BYTES, K_BYTES
from dsv4.generator.device.sm100_sparse_lanes import arrive_at

ROWS = kv_rows.SLOT_ROWS
"""Of a raw slot: the warp's own keys, or the others."""
HALF_BLOCKS = 4
"""Blocks of 64 columns of either half."""
ROTARY_ROWS = 4  # whose rotary numbers a warp moves at once
AHEAD = 4
"""Steps that are loaded before one is worked on, four registers each."""


def steps_of(side: int, is_own: bool) -> list[tuple[str, int, int]]:
    """The steps of eight rows: (what, which rows, which half of the columns). Two rows' codes, or four rows' rotary
    numbers, which belong to the second half."""
    halves = (0, 1) if is_own else (side,)
    steps = [("codes", pair, half) for pair in range(ROWS // 2) for half in halves]
    return steps + ([("rotary", four, 1) for four in range(ROWS // ROTARY_ROWS)] if 1 in halves else [])


@cute.jit
def dequantise(
    side: cutlass.Constexpr[int],
    is_own: cutlass.Constexpr[bool],
    raw: Int32,
    keys_target: Int32,
    values_target: Int32,
    first_lane: cutlass.Constexpr[int],
    keys: Uint32,
    low: Uint32,
    high: Uint32,
    lane: Int32,
) -> None:
    """Eight raw rows to rows of V, and where ``is_own`` of K; the targets are the first row's addresses.

    Row r is the key of lane ``first_lane`` + r, as in ``kv_dequant_rows.dequantise_rows``, whose arrangement this is.
    """
    quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
    source = raw + odd * KV_BODY_BYTES + quarter * 64 + vector * PIECE_BYTES
    place = odd * ROW_BYTES + ((2 * vector) ^ odd) * PIECE_BYTES
    own_keys = keys_target + quarter * K_BLOCK_BYTES + place
    own_values = values_target + quarter * BLOCK_BYTES + place
    counts = keys >> Uint32(first_lane)
    is_block = Uint32(quarter + HALF_BLOCKS < CODE_BLOCKS)  # of the second half
    steps = cutlass.const_expr(steps_of(side, is_own))
    factors = {}
    for what, rows, half in steps:
        if cutlass.const_expr(what == "codes"):
            scales = cute.arch.shuffle_sync(low if half == 0 else high, first_lane + (2 * rows + odd))
            factors[rows, half] = scale_pair_of(scales, quarter)  # of a row that does not count that of code 0
    loaded = [_load(step, raw, source, counts, is_block, lane) for step in steps[:AHEAD]]
    for number, (what, rows, half) in enumerate(steps):
        if cutlass.const_expr(number + AHEAD < len(steps)):
            loaded.append(_load(steps[number + AHEAD], raw, source, counts, is_block, lane))
        if cutlass.const_expr(what == "codes"):
            for parity in cutlass.range_constexpr(2):
                piece, scale = cute.make_rmem_tensor((4,), Uint32), factors[rows, half]
                piece[0], piece[1] = scaled_codes(loaded[number][2 * parity], scale)
                piece[2], piece[3] = scaled_codes(loaded[number][2 * parity + 1], scale)
                turned = ((2 * rows) ^ parity) * PIECE_BYTES
                if cutlass.const_expr(is_own):
                    _store((own_keys ^ turned) + HALF_BLOCKS * half * K_BLOCK_BYTES, rows, half, piece, is_block)
                if cutlass.const_expr(half == side):
                    _store(own_values ^ turned, rows, half, piece, is_block)
        else:
            piece = cute.make_rmem_tensor((4,), Uint32)
            piece[0], piece[1], piece[2], piece[3] = loaded[number]
            row = rows * ROTARY_ROWS + (lane >> 3)
            place = row * ROW_BYTES + ((lane ^ row) & 7) * PIECE_BYTES
            if cutlass.const_expr(is_own):
                store_shared(keys_target + CODE_BLOCKS * K_BLOCK_BYTES + place, piece)
            if cutlass.const_expr(half == side):
                store_shared(values_target + (CODE_BLOCKS - HALF_BLOCKS) * BLOCK_BYTES + place, piece)


def _store(place: Int32, rows: int, half: int, piece: cute.Tensor, is_block: Uint32) -> None:
    place = place + 2 * rows * ROW_BYTES
    if half == 0:
        store_shared(place, piece)
    else:
        store_shared_if(place, piece, is_block)


def _load(
    step: tuple[str, int, int], raw: Int32, source: Int32, counts: Uint32, is_block: Uint32, lane: Int32
) -> tuple[Uint32, ...]:
    """What a lane has of a step, zeros where its row does not count or there is no such block."""
    what, rows, half = step
    if what == "codes":
        wanted = (counts >> Uint32(2 * rows + ((lane >> 2) & 1))) & Uint32(1)
        if half == 1:
            wanted = wanted & is_block
        return load_shared_if(source + 2 * rows * KV_BODY_BYTES + half * 256, wanted)
    row = rows * ROTARY_ROWS + (lane >> 3)
    wanted = (counts >> Uint32(row)) & Uint32(1)
    return load_shared_if(raw + KV_CODES + row * KV_BODY_BYTES + (lane & 7) * PIECE_BYTES, wanted)


@cute.jit
def feed(
    side: cutlass.Constexpr[int],
    segments: cutlass.Constexpr,
    matrices: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    leader: Int32,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` of four, in the CTA of ``side``: its part of tiles ``first_tile`` … ``last_tile`` − 1.

    ``matrices``: one for each of ``segments`` where rows come by gather4, else None. ``raw`` points to the warp's two
    slots of raw rows, ``barriers.raw_full`` to the mbarriers of all warps' slots.
    """
    raw_address, full = raw.toint(), barriers.raw_full + warp * kv_rows.SLOTS
    keys_address = ring.keys.iterator.toint()
    slot, phase, raw_phase = Int32(0), Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane)
    asked, low, high = _looked_up(segments, matrices, first_tile, row, lane)
    keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
    for part in cutlass.range_constexpr(kv_rows.SLOTS):
        _ask(part, asked, row, keys, raw_address + part * kv_rows.SLOT_BYTES, full + part, lane)
    entry = kv_rows.load_entry(segments, first_tile + 1, last_tile, warp, lane)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.row_of(segments, tile + 1, entry, warp, lane)
        asked, next_low, next_high = _looked_up(segments, matrices, tile + 1, next_row, lane)
        next_keys = Uint32(cute.arch.vote_ballot_sync(next_row >= 0))
        entry = kv_rows.load_entry(segments, tile + 2, last_tile, warp, lane)
        cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
        own_keys = keys_address + slot * TILE_BYTES + warp * (ROWS * ROW_BYTES)
        values = keys_address + slot * TILE_BYTES + K_BYTES + warp * (kv_rows.WARP_KEYS * ROW_BYTES)
        for part in cutlass.range_constexpr(kv_rows.SLOTS):
            own_raw = raw_address + part * kv_rows.SLOT_BYTES
            cute.arch.mbarrier_wait(full + part, raw_phase)
            own_values = values + part * (ROWS * ROW_BYTES)
            dequantise(side, part == side, own_raw, own_keys, own_values, part * ROWS, keys, low, high, lane)
            cute.arch.sync_warp()
            _ask(part, asked, next_row, next_keys, own_raw, full + part, lane)
        if lane == 0:
            ring.is_key[warp, slot] = keys
        cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        sm90_ring.release(barriers.keys_full, slot)
        arrive_at(barriers.pair_full + slot, leader)
        keys, low, high = next_keys, next_low, next_high
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        raw_phase ^= 1


@cute.jit
def _looked_up(segments: cutlass.Constexpr, matrices: cutlass.Constexpr, tile: Int32, row: Int32, lane: Int32):
    """What a row's copy needs to know, and the scales of this lane's row."""
    if cutlass.const_expr(matrices is None):
        asked, tail = kv_rows.address_of(segments, tile, row)
    else:
        number, tail = kv_gather4.locate(segments, matrices, tile, row)
        asked = (kv_gather4.map_of(segments, matrices, tile), kv_gather4.group_of(number, lane))
    low, high = kv_rows.load_scales(tail, row >= 0)
    return asked, low, high


@cute.jit
def _ask(part: cutlass.Constexpr[int], asked, row: Int32, keys: Uint32, raw: Int32, full, lane: Int32):
    """Start the copies of a part's rows that are keys."""
    if cutlass.const_expr(isinstance(asked, tuple)):
        tensor_map, rows = asked
        kv_gather4.ask_for_slot(part, tensor_map, rows, keys, raw, full, lane)
    else:
        kv_rows.ask_for_rows(ROWS, part, asked, row >= 0, raw, full, lane)
