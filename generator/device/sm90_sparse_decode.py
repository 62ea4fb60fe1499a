"""The roles of a decoding attention on Hopper whose keys are gathered rows: three that pass a tile of 64 keys on.

Warps gather and dequantise the keys (``kv_feed``), a ring of tiles in shared memory. One warpgroup
makes S = Q·Kᵀ of up to 64 heads, keeps the online softmax, and writes P and the factor that O has to be scaled by. Two
warpgroups own 256 columns of O each and add P·V, V being the tile that K was. So each product is made once, and the
warpgroup of S is a tile ahead of those of O. A part of Q is in registers, where the tensor cores need not read it from
shared memory again for each tile.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.cute.nvgpu import warpgroup

from dsv4.generator.device import (
    kv_rows,
    sm90_mask,
    sm90_ring,
    sm90_sparse_pair,
    sm90_sparse_weights,
    sm90_wgmma,
    softmax,
)
from dsv4.generator.device.bulk_rows import load_global, store_shared
from dsv4.generator.device.inline_asm import not_hoisted
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, PIECE_BYTES, ROW_BYTES

HEAD_DIM = 512
ROWS = sm90_wgmma.WARPGROUP_ROWS
TILE_KEYS = kv_rows.TILE_KEYS
VALUE_WARPGROUPS = 2
VALUE_COLUMNS = HEAD_DIM // VALUE_WARPGROUPS
PRODUCT_COLUMNS = 128
"""Of one wgmma of the values: 256 would take more registers than a thread of 512 has when the kernel is compiled."""
EMPTY_ARRIVALS = 4 * VALUE_WARPGROUPS
"""Of the warps of O of one CTA, which free a slot."""

# Named barriers (0 is the CTA's own).
SCORE_BARRIER = 1
STATISTICS_BARRIER = 2


class Barriers(NamedTuple):
    """Pointers to the first mbarrier of each kind, one a slot of the ring; a slot holds a tile of keys, its P and its
    factors. ``empty`` has two a slot, for either half of its keys: P and the factors are free when the second is, and a
    pair of CTAs uses that alone. ``raw_full`` is None: see ``kv_feed``."""

    raw_full: None
    keys_full: cute.Pointer
    scores_full: cute.Pointer
    empty: cute.Pointer


class Ring(NamedTuple):
    """Shared memory of the ring: ``keys`` (64, 512, slot) and ``p`` (64, 64, slot, or one for all) bf16, swizzled;
    ``factors`` (64, slot) float32; ``is_key`` (8, slot) Uint32, bit 8·(g mod 4) + i of group g: key 8·g + i of the tile
    counts. With rows of bf16, of one CTA, (4, slot), bit i of warp w: key 16·w + i."""

    keys: cute.Tensor
    p: cute.Tensor
    factors: cute.Tensor
    is_key: cute.Tensor


@cute.jit
def init_barriers(
    barriers: cutlass.Constexpr,
    slots: cutlass.Constexpr[int],
    gather_warps: cutlass.Constexpr[int],
    empty_arrivals: cutlass.Constexpr[int] = EMPTY_ARRIVALS,
):
    """Initialises every mbarrier; to be called by one thread. ``empty_arrivals``: twice as many for a pair of CTAs."""
    for slot in cutlass.range_constexpr(slots):
        cute.arch.mbarrier_init(barriers.keys_full + slot, gather_warps)
        cute.arch.mbarrier_init(barriers.scores_full + slot, 4)
        for half in cutlass.range_constexpr(2):
            cute.arch.mbarrier_init(barriers.empty + 2 * slot + half, empty_arrivals)


@cute.jit
def load_q(
    q: cute.Tensor,
    heads: Int32,
    smem_q: cute.Tensor,
    registers: cute.Tensor,
    thread: Int32,
    register_columns: cutlass.Constexpr[int],
):
    """Warpgroup of S: Q's first ``register_columns`` columns into operand fragments, the others to shared memory.

    ``q`` [64 or fewer heads, 512] bf16; rows from ``heads`` on become zeros. ``registers`` is ``((2, 2, 2), 1, k
    steps)``, ``smem_q`` the swizzled (64, 512 − register_columns).
    """
    thread = not_hoisted(thread)
    head_stride = q.stride[0]
    pieces = (HEAD_DIM - register_columns) // 8  # of 16 bytes, a row
    smem_address = smem_q.iterator.toint()
    # Half of them on their way at once: with fewer the warpgroup waits for the memory again and again before it begins,
    # with all of them the registers would not do.
    turns = ROWS * pieces // 128
    for turn in cutlass.range(turns, unroll=turns // 2):
        number = turn * 128 + thread
        own_row, piece = number // pieces, number % pieces
        values = cute.make_rmem_tensor((4,), Uint32)
        values.fill(0)
        if own_row < heads:
            place = q.iterator + own_row * head_stride + (register_columns + 8 * piece)
            load_global(place.toint(), values)
        target = smem_address + (piece >> 3) * BLOCK_BYTES + own_row * ROW_BYTES
        store_shared(target + ((piece ^ own_row) & 7) * PIECE_BYTES, values)
    row, pair = sm90_mask.thread_row(thread), thread & 3
    pairs = cute.recast_tensor(registers, Uint32)  # ((1, 2 rows, 2 column halves), 1, k steps)
    pairs.fill(0)
    for half in cutlass.range_constexpr(2):
        if row + 8 * half < heads:
            start = q.iterator + (row + 8 * half) * head_stride
            words = cute.make_tensor(
                cute.recast_ptr(start, dtype=Uint32), cute.make_layout((4, 2, register_columns // 16), stride=(1, 4, 8))
            )
            for step in cutlass.range_constexpr(register_columns // 16):
                for side in cutlass.range_constexpr(2):
                    pairs[(0, half, side), 0, step] = words[pair, side, step]
    cute.arch.fence_view_async_shared()
    cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)


@cute.jit
def score(
    tiles: Int32,
    scale_log2: Float32,
    smem_q: cute.Tensor,
    q_registers: cute.Tensor,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    row_max: cute.Tensor,
    row_sum: cute.Tensor,
    thread: Int32,
    register_columns: cutlass.Constexpr[int],
    slots: cutlass.Constexpr[int],
    rescale_above: cutlass.Constexpr[int],
    slot,
    phase,
    by_registers: cutlass.Constexpr[bool] = False,
):
    """Warpgroup of S: P and factors of ``tiles`` tiles into the ring; m (unscaled) and this thread's part of l.

    Where ``ring.p`` has one place instead of one for each of two slots, P is stored when that of the tile before is
    not needed any more. m is the largest score, or, with ``rescale_above``, less by up to that many powers of two of P.
    ``slot`` and ``phase`` (Int32) of the ring are returned as they are after the tiles. ``by_registers``: see
    ``sm90_sparse_weights``.
    """
    p_slots = cutlass.const_expr(cute.size(ring.p, mode=[2]))
    assert p_slots == slots or (p_slots, slots) == (1, 2)
    mma_rs = sm90_wgmma.tiled_mma_rs(TILE_KEYS, cute.nvgpu.OperandMajorMode.K)
    mma_ss = sm90_wgmma.tiled_mma_ss(TILE_KEYS)
    thread_rs, thread_ss = mma_rs.get_slice(thread), mma_ss.get_slice(thread)
    keys = thread_rs.make_fragment_B(thread_rs.partition_B(ring.keys))
    q_operand = thread_ss.make_fragment_A(thread_ss.partition_A(smem_q))
    assert cute.size(keys, mode=[2]) == HEAD_DIM // 16, keys.shape
    correction = cute.make_rmem_tensor((2,), Float32)
    row_max.fill(-Float32.inf)
    row_sum.fill(0.0)
    for _ in cutlass.range(tiles, unroll=1):
        scores = sm90_wgmma.accumulator(TILE_KEYS)
        sm90_ring.wait_full(barriers.keys_full, slot, phase)
        tile_keys = keys[None, None, None, slot]
        warpgroup.fence()
        sm90_wgmma.add_products(mma_rs, scores, q_registers, tile_keys, 0, False)
        sm90_wgmma.add_products(mma_ss, scores, q_operand, tile_keys, register_columns // 16, True)
        warpgroup.commit_group()
        # The slot's P and factors are free: its keys were filled after the warpgroups of O had left it. P's only place
        # is waited for before the softmax, which has no branch then up to P: its instructions hide one another.
        p_slot = slot
        if cutlass.const_expr(p_slots == 1):
            p_slot = Int32(0)
            cute.arch.mbarrier_wait(barriers.empty + 2 * (slot ^ 1) + 1, phase ^ slot ^ 1)
        first, second = key_bits(ring.is_key[None, slot])
        warpgroup.wait_group(0)
        rows = sm90_wgmma.rows_of(scores)
        hide_others(rows, first, second, thread)
        softmax.online_softmax(rows, row_max, row_sum, correction, scale_log2, False, True, rescale_above)
        if cutlass.const_expr(by_registers):
            sm90_sparse_weights.tell(scores, sm90_sparse_weights.place_of(ring.p, not_hoisted(thread)))
        else:
            sm90_wgmma.store_accumulator(scores, mma_ss, ring.p[None, None, p_slot], not_hoisted(thread))
        if thread & 3 == 0:
            row = sm90_mask.thread_row(thread)
            for half in cutlass.range_constexpr(2):
                ring.factors[row + 8 * half, slot] = correction[half]
        if cutlass.const_expr(not by_registers):
            cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        sm90_ring.release(barriers.scores_full, slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return slot, phase


@cute.jit
def hide_absent(rows: cute.Tensor, is_key: cute.Tensor, thread: Int32):
    """Scores of keys that do not count become −∞. ``rows`` (2, 16): this thread's columns 8·b + 2·(lane mod 4) + e."""
    first, second = key_bits(is_key)
    hide_others(rows, first, second, thread)


