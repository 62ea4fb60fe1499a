"""The softmax of a decoding attention on sm_100, and Q on its way to the products.

A warpgroup has the 64 rows of S, two threads a row with 32 keys each (``sm100_sparse_lanes``). P goes to shared
memory, where both halves of O's columns read it.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.bulk_rows import load_global, store_shared
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, PIECE_BYTES, ROW_BYTES
from dsv4.generator.device.sm100_softmax import exponentials, finite_or_zero, rescale_factor, row_maximum
from dsv4.generator.device.sm100_sparse_decode import HEAD_DIM, P_BYTES, ROWS, WARPGROUP
from dsv4.generator.device.sm100_sparse_lanes import ALONE, PIECES, THREAD_KEYS
from dsv4.generator.device.sm100_tmem import (
    fence_after_wait,
    fence_before_arrive,
    make_row_fragment,
    rows_view,
    store_row,
    wait_stores,
)

Q_CELLS = 32
"""32-bit cells of Q that a thread stores to tensor memory at a time."""


@cute.jit
def q_to_tmem(
    q: cute.Tensor,
    heads: Int32,
    target: cute.Pointer,
    columns: cutlass.Constexpr[int],
    q_full: cute.Pointer,
    thread: Int32,
    lanes: cutlass.Constexpr = ALONE,
):
    """Q's first ``columns`` columns into tensor memory, in both halves of the lanes; rows from ``heads`` on are zeros.

    ``q`` [64 or fewer heads, 512] bf16; ``target`` points to the first of columns / 2 columns. A warpgroup calls.
    """
    row = lanes.row_of(thread)
    start = (q.iterator + row * q.stride[0]).toint()
    for first in cutlass.range_constexpr(0, columns // 2, Q_CELLS):
        cells = make_row_fragment(Q_CELLS)
        words = cute.make_tensor(cute.recast_ptr(cells.iterator, dtype=Uint32), cute.make_layout((4, Q_CELLS // 4)))
        words.fill(0)
        if row < heads:
            for piece in cutlass.range_constexpr(Q_CELLS // 4):
                load_global(start + 4 * first + PIECE_BYTES * piece, words[None, piece])
        store_row(cells, rows_view(target + first, Q_CELLS), thread)
    wait_stores()
    fence_before_arrive()
    lanes.arrive(q_full)


@cute.jit
def q_to_shared(
    q: cute.Tensor,
    heads: Int32,
    target: Int32,
    first_column: cutlass.Constexpr[int],
    q_full: cute.Pointer,
    thread: Int32,
    lanes: cutlass.Constexpr = ALONE,
):
    """Q's columns from ``first_column`` on to shared memory at ``target``: 64 rows, swizzled blocks of 64 columns.

    Rows from ``heads`` on become zeros. A warpgroup calls.
    """
    pieces = (HEAD_DIM - first_column) // 8  # of 16 bytes, a row
    for turn in cutlass.range(ROWS * pieces // WARPGROUP, unroll=4):
        number = turn * WARPGROUP + thread
        own_row, piece = number // pieces, number % pieces
        values = cute.make_rmem_tensor((4,), Uint32)
        values.fill(0)
        if own_row < heads:
            place = q.iterator + own_row * q.stride[0] + (first_column + 8 * piece)
            load_global(place.toint(), values)
        block = target + (piece >> 3) * BLOCK_BYTES + own_row * ROW_BYTES
        store_shared(block + ((piece ^ own_row) & 7) * PIECE_BYTES, values)
    cute.arch.fence_view_async_shared()
    lanes.arrive(q_full)


@cute.jit
def hide_absent(scores: cute.Tensor, word: Uint32):
    """Scores of keys that do not count become −∞. Bit i of ``word``: score i counts."""
    if word != Uint32(0xFFFFFFFF):
        for i in cutlass.range_constexpr(THREAD_KEYS):
            scores[i] = scores[i] if (word >> Uint32(i)) & Uint32(1) == Uint32(1) else -Float32.inf


@cute.jit
def softmax_rows(
    tiles: Int32,
    scale_log2: Float32,
    tmem: cutlass.Constexpr,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr = ALONE,
):
    """P and the factors of O of ``tiles`` tiles into the ring. Returns m (unscaled) and l of the thread's row.

    The row's two threads return the same. ``scale_log2`` is softmax_scale · log2(e), above 0.
    """
    row, half = lanes.row_of(thread), lanes.half_of(thread)
    p_address = ring.p.iterator.toint() + row * ROW_BYTES
    slot, phase = Int32(0), Int32(0)
    row_max, row_sum = -Float32.inf, Float32(0.0)
    for _ in cutlass.range(tiles, unroll=1):
        # The keys too: their flags are read here, and their slot's P and factors are free since they were filled.
        cute.arch.mbarrier_wait(barriers.keys_full + slot, phase)
        cute.arch.mbarrier_wait(barriers.scores_full + slot, phase)
        fence_after_wait()
        scores = make_row_fragment(THREAD_KEYS)
        lanes.load_scores(tmem.scores, slot, thread, scores)
        hide_absent(scores, lanes.keys_of(ring.is_key[None, slot], half))
        top = cute.arch.fmax(row_max, row_maximum(scores))
        top = cute.arch.fmax(top, lanes.of_other(top, row, half, slot))
        shift = finite_or_zero(top) * scale_log2
        factor = rescale_factor(row_max * scale_log2, shift)
        row_max = top
        if half == 0:
            ring.factors[row, slot] = factor
        cute.arch.sync_warp()
        sm90_ring.release(barriers.factors_full, slot)
        packed = make_row_fragment(THREAD_KEYS // 2)
        row_sum = exponentials(scores, packed, scale_log2, shift, row_sum * factor)
        words = cute.make_tensor(cute.recast_ptr(packed.iterator, dtype=Uint32), cute.make_layout((4, PIECES)))
        for piece in cutlass.range_constexpr(PIECES):
            place = (lanes.piece_of(half, piece) ^ (row & 7)) * PIECE_BYTES
            store_shared(p_address + slot * P_BYTES + place, words[None, piece])
        cute.arch.fence_view_async_shared()
        fence_before_arrive()
        lanes.arrive(barriers.weights_full + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return row_max, row_sum + lanes.of_other(row_sum, row, half, slot)
