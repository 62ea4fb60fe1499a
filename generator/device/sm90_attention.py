"""The roles of a warp-specialised attention forward on Hopper: a load warp, and warpgroups that each own 64 queries.

Per key tile a warpgroup issues S(i) = Q·K(i)ᵀ, then O += P(i−1)·V(i−1) right behind it, and works out the softmax of
S(i) while that second product runs (Shah et al. 2024, "FlashAttention-3", section 3.2). With ``ping_pong`` the
warpgroups also take turns at issuing, so that one's softmax runs under another's products (section 3.1).
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.nvgpu import warpgroup

from dsv4.generator.device import sm90_mask, sm90_ring, sm90_wgmma, softmax


class Tiling(NamedTuple):
    """What is fixed at compile time. ``pv_columns`` of O's ``head_dim`` columns belong to one warpgroup: if there are
    several such parts, that many warpgroups share 64 queries and each works out S for itself. O is rescaled under the
    next tile's QK product if ``rescale_under_qk``, else at the end of the softmax."""

    head_dim: int
    tile_n: int
    pv_columns: int
    warpgroups: int
    slots: int
    ping_pong: bool
    rescale_under_qk: bool
    o_apart: bool

    @property
    def column_parts(self) -> int:
        return self.head_dim // self.pv_columns

    @property
    def row_parts(self) -> int:
        return self.warpgroups // self.column_parts


class Barriers(NamedTuple):
    """Pointers to the first mbarrier of each kind; Q has a slot for every 64 rows, K and V have ``slots`` each.

    A Q slot is emptied by every warpgroup that stores O from it, or else by every warp that reads it; a K or V slot by
    every warp."""

    q_full: cute.Pointer
    q_empty: cute.Pointer
    k_full: cute.Pointer
    k_empty: cute.Pointer
    v_full: cute.Pointer
    v_empty: cute.Pointer


@cute.jit
def init_barriers(barriers, tiling: cutlass.Constexpr):
    """Initialises every mbarrier; to be called by one thread."""
    readers = tiling.column_parts * (4 if tiling.o_apart else 1)
    sm90_ring.init_ring(barriers.q_full, barriers.q_empty, tiling.row_parts, readers)
    sm90_ring.init_ring(barriers.k_full, barriers.k_empty, tiling.slots, tiling.warpgroups * 4)
    sm90_ring.init_ring(barriers.v_full, barriers.v_empty, tiling.slots, tiling.warpgroups * 4)


# Named barriers (0 is the CTA's own).
EPILOGUE_BARRIER = 1
TURN_BARRIER = EPILOGUE_BARRIER + 4


