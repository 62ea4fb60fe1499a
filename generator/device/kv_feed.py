"""Warps that gather and dequantise a tile of 64 keys one tile ahead: eight with eight keys each, or four with 16.

Lane i of a warp stands for its key i; the rows go by bulk copies, or by ``cp.async`` (``kv_raw``), to two raw slots,
and a slot is asked for again as soon as it was read. See ``kv_rows`` for the keys of a query; ``kv_groups`` knows the
rows of four tiles at a time, ``kv_halves`` is what four warps with ``cp.async`` do.

Nothing is used where it is loaded: a warp that waits for the memory stands still with all that it is to do. So the
number that stands in the index for a key is loaded two tiles ahead and looked at one tile ahead, when its row is asked
for.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from dsv4.generator.device import kv_raw, kv_rows, sm90_ring
from dsv4.generator.device.kv_dequant import TILE_BYTES
from dsv4.generator.device.kv_dequant_rows import dequantise_rows
from dsv4.generator.device.page_rows import KV_BODY_BYTES


@cute.jit
def feed(
    warps: cutlass.Constexpr[int],
    segments: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` of ``warps``: its keys of tiles ``first_tile`` … ``last_tile`` − 1 into the ring.

    ``raw`` points to the warp's two slots of raw rows, ``barriers.raw_full`` to the mbarriers of all warps' slots.
    Without those rows come by ``cp.async``, and of two mbarriers a slot of the ring in ``barriers.empty`` the second is
    waited for (``kv_halves``).
    """
    by_bulk = cutlass.const_expr(barriers.raw_full is not None)
    warp_keys = cutlass.const_expr(kv_rows.TILE_KEYS // warps)
    slot_rows = cutlass.const_expr(warp_keys // kv_rows.SLOTS)
    slot_bytes = cutlass.const_expr(slot_rows * KV_BODY_BYTES)
    raw_address, full = raw.toint(), None
    if cutlass.const_expr(by_bulk):
        full = barriers.raw_full + warp * kv_rows.SLOTS
    keys_address = ring.keys.iterator.toint()
    slot, phase, raw_phase = Int32(0), Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane, warp_keys)
    body, tail = kv_rows.address_of(segments, first_tile, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    for part in cutlass.range_constexpr(kv_rows.SLOTS):
        _ask(slot_rows, part, body, row >= 0, raw_address + part * slot_bytes, full, lane)
    keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
    entry = kv_rows.load_entry(segments, first_tile + 1, last_tile, warp, lane, warp_keys)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.row_of(segments, tile + 1, entry, warp, lane, warp_keys)
        body, tail = kv_rows.address_of(segments, tile + 1, next_row)
        next_low, next_high = kv_rows.load_scales(tail, next_row >= 0)
        next_keys = Uint32(cute.arch.vote_ballot_sync(next_row >= 0))
        entry = kv_rows.load_entry(segments, tile + 2, last_tile, warp, lane, warp_keys)
        if cutlass.const_expr(by_bulk):
            cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
        else:
            cute.arch.mbarrier_wait(barriers.empty + 2 * slot + 1, phase ^ 1)
        tile_address = keys_address + slot * TILE_BYTES
        for part in cutlass.range_constexpr(kv_rows.SLOTS):
            own_raw = raw_address + part * slot_bytes
            if cutlass.const_expr(by_bulk):
                cute.arch.mbarrier_wait(full + part, raw_phase)
            else:
                kv_raw.wait_for_rows(kv_rows.SLOTS - 1)
            first_row = warp * warp_keys + part * slot_rows
            dequantise_rows(
                *(slot_rows, own_raw, tile_address, first_row, part * slot_rows, keys, low, high, lane),
                1 if warps == 8 else 4,
                not by_bulk,
            )
            cute.arch.sync_warp()
            _ask(slot_rows, part, body, next_row >= 0, own_raw, full, lane)
        word = keys
        if cutlass.const_expr(warps == 8):  # two words of 32 keys, each the union of four warps'
            word = keys << Uint32(warp_keys * (warp & 3))
        kv_rows.pass_on(word, ring, barriers, slot, warp, lane)
        keys, low, high = next_keys, next_low, next_high
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        raw_phase ^= 1
    if cutlass.const_expr(not by_bulk):
        cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do


@cute.jit
def _ask(
    rows: cutlass.Constexpr[int],
    part: cutlass.Constexpr[int],
    body: Int64,
    is_key: Boolean,
    raw: Int32,
    full: cutlass.Constexpr,
    lane: Int32,
) -> None:
    """Start the copies of part ``part`` of a warp's rows; ``full``: the mbarrier of part 0, or None."""
    if cutlass.const_expr(full is not None):
        kv_rows.ask_for_rows(rows, part, body, is_key, raw, full + part, lane)
    else:
        kv_raw.ask_for_rows(rows, part * rows, body, is_key, raw, lane)