@cute.jit
def key_bits(is_key: cute.Tensor) -> tuple[Uint32, Uint32]:
    """Which keys of the halves of a tile count, a bit each."""
    if cutlass.const_expr(cute.size(is_key) == 4):
        first = is_key[0] | (is_key[1] << Uint32(16))
        second = is_key[2] | (is_key[3] << Uint32(16))
    else:  # in groups of eight keys
        first = is_key[0] | is_key[1] | is_key[2] | is_key[3]
        second = is_key[4] | is_key[5] | is_key[6] | is_key[7]
    return first, second


@cute.jit
def hide_others(rows: cute.Tensor, first: Uint32, second: Uint32, thread: Int32):
    """:func:`hide_absent` with the bits of either half of the keys."""
    if (first & second) != Uint32(0xFFFFFFFF):
        shift = Uint32(2 * (thread & 3))
        words = (first >> shift, second >> shift)
        for column in cutlass.range_constexpr(16):
            block, element = column // 2, column % 2
            bit = (words[block // 4] >> Uint32(8 * (block % 4) + element)) & Uint32(1)
            for half in cutlass.range_constexpr(2):
                rows[half, column] = rows[half, column] if bit == Uint32(1) else -Float32.inf


@cute.jit
def add_values(
    tiles: Int32,
    part: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    accs_o: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    slot,
    phase,
    partner_rank=None,
    by_registers: cutlass.Constexpr[bool] = False,
):
    """Warpgroup of O, columns 256·part …: O (not normalised) over ``tiles`` tiles; ``slot``, ``phase`` as in ``score``.

    ``partner_rank`` (Int32, or None): the CTA of the cluster that writes to this one's ring as well. Mostly the factors
    are 1 for all rows of a warp. Each half of a tile's keys is released as soon as its products are done.
    """
    if cutlass.const_expr(by_registers):
        mma = sm90_wgmma.tiled_mma_rs(PRODUCT_COLUMNS, cute.nvgpu.OperandMajorMode.MN)
    else:
        mma = sm90_wgmma.tiled_mma_ss(PRODUCT_COLUMNS, cute.nvgpu.OperandMajorMode.MN)
    thread_mma = mma.get_slice(thread)
    columns = sm90_wgmma.transposed(ring.keys)
    products = VALUE_COLUMNS // PRODUCT_COLUMNS
    values = [
        thread_mma.make_fragment_B(
            thread_mma.partition_B(
                cute.local_tile(columns, (PRODUCT_COLUMNS, TILE_KEYS), (part * products + i, 0, None))
            )
        )
        for i in range(products)
    ]
    row = sm90_mask.thread_row(thread)
    for acc in accs_o:
        acc.fill(0.0)
    factor = cute.make_rmem_tensor((2,), Float32)
    for _ in cutlass.range(tiles, unroll=1):
        sm90_ring.wait_full(barriers.scores_full, slot, phase)
        if cutlass.const_expr(by_registers):
            place = sm90_sparse_weights.place_of(ring.p, thread)
            weights = [sm90_sparse_weights.hear(place, step) for step in range(sm90_sparse_weights.STEPS - 1)]
        for half in cutlass.range_constexpr(2):
            factor[half] = ring.factors[row + 8 * half, slot]
        if cute.arch.vote_any_sync((factor[0] != Float32(1.0)) | (factor[1] != Float32(1.0))):
            for i in cutlass.range_constexpr(products):
                softmax.scale_rows(sm90_wgmma.rows_of(accs_o[i]), factor)
        if cutlass.const_expr(by_registers):
            sm90_sparse_weights.add_values(mma, accs_o, values, weights, place, slot, barriers.empty)
        else:
            _add_tile(mma, accs_o, ring.p, values, thread_mma, slot, barriers.empty, partner_rank)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return slot, phase


@cute.jit
def _add_tile(
    mma: cute.TiledMma,
    accs_o: cutlass.Constexpr,
    p: cute.Tensor,
    values: cutlass.Constexpr,
    thread_mma: cute.ThrMma,
    slot: Int32,
    empty: cute.Pointer,
    partner_rank,
):
    """``accs_o`` += P·V of a slot with P from shared memory; releases its halves, or all of it to both CTAs."""
    weights = thread_mma.make_fragment_A(thread_mma.partition_A(p))
    p_slot = Int32(0) if cutlass.const_expr(cute.size(p, mode=[2]) == 1) else slot
    parts = cutlass.const_expr(2 if partner_rank is None else 1)
    for part_of_keys in cutlass.range_constexpr(parts):
        warpgroup.fence()
        for acc, operand in zip(accs_o, values, strict=True):
            tile_values = operand[None, None, None, slot]
            _add_part(mma, acc, weights[None, None, None, p_slot], tile_values, part_of_keys, parts)
        warpgroup.commit_group()
    if cutlass.const_expr(partner_rank is None):
        warpgroup.wait_group(1)
        sm90_ring.release(empty, 2 * slot)
    warpgroup.wait_group(0)
    if cutlass.const_expr(partner_rank is not None):
        sm90_sparse_pair.release_both(empty, 2 * slot + 1, partner_rank)
    else:
        sm90_ring.release(empty, 2 * slot + 1)


@cute.jit
def _add_part(mma: cute.TiledMma, acc, p, values, part: cutlass.Constexpr[int], parts: cutlass.Constexpr[int]):
    """acc += P·V over one of equal ``parts`` of a tile's keys, in the caller's group."""
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, True)
    steps = cute.size(p, mode=[2]) // parts
    for step in cutlass.range_constexpr(part * steps, (part + 1) * steps):
        cute.gemm(atom, acc, p[None, None, step], values[None, None, step], acc)
