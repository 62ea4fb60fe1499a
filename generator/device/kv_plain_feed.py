"""Four warps that gather rows of bf16 to a tile of 64 keys in a ring."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device import kv_plain, kv_rows, sm90_ring
from dsv4.generator.device.kv_dequant import TILE_BYTES


@cute.jit
def feed(
    segments: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
    empties: cutlass.Constexpr[int] = 1,
):
    """``kv_feed.feed`` for rows of bf16, which need no raw slots: a tile is on its way while another is worked on.

    ``empties``: mbarriers that a slot has for being empty, of which the last one's phase is the last to end.
    """
    keys_address = ring.keys.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.load_row(segments, tile + 1, last_tile, warp, lane)
        address = kv_plain.row_address(segments, tile, row)
        keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
        cute.arch.mbarrier_wait(barriers.empty + empties * slot + (empties - 1), phase ^ 1)
        kv_plain.gather_rows(address, row, keys_address + slot * TILE_BYTES, warp, lane)
        cute.arch.cp_async_wait_group(0)
        kv_rows.pass_on(keys, ring, barriers, slot, warp, lane)
        row = next_row
        slot, phase = sm90_ring.next_position(slot, phase, slots)
