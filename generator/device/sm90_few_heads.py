"""Scores and values of a decoding attention on Hopper for 8 to 32 heads: keys are the rows of the products.

wgmma has 64 rows, so with heads as rows most of the work would be padding. Here the tile of 64 keys is operand A:

    Sᵀ (64 x N) = K·Qᵀ          Oᵀ (512 x N) += Vᵀ·Pᵀ, eight blocks of 64 columns of the values

with N heads (a multiple of 8) as columns, Q in shared memory as it lies in global memory, V the tile that K was, read
the other way, and P [N, 64] written transposed. A thread has two keys and N/4 heads of Sᵀ: the softmax of a head goes
through eight lanes of each warp and the four warps of the warpgroup. It has the same N/4 heads of Oᵀ.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Uint32
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from dsv4.generator.device import kv_groups, sm90_ring, sm90_wgmma
from dsv4.generator.device.bulk_rows import load_global, store_shared
from dsv4.generator.device.kv_rows import TILE_KEYS
from dsv4.generator.device.transposed_store import PIECE_BYTES, ROW_BYTES, store_transposed

HEAD_DIM = 512
BLOCK_COLUMNS = sm90_wgmma.WARPGROUP_ROWS
BLOCKS = HEAD_DIM // BLOCK_COLUMNS

# Named barriers (0 is the CTA's own).
SCORE_BARRIER = 1
STATISTICS_BARRIER = 2
VALUE_BARRIER = 3


class Barriers(NamedTuple):
    """Pointers to the first mbarrier of each kind, one a slot of the ring; a slot holds a tile of keys, its P and its
    factors, and is empty when the warpgroup of O is done."""

    keys_full: cute.Pointer
    scores_full: cute.Pointer
    empty: cute.Pointer


class Ring(NamedTuple):
    """Shared memory of the ring: ``keys`` (64, 512, slot) and ``p`` (N, 64, slot) bf16, swizzled; ``factors`` (N, slot)
    float32; ``is_key`` (8, slot) Uint32, bit i of warp w: key 8·w + i of the tile counts."""

    keys: cute.Tensor
    p: cute.Tensor
    factors: cute.Tensor
    is_key: cute.Tensor


@cute.jit
def init_barriers(barriers: cutlass.Constexpr, slots: cutlass.Constexpr[int]):
    """Initialises every mbarrier; to be called by one thread."""
    for slot in cutlass.range_constexpr(slots):
        cute.arch.mbarrier_init(barriers.keys_full + slot, kv_groups.WARPS)
        cute.arch.mbarrier_init(barriers.scores_full + slot, 4)
        cute.arch.mbarrier_init(barriers.empty + slot, 4)


@cute.jit
def load_q(q: cute.Tensor, heads: Int32, smem_q: cute.Tensor, thread: Int32):
    """Warpgroup of S: ``q`` [``heads``, 512] bf16 to ``smem_q``, the swizzled (N, 512), the other rows of it zeros."""
    rows = cutlass.const_expr(cute.size(smem_q, mode=[0]))
    pieces = HEAD_DIM // 8  # of 16 bytes, a row
    address = smem_q.iterator.toint()
    for turn in cutlass.range(rows * pieces // 128, unroll=8):
        number = turn * 128 + thread
        row, piece = number // pieces, number % pieces
        values = cute.make_rmem_tensor((4,), Uint32)
        values.fill(0)
        if row < heads:
            load_global((q.iterator + row * q.stride[0] + 8 * piece).toint(), values)
        target = address + (piece >> 3) * (rows * ROW_BYTES) + row * ROW_BYTES
        store_shared(target + ((piece ^ row) & 7) * PIECE_BYTES, values)
    cute.arch.fence_view_async_shared()
    cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)


@cute.jit
def head_of(column: cutlass.Constexpr[int], thread: Int32) -> Int32:
    """Which head the ``column``-th of this thread's N/4 columns of an accumulator is."""
    return column // 2 * 8 + column % 2 + 2 * (thread & 3)


@cute.jit
def load_heads(numbers: cute.Tensor, target: cute.Tensor, thread: Int32):
    """This thread's N/4 of the (N,) float32 ``numbers`` in shared memory, to the registers ``target``."""
    for column in cutlass.range_constexpr(cute.size(target)):
        target[column] = numbers[head_of(column, thread)]