@cute.jit
def load_tiles(
    first_q_part: Int32,
    tiles: Int32,
    slot: Int32,
    phase: Int32,
    q_phase: Int32,
    q,
    k,
    v,
    barriers,
    tiling: cutlass.Constexpr,
):
    """Load warp: the 64-row parts of Q from ``first_q_part`` on, and ``tiles`` key tiles of K and V from the last to
    the first. Returns the ring's next position.

    ``q``, ``k`` and ``v`` are ``(TMA atom, source, target)``: sources ``(TMA, tile …)``, targets ``(TMA, slot)``. The
    first K goes before Q, whose place the tile before may still need; each later K goes before the V that it overtakes.
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
        _load_v(tiles - 1 - visit, slot, phase, v, barriers, tiling)
        slot, phase = next_slot, next_phase
    return slot, phase


@cute.jit
def _load_k(tile: Int32, slot: Int32, phase: Int32, k, barriers, tiling: cutlass.Constexpr):
    atom, source, target = k
    sm90_ring.acquire(barriers.k_full, barriers.k_empty, slot, phase, tiling.tile_n * tiling.head_dim * 2)
    cute.copy(atom, source[None, tile], target[None, slot], tma_bar_ptr=barriers.k_full + slot)


@cute.jit
def _load_v(tile: Int32, slot: Int32, phase: Int32, v, barriers, tiling: cutlass.Constexpr):
    atom, source, target = v
    parts = tiling.column_parts
    sm90_ring.acquire(barriers.v_full, barriers.v_empty, slot, phase, tiling.tile_n * tiling.head_dim * 2)
    for part in cutlass.range_constexpr(parts):
        cute.copy(atom, source[None, tile, part], target[None, slot * parts + part], tma_bar_ptr=barriers.v_full + slot)


@cute.jit
def first_turn(group: Int32, tiling: cutlass.Constexpr):
    """Gives warpgroup 0 the first turn; to be called once by every warpgroup."""
    if cutlass.const_expr(tiling.ping_pong):  # noqa: SIM102  (const_expr has to stand alone)
        if group == 0:
            cute.arch.barrier_arrive(barrier_id=TURN_BARRIER, number_of_threads=2 * sm90_wgmma.WARPGROUP_THREADS)


@cute.jit
def await_turn(group: Int32, tiling: cutlass.Constexpr):
    if cutlass.const_expr(tiling.ping_pong):
        cute.arch.barrier(barrier_id=TURN_BARRIER + group, number_of_threads=2 * sm90_wgmma.WARPGROUP_THREADS)


@cute.jit
def pass_turn(group: Int32, tiling: cutlass.Constexpr):
    if cutlass.const_expr(tiling.ping_pong):
        following = Int32(0) if group + 1 == tiling.warpgroups else group + 1
        cute.arch.barrier_arrive(
            barrier_id=TURN_BARRIER + following, number_of_threads=2 * sm90_wgmma.WARPGROUP_THREADS
        )


@cute.jit
def last_turn(group: Int32, tiling: cutlass.Constexpr):
    """Takes the turn that is left over, so that no named barrier is left half full."""
    if cutlass.const_expr(tiling.ping_pong):  # noqa: SIM102
        if group == 0:
            await_turn(group, tiling)


@cute.jit
def attend(
    tiles: Int32,
    unmasked: Int32,
    slot: Int32,
    phase: Int32,
    first_query: Int32,
    queries: Int32,
    keys: Int32,
    scale_log2: Float32,
    group: Int32,
    thread: Int32,
    operands,
    barriers,
    acc_o,
    row_max,
    row_sum,
    tiling: cutlass.Constexpr,
    causal: cutlass.Constexpr[bool],
):
    """One warpgroup: O (not normalised), m and l of its 64 queries over key tiles tiles − 1 … 0; ``tiles`` ≥ 1.

    ``operands`` is ``(qk MMA, pv MMA, Q, K, V)`` with the fragments of Q ``(MMA, M, K)``, of K and V
    ``(MMA, N, K, slot)``. Returns the ring's next position.
    """
    qk_mma, pv_mma, q, k, v = operands
    p = cute.make_rmem_tensor(((2, 2, tiling.tile_n // 8), 1, 1), BFloat16)
    p_operand = sm90_wgmma.as_operand_a(p, pv_mma.get_slice(thread), tiling.tile_n)

    scores = sm90_wgmma.accumulator(tiling.tile_n)
    score_rows = sm90_wgmma.rows_of(scores)
    sm90_ring.wait_full(barriers.k_full, slot, phase)
    await_turn(group, tiling)
    sm90_wgmma.issue(qk_mma, scores, q, k[None, None, None, slot], False)
    pass_turn(group, tiling)
    warpgroup.wait_group(0)
    sm90_ring.release(barriers.k_empty, slot)
    sm90_mask.mask_scores(score_rows, thread, first_query, (tiles - 1) * tiling.tile_n, queries, keys, causal)
    correction = cute.make_rmem_tensor((2,), Float32)
    correction.fill(1.0)  # O is still zero
    softmax.online_softmax(score_rows, row_max, row_sum, correction, scale_log2, True, True)
    softmax.to_bf16(scores, p)

    registers = (p, p_operand, correction, acc_o, row_max, row_sum)
    unmasked_from = Int32(1)  # the first tile was masked
    if cutlass.const_expr(causal):
        unmasked_from = cutlass.max(tiles - unmasked, unmasked_from)
        for visit in cutlass.range(1, unmasked_from, unroll=1):
            first_key = (tiles - 1 - visit) * tiling.tile_n
            mask = (first_query, first_key, queries, keys)
            slot, phase = _step(slot, phase, mask, scale_log2, group, thread, operands, registers, barriers, tiling)
    for _visit in cutlass.range(unmasked_from, tiles, unroll=1):
        slot, phase = _step(slot, phase, None, scale_log2, group, thread, operands, registers, barriers, tiling)

    release_q(group, barriers, tiling)
    if cutlass.const_expr(tiling.rescale_under_qk):
        softmax.scale_rows(sm90_wgmma.rows_of(acc_o), correction)
    sm90_ring.wait_full(barriers.v_full, slot, phase)
    sm90_wgmma.issue(pv_mma, acc_o, p_operand, v[None, None, None, slot], True)
    warpgroup.wait_group(0)
    sm90_ring.release(barriers.v_empty, slot)
    return sm90_ring.next_position(slot, phase, tiling.slots)


@cute.jit
def _step(
    slot: Int32,
    phase: Int32,
    mask,
    scale_log2: Float32,
    group: Int32,
    thread: Int32,
    operands,
    registers,
    barriers,
    tiling: cutlass.Constexpr,
):
    """S of the next key tile, PV of the tile at ``slot`` behind it, then the softmax of S into P.

    ``mask`` is ``(first query, first key, queries, keys)``, or None for a tile without a mask.
    """
    qk_mma, pv_mma, q, k, v = operands
    p, p_operand, correction, acc_o, row_max, row_sum = registers
    next_slot, next_phase = sm90_ring.next_position(slot, phase, tiling.slots)
    scores = sm90_wgmma.accumulator(tiling.tile_n)
    score_rows = sm90_wgmma.rows_of(scores)

    sm90_ring.wait_full(barriers.k_full, next_slot, next_phase)
    await_turn(group, tiling)
    sm90_wgmma.issue(qk_mma, scores, q, k[None, None, None, next_slot], False)
    if cutlass.const_expr(tiling.rescale_under_qk):
        softmax.scale_rows(sm90_wgmma.rows_of(acc_o), correction)
    sm90_ring.wait_full(barriers.v_full, slot, phase)
    sm90_wgmma.issue(pv_mma, acc_o, p_operand, v[None, None, None, slot], True)
    pass_turn(group, tiling)
    warpgroup.wait_group(1)  # S is there, PV still runs
    sm90_ring.release(barriers.k_empty, next_slot)
    if cutlass.const_expr(mask is not None):
        first_query, first_key, queries, keys = mask
        sm90_mask.mask_scores(score_rows, thread, first_query, first_key, queries, keys, True)
    softmax.online_softmax(score_rows, row_max, row_sum, correction, scale_log2, False, mask is not None)
    warpgroup.wait_group(0)
    sm90_ring.release(barriers.v_empty, slot)
    softmax.to_bf16(scores, p)
    if cutlass.const_expr(not tiling.rescale_under_qk):
        softmax.scale_rows(sm90_wgmma.rows_of(acc_o), correction)
    return next_slot, next_phase


@cute.jit
def release_q(group: Int32, barriers, tiling: cutlass.Constexpr):
    """With ``o_apart``: gives Q's slot back, after a query tile's last QK product, or at once where it has none."""
    if cutlass.const_expr(tiling.o_apart):
        sm90_ring.release(barriers.q_empty, group // tiling.column_parts)


@cute.jit
def await_store(thread: Int32, tiling: cutlass.Constexpr):
    """With ``o_apart``: waits until the last store of O has read its place, which is written again or given up next."""
    if cutlass.const_expr(tiling.o_apart):  # noqa: SIM102  (const_expr has to stand alone)
        if thread // 32 == 0:
            with cute.arch.elect_one():  # always the same thread, the one that issued the store
                cute.arch.cp_async_bulk_wait_group(0, read=True)


@cute.jit
def store_tile(
    acc_o,
    lse,
    lse_row,
    first_query: Int32,
    queries: Int32,
    group: Int32,
    thread: Int32,
    pv_mma: cute.TiledMma,
    smem_o,
    o,
    barriers,
    tiling: cutlass.Constexpr,
):
    """One warpgroup: O as bf16 through its part of shared memory to global memory, lse of its 64 queries.

    ``smem_o`` is ``(64, pv_columns)``; ``o`` is ``(TMA atom, target, source)`` of this tile; ``lse_row`` the
    ``(queries,)`` row of LSE. Rows from ``queries`` on are cut off. Without ``o_apart`` the place is that of Q, whose
    slot is given back to the load warp; with it the store may still read it when this returns: the next waits for that.
    """
    row_part, column_part = group // tiling.column_parts, group % tiling.column_parts
    first_row = first_query + sm90_mask.thread_row(thread)
    if thread % 4 == 0 and column_part == 0:
        for row in cutlass.range_constexpr(2):
            if first_row + 8 * row < queries:
                lse_row[first_row + 8 * row] = lse[row]

    sharers = tiling.column_parts * sm90_wgmma.WARPGROUP_THREADS
    await_store(thread, tiling)
    if cutlass.const_expr(tiling.o_apart or tiling.column_parts > 1):  # else the others still read these 64 rows of Q
        cute.arch.barrier(barrier_id=EPILOGUE_BARRIER + row_part, number_of_threads=sharers)
    sm90_wgmma.store_accumulator(acc_o, pv_mma, smem_o, thread)
    cute.arch.fence_view_async_shared()
    cute.arch.barrier(barrier_id=EPILOGUE_BARRIER + row_part, number_of_threads=sharers)
    if thread // 32 == 0:
        atom, target, source = o
        with cute.arch.elect_one():  # unlike a load, the copy of a store elects no thread by itself
            cute.copy(atom, source, target)
            cute.arch.cp_async_bulk_commit_group()
            if cutlass.const_expr(not tiling.o_apart):
                cute.arch.cp_async_bulk_wait_group(0, read=True)
        if cutlass.const_expr(not tiling.o_apart):
            cute.arch.sync_warp()  # the thread that gives the slot back may be another one than the one that waited
            sm90_ring.release(barriers.q_empty, row_part)
