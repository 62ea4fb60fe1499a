"""The load warp and the end of a tile of an attention on Hopper whose sequences lie one after another.

What ``sm90_attention`` does with tensors of one sequence each, here with the rows of one sequence among others
(``sequence_rows``). Only the last key tile of a sequence has rows behind its end, and it is the first to be loaded.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64

from dsv4.generator.device import sequence_rows, sm90_attention, sm90_mask, sm90_ring, sm90_wgmma


@cute.jit
def init_barriers(barriers, tiling: cutlass.Constexpr):
    """Initialises every mbarrier; to be called by one thread. ``barriers``: those of ``sm90_attention``, with one more
    behind ``v_empty``."""
    sm90_attention.init_barriers(barriers, tiling)
    cute.arch.mbarrier_init(barriers.v_full + 2 * tiling.slots, 1)


@cute.jit
def load_tiles(
    first_q_part: Int32,
    tiles: Int32,
    keys: Int32,
    slot: Int32,
    phase: Int32,
    q_phase: Int32,
    cut_phase: Int32,
    q,
    k: cutlass.Constexpr,
    v: cutlass.Constexpr,
    smem_v: Int32,
    lane: Int32,
    barriers,
    tiling: cutlass.Constexpr,
):
    """Load warp: as ``sm90_attention.load_tiles``, of a sequence of ``keys``.

    ``q`` is ``(TMA atom, source, target)``, ``k`` and ``v`` are Sources (a slot of the ring is ``column_parts`` of V),
    ``smem_v`` is V's address. Returns the ring's next position and ``cut_phase``, which flips with each cut tile.
    """
    if tiles > 0:
        _load_k(tiles - 1, slot, phase, k, barriers, tiling)
    q_atom, q_source, q_target = q
    for part in cutlass.range_constexpr(tiling.row_parts):
        sm90_ring.acquire(
            barriers.q_full, barriers.q_empty, part, q_phase, sm90_wgmma.WARPGROUP_ROWS * tiling.head_dim * 2
        )
        cute.copy(q_atom, q_source[None, first_q_part + part], q_target[None, part], tma_bar_ptr=barriers.q_full + part)
    for visit in cutlass.range(tiles, unroll=1):
        next_slot, next_phase = sm90_ring.next_position(slot, phase, tiling.slots)
        if visit + 1 < tiles:
            _load_k(tiles - 2 - visit, next_slot, next_phase, k, barriers, tiling)
        tile = tiles - 1 - visit
        seen = keys - tile * tiling.tile_n
        cut_phase = _load_v(tile, seen, slot, phase, cut_phase, v, smem_v, lane, barriers, tiling)
        slot, phase = next_slot, next_phase
    return slot, phase, cut_phase


@cute.jit
def _load_k(tile: Int32, slot: Int32, phase: Int32, k: cutlass.Constexpr, barriers, tiling: cutlass.Constexpr):
    sm90_ring.acquire(barriers.k_full, barriers.k_empty, slot, phase, tiling.tile_n * tiling.head_dim * 2)
    sequence_rows.copy_part(tile, 0, slot, k, barriers.k_full + slot, tiling.tile_n, tiling.head_dim)


@cute.jit
def _load_v(
    tile: Int32,
    seen: Int32,
    slot: Int32,
    phase: Int32,
    cut_phase: Int32,
    v: cutlass.Constexpr,
    smem_v: Int32,
    lane: Int32,
    barriers,
    tiling: cutlass.Constexpr,
):
    """A tile of V. If the sequence ends in it, after ``seen`` rows, its bytes count on a barrier of the load warp's
    own, which zeroes the other rows before it says that the slot is full."""
    slot_bytes = cutlass.const_expr(tiling.tile_n * tiling.head_dim * 2)
    number = slot
    if seen < tiling.tile_n:
        number = Int32(2 * tiling.slots)
    cute.arch.mbarrier_wait(barriers.v_empty + slot, phase ^ 1)
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(barriers.v_full + number, slot_bytes)
    for part in cutlass.range_constexpr(tiling.column_parts):
        of_part = slot * tiling.column_parts + part
        sequence_rows.copy_part(tile, part, of_part, v, barriers.v_full + number, tiling.tile_n, tiling.pv_columns)
    if seen < tiling.tile_n:
        sm90_ring.wait_full(barriers.v_full, number, cut_phase)
        sequence_rows.zero_rows(smem_v + slot * slot_bytes, seen, lane, tiling.tile_n, tiling.head_dim)
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive(barriers.v_full + slot)
        cut_phase ^= 1
    return cut_phase


@cute.jit
def store_rows(
    acc_o,
    lse,
    lse_row,
    address: Int64,
    row_bytes: Int64,
    rows: Int32,
    group: Int32,
    thread: Int32,
    pv_mma: cute.TiledMma,
    smem_o,
    barriers,
    tiling: cutlass.Constexpr,
):
    """One warpgroup: O as bf16 through its part of Q's shared memory to global memory, and the lse of its 64 queries.

    ``rows`` of them exist, which may be none. ``smem_o`` is ``(64, pv_columns)``; row 0 of O goes to ``address``, the
    others ``row_bytes`` apart; ``lse_row`` begins at row 0. The Q slot is given back to the load warp.
    """
    row_part, column_part = group // tiling.column_parts, group % tiling.column_parts
    first_row = sm90_mask.thread_row(thread)
    if thread % 4 == 0 and column_part == 0:
        for row in cutlass.range_constexpr(2):
            if first_row + 8 * row < rows:
                lse_row[first_row + 8 * row] = lse[row]

    barrier = sm90_attention.EPILOGUE_BARRIER + row_part
    sharers = tiling.column_parts * sm90_wgmma.WARPGROUP_THREADS
    if cutlass.const_expr(tiling.column_parts > 1):  # the others still read these 64 rows of Q
        cute.arch.barrier(barrier_id=barrier, number_of_threads=sharers)
    sm90_wgmma.store_accumulator(acc_o, pv_mma, smem_o, thread)
    cute.arch.barrier(barrier_id=barrier, number_of_threads=sharers)
    sequence_rows.store_vectors(
        smem_o.iterator.toint(),
        address,
        row_bytes,
        rows,
        thread,
        sm90_wgmma.WARPGROUP_THREADS,
        sm90_wgmma.WARPGROUP_ROWS,
        tiling.pv_columns,
    )
    cute.arch.fence_view_async_shared()  # the next Q comes by the copy engine
    cute.arch.barrier(barrier_id=barrier, number_of_threads=sharers)
    if thread // 32 == 0:
        sm90_ring.release(barriers.q_empty, row_part)