@cute.jit
def score(
    tiles: Int32,
    scale_log2: Float32,
    smem_q: cute.Tensor,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    maxima: cute.Tensor,
    head_max: cute.Tensor,
    head_sum: cute.Tensor,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    slot: Int32,
    phase: Int32,
) -> tuple[Int32, Int32]:
    """Warpgroup of S: P and factors of ``tiles`` tiles into the ring; m (unscaled) and this thread's part of l.

    ``slot`` and ``phase``: where the first of them is in the ring; where the next one is, is returned.

    ``maxima`` (N, 4, 2) float32 in shared memory: of each warp, of a tile and of the one before. ``head_max`` and
    ``head_sum``: registers, N/4 each. The formulas are those of ``softmax``; a head without a key keeps m = −∞, l = 0.
    """
    heads = cutlass.const_expr(cute.size(smem_q, mode=[0]))
    mma = sm90_wgmma.tiled_mma_ss(heads)
    thread_mma = mma.get_slice(thread)
    keys = thread_mma.make_fragment_A(thread_mma.partition_A(ring.keys))
    q_operand = thread_mma.make_fragment_B(thread_mma.partition_B(smem_q))
    assert cute.size(keys, mode=[2]) == HEAD_DIM // 16, keys.shape
    turn = Int32(0)
    correction = cute.make_rmem_tensor((heads // 4,), Float32)
    head_max.fill(-Float32.inf)
    head_sum.fill(0.0)
    for _ in cutlass.range(tiles, unroll=1):
        scores = sm90_wgmma.accumulator(heads)
        sm90_ring.wait_full(barriers.keys_full, slot, phase)
        warpgroup.fence()
        sm90_wgmma.add_products(mma, scores, keys[None, None, None, slot], q_operand, 0, False)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        rows = sm90_wgmma.rows_of(scores)
        hide_absent(rows, ring.is_key[None, slot], thread)
        tell_maxima(rows, maxima[None, None, turn], thread)
        cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)
        exponentiate(rows, maxima[None, None, turn], head_max, head_sum, correction, scale_log2, thread)
        # The slot's P and factors are free: its keys were filled after the warpgroup of O had left it.
        store_transposed(scores, ring.p[None, None, slot].iterator.toint(), thread)
        if thread < 4:
            for column in cutlass.range_constexpr(heads // 4):
                ring.factors[head_of(column, thread), slot] = correction[column]
        cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        sm90_ring.release(barriers.scores_full, slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        turn = turn ^ 1
    return slot, phase


@cute.jit
def hide_absent(rows: cute.Tensor, is_key: cute.Tensor, thread: Int32):
    """Scores of keys that do not count become −∞. ``rows`` (2, N/4): keys 16·warp + lane/4 and eight further."""
    warp, bit = thread // 32, Uint32(thread % 32 // 4)
    for half in cutlass.range_constexpr(2):
        counts = (is_key[2 * warp + half] >> bit) & Uint32(1)
        for column in cutlass.range_constexpr(cute.size(rows, mode=[1])):
            rows[half, column] = rows[half, column] if counts == Uint32(1) else -Float32.inf


@cute.jit
def tell_maxima(rows: cute.Tensor, maxima: cute.Tensor, thread: Int32):
    """The largest score of each head over the warp's 16 keys, to ``maxima`` (N, 4); a NaN is passed over.

    Of eight lanes that have the same heads each hands half of them over, then a quarter, so that few values move.
    """
    count = cutlass.const_expr(cute.size(rows, mode=[1]))
    top = cute.make_rmem_tensor((count,), Float32)
    for column in cutlass.range_constexpr(count):
        top[column] = cute.arch.fmax(rows[0, column], rows[1, column])
    left, repeated, first = count, 0, Int32(0)
    for step in cutlass.range_constexpr(3):
        offset = 16 >> step
        if cutlass.const_expr(left % 2 == 0):
            left = left // 2
            is_upper = (thread & offset) != 0
            for column in cutlass.range_constexpr(left):
                lower, upper = top[column], top[left + column]
                kept, given = (upper if is_upper else lower), (lower if is_upper else upper)
                top[column] = cute.arch.fmax(kept, cute.arch.shuffle_sync_bfly(given, offset=offset))
            first = first + (left if is_upper else 0)
        else:
            repeated = repeated | offset
            for column in cutlass.range_constexpr(left):
                top[column] = cute.arch.fmax(top[column], cute.arch.shuffle_sync_bfly(top[column], offset=offset))
    if thread & repeated == 0:
        for number in cutlass.range_constexpr(left):
            column = first + number
            head = column // 2 * 8 + column % 2 + 2 * (thread & 3)
            maxima[head, thread // 32] = top[number]


@cute.jit
def exponentiate(
    rows: cute.Tensor,
    maxima: cute.Tensor,
    head_max: cute.Tensor,
    head_sum: cute.Tensor,
    correction: cute.Tensor,
    scale_log2: Float32,
    thread: Int32,
):
    """rows ← p; m and this thread's part of l go on, ``correction`` ← what the heads' O has to be scaled by."""
    for column in cutlass.range_constexpr(cute.size(head_max)):
        head, before = head_of(column, thread), head_max[column]
        first = cute.arch.fmax(maxima[head, 0], maxima[head, 1])
        second = cute.arch.fmax(maxima[head, 2], maxima[head, 3])
        after = cute.arch.fmax(before, cute.arch.fmax(first, second))
        head_max[column] = after
        shift = (Float32(0.0) if after == -Float32.inf else after) * scale_log2
        factor = cute.math.exp2(before * scale_log2 - shift, fastmath=True)
        for half in cutlass.range_constexpr(2):
            rows[half, column] = cute.math.exp2(rows[half, column] * scale_log2 - shift, fastmath=True)
        correction[column] = factor
        head_sum[column] = head_sum[column] * factor + (rows[0, column] + rows[1, column])


@cute.jit
def value_mma(heads: cutlass.Constexpr[int]) -> cute.TiledMma:
    """64 columns of the values x ``heads`` x 16 keys, from shared memory both; A is the tile of keys, transposed."""
    op = warpgroup.MmaF16BF16Op(
        *(BFloat16, Float32, (BLOCK_COLUMNS, heads, 16), warpgroup.OperandSource.SMEM),
        *(OperandMajorMode.MN, OperandMajorMode.K),
    )
    return cute.make_tiled_mma(cute.make_mma_atom(op), (1, 1, 1))


@cute.jit
def add_values(
    tiles: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    accs_o: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    slot: Int32,
    phase: Int32,
) -> tuple[Int32, Int32]:
    """Warpgroup of O: Oᵀ (not normalised) over ``tiles`` tiles, 64 columns in each of the eight ``accs_o``.

    ``slot`` and ``phase`` as in :func:`score`."""
    heads = cutlass.const_expr(cute.size(ring.p, mode=[0]))
    mma = value_mma(heads)
    thread_mma = mma.get_slice(thread)
    p = thread_mma.make_fragment_B(thread_mma.partition_B(ring.p))
    columns = sm90_wgmma.transposed(ring.keys)
    values = [
        thread_mma.make_fragment_A(
            thread_mma.partition_A(cute.local_tile(columns, (BLOCK_COLUMNS, TILE_KEYS), (block, 0, None)))
        )
        for block in range(BLOCKS)
    ]
    for acc in accs_o:
        acc.fill(0.0)
    factors = cute.make_rmem_tensor((heads // 4,), Float32)
    for _ in cutlass.range(tiles, unroll=1):
        sm90_ring.wait_full(barriers.scores_full, slot, phase)
        load_heads(ring.factors[None, slot], factors, thread)
        for acc in accs_o:
            scale_heads(acc, factors)
        warpgroup.fence()
        for step in cutlass.range_constexpr(TILE_KEYS // 16):
            for block in cutlass.range_constexpr(BLOCKS):
                own, acc = values[block][None, None, step, slot], accs_o[block]
                cute.gemm(_adding(mma), acc, own, p[None, None, step, slot], acc)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        sm90_ring.release(barriers.empty, slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return slot, phase


def _adding(mma: cute.TiledMma):
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, True)
    return atom


@cute.jit
def scale_heads(acc: cute.Tensor, factors: cute.Tensor):
    """Each column of an accumulator times its head's factor (N/4 registers)."""
    rows = sm90_wgmma.rows_of(acc)
    for half in cutlass.range_constexpr(2):
        for column in cutlass.range_constexpr(cute.size(factors)):
            rows[half, column] = rows[half, column] * factors[column]
