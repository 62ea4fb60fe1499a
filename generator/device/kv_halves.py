"""A tile of 64 keys filled by four warps of 16 keys each, eight in either half, without a wait in the middle.

What the warps wait for longest is shared memory, which the tensor cores read at the same time: an answer takes hundreds
of cycles. So whatever is asked of it is asked long before it is needed. Scales and addresses go from lane to lane at
the beginning, the codes of a step are loaded some steps ahead, over the border between the halves, and a tile is passed
on before rows are asked for again: the fence would wait for those.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from dsv4.generator.device import kv_raw, kv_rows, sm90_ring
from dsv4.generator.device.kv_dequant import TILE_BYTES
from dsv4.generator.device.kv_dequant_rows import load_step, row_factors, steps_of, store_step

HALVES = 2
ROWS = kv_rows.WARP_KEYS // HALVES
STEPS = steps_of(ROWS)
STEPS_AHEAD = 3
"""Loaded before one is worked on; four registers each."""
assert ROWS == kv_rows.SLOT_ROWS


class Rows(NamedTuple):
    """Rows to come: where this lane's part of them begins, in global memory, of either half. Bit i of ``keys``: the row
    of lane i is one."""

    starts: tuple[Int64, Int64]
    keys: Uint32


@cute.jit
def factors_of(low: Uint32, high: Uint32, lane: Int32) -> tuple:
    """The factors of the steps of both halves: scales ``low`` and ``high`` are those of this lane's key."""
    return row_factors(ROWS, Int32(0), low, high, lane) + row_factors(ROWS, Int32(ROWS), low, high, lane)


@cute.jit
def rows_of(body: Int64, is_key: Boolean, lane: Int32) -> Rows:
    """The rows of both halves: ``body`` and ``is_key`` are those of this lane's key."""
    keys = Uint32(cute.arch.vote_ballot_sync(is_key))
    starts = [kv_raw.part_of_row(ROWS, Int32(half * ROWS), body, lane) for half in range(HALVES)]
    return Rows((starts[0], starts[1]), keys)


@cute.jit
def ask(rows: cutlass.Constexpr, half: cutlass.Constexpr[int], raw: Int32, lane: Int32):
    """Start the copies of one half of the rows to the warp's raw slots at ``raw``, as one group."""
    own_raw = raw + half * kv_rows.SLOT_BYTES
    kv_raw.copy_part(ROWS, Int32(half * ROWS), rows.starts[half], rows.keys, own_raw, lane)


@cute.jit
def fill(
    keys: Uint32,
    factors: cutlass.Constexpr,
    following: cutlass.Constexpr,
    raw: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    slot: Int32,
    phase: Int32,
    warp: Int32,
    lane: Int32,
):
    """A warp's rows at ``raw`` to slot ``slot`` of the ring, each half when it is empty; then the ``following`` rows.

    Bit i of ``keys``: the row of lane i is one. On return the rows of one half that follow are on their way as one
    group, and those of the other as another.
    """
    kv_raw.wait_for_rows(0)
    tile = ring.keys.iterator.toint() + slot * TILE_BYTES
    loaded = [load_step(step, ROWS, raw, lane) for step in range(STEPS_AHEAD)]
    for step in cutlass.range_constexpr(HALVES * STEPS):
        half, own = step // STEPS, step % STEPS
        if cutlass.const_expr(step + STEPS_AHEAD < HALVES * STEPS):
            later, later_own = (step + STEPS_AHEAD) // STEPS, (step + STEPS_AHEAD) % STEPS
            loaded.append(load_step(later_own, ROWS, raw + later * kv_rows.SLOT_BYTES, lane))
        if cutlass.const_expr(own == 0):
            cute.arch.mbarrier_wait(barriers.empty + 2 * slot + half, phase ^ 1)
        if cutlass.const_expr(step == STEPS):
            cute.arch.sync_warp()
            ask(following, 0, raw, lane)
        factor = factors[half * ROWS + own] if cutlass.const_expr(own < ROWS) else None
        first_row = half * (kv_rows.TILE_KEYS // HALVES) + warp * ROWS
        store_step(own, ROWS, loaded[step], factor, tile, first_row, lane)
    kv_rows.pass_on_halves(keys, ring, barriers, slot, warp, lane)
    ask(following, 1, raw, lane)


@cute.jit
def feed(
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
    """Gathering warp ``warp`` (0 … 3): its 16 keys of tiles ``first_tile`` … ``last_tile`` − 1 into the ring.

    ``raw`` points to the warp's two slots of raw rows. ``kv_feed`` does the same for eight warps, and with bulk copies.
    """
    raw_address = raw.toint()
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane, spread=True)
    body, tail = kv_rows.address_of(segments, first_tile, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    following = rows_of(body, row >= 0, lane)
    for half in cutlass.range_constexpr(HALVES):
        ask(following, half, raw_address, lane)
    keys = following.keys
    entry = kv_rows.load_entry(segments, first_tile + 1, last_tile, warp, lane, spread=True)
    slot, phase = Int32(0), Int32(0)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        factors = factors_of(low, high, lane)
        row = kv_rows.row_of(segments, tile + 1, entry, warp, lane, spread=True)
        body, tail = kv_rows.address_of(segments, tile + 1, row)
        low, high = kv_rows.load_scales(tail, row >= 0)
        following = rows_of(body, row >= 0, lane)
        entry = kv_rows.load_entry(segments, tile + 2, last_tile, warp, lane, spread=True)
        fill(keys, factors, following, raw_address, ring, barriers, slot, phase, warp, lane)
        keys = following.keys
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do
