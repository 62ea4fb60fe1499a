"""The correction warpgroup of attention on sm_100: keeps O relative to each row's reference, and ends the rows.

O stays in TMEM and is touched only when a row's reference rose; at the end it is normalised, rounded to bf16 and left
in shared memory for the store warp. Thread t owns row t of every query tile, as the softmax thread t does.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32

from dsv4.generator.device.sm100_softmax import MINUS_INFINITY, log_sum_exp, sum_with_sink
from dsv4.generator.device.sm100_tmem import (
    LANES,
    copy_width,
    fence_after_wait,
    fence_before_arrive,
    load_row,
    make_row_fragment,
    rows_view,
    store_row,
    wait_loads,
    wait_stores,
)

BLOCK_COLUMNS = 64
"""bf16 columns of one 128-byte swizzled block of shared memory."""
VECTOR_ELEMENTS = 8


@cute.jit
def rescale_rows(
    tmem: cute.Pointer, column: cutlass.Constexpr[int], columns: cutlass.Constexpr[int], factor: Float32, thread: Int32
):
    """This thread's row of O times ``factor``, read and written with the same copies. Collective over the warp."""
    width = cutlass.const_expr(copy_width(columns))
    for piece in cutlass.range_constexpr(columns // width):
        cells = rows_view(tmem + (column + piece * width), width)
        values = make_row_fragment(width)
        load_row(cells, values, thread)
        wait_loads()
        for i in cutlass.range_constexpr(0, width, 2):
            values[i], values[i + 1] = cute.arch.mul_packed_f32x2((values[i], values[i + 1]), (factor, factor))
        store_row(values, cells, thread)
    wait_stores()


@cute.jit
def correct_outputs(
    tmem: cute.Pointer,
    output_columns: cutlass.Constexpr,
    columns: cutlass.Constexpr[int],
    statistics: cutlass.Constexpr,
    stat_full: cute.Pointer,
    stat_empty: cute.Pointer,
    o_ready: cute.Pointer,
    thread: Int32,
    tiles: Int32,
):
    """For every key tile, make O ready for the next P·V. ``output_columns[w]``: first TMEM column of query tile w's O.

    Message j − 1 (j ≥ 1) brings the factors of key tile j. It was sent after S(j) was complete, and S(j) was issued
    after P·V(j − 1), so O holds tiles 0 … j − 1 by then. Arrival j on ``o_ready`` admits P·V(j); the first needs no
    factor, because it overwrites O.
    """
    groups = cutlass.const_expr(len(output_columns))
    for group in cutlass.range_constexpr(groups):
        cute.arch.mbarrier_arrive(o_ready + group)
    for tile in cutlass.range(1, tiles, unroll=1):
        for group in cutlass.range_constexpr(groups):
            cute.arch.mbarrier_wait(stat_full + group, (tile - 1) & 1)
            factor = statistics[group][0]
            cute.arch.mbarrier_arrive(stat_empty + group)
            fence_after_wait()
            if cute.arch.vote_any_sync(factor != 1.0):
                rescale_rows(tmem, output_columns[group], columns, factor, thread)
            fence_before_arrive()
            cute.arch.mbarrier_arrive(o_ready + group)


@cute.jit
def stage_piece(values: cute.Tensor, staged: cute.Pointer, first_column: cutlass.Constexpr[int], row: Int32):
    """bf16 ``values`` (n,) of one row to shared memory, from ``first_column`` on, as the store's TMA expects them.

    128-byte swizzle: blocks of 64 columns, 128 bytes a row, in which the 16-byte vector c of row r lies at c xor
    (r mod 8). The eight rows that a warp writes at one time so fall into different banks.
    """
    vectors_per_row = BLOCK_COLUMNS // VECTOR_ELEMENTS
    for vector in cutlass.range_constexpr(cute.size(values) // VECTOR_ELEMENTS):
        column = cutlass.const_expr(first_column + vector * VECTOR_ELEMENTS)
        block = cutlass.const_expr(column // BLOCK_COLUMNS)
        slot = (column % BLOCK_COLUMNS) // VECTOR_ELEMENTS ^ (row % vectors_per_row)
        offset = block * (LANES * BLOCK_COLUMNS) + row * BLOCK_COLUMNS + slot * VECTOR_ELEMENTS
        target = cute.make_tensor((staged + offset).align(16), cute.make_layout(VECTOR_ELEMENTS))
        source = cute.make_tensor(
            (values.iterator + vector * VECTOR_ELEMENTS).align(16), cute.make_layout(VECTOR_ELEMENTS)
        )
        cute.autovec_copy(source, target)


@cute.jit
def stage_row(
    tmem: cute.Pointer,
    column: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
    staged: cute.Pointer,
    thread: Int32,
    normaliser: Float32,
    zero: cutlass.Boolean,
):
    """This thread's row of O times ``normaliser`` as bf16 to shared memory; zeros where ``zero`` (whatever O holds)."""
    width = cutlass.const_expr(copy_width(columns))
    for piece in cutlass.range_constexpr(columns // width):
        values = make_row_fragment(width)
        load_row(rows_view(tmem + (column + piece * width), width), values, thread)
        wait_loads()
        for i in cutlass.range_constexpr(width):
            value = values[i] * normaliser
            values[i] = Float32(0.0) if zero else value
        rounded = cute.make_rmem_tensor(cute.make_layout(width), BFloat16)
        rounded.store(values.load().to(BFloat16))
        stage_piece(rounded, staged, piece * width, thread)


@cute.jit
def stage_zeros(columns: cutlass.Constexpr[int], staged: cute.Pointer, thread: Int32):
    """A row of zeros to shared memory: the output of a query tile that sees no key, whose O was never written."""
    zeros = cute.make_rmem_tensor(cute.make_layout(BLOCK_COLUMNS), BFloat16)
    zeros.fill(BFloat16(0.0))
    for block in cutlass.range_constexpr(columns // BLOCK_COLUMNS):
        stage_piece(zeros, staged, block * BLOCK_COLUMNS, thread)


@cute.jit
def publish_staged(o_staged: cute.Pointer):
    """Hand the staged row over: the store's TMA reads shared memory through another proxy."""
    cute.arch.fence_proxy("async.shared", space="cta")
    cute.arch.mbarrier_arrive(o_staged)


@cute.jit
def finish_rows(
    tmem: cute.Pointer,
    column: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
    statistics: cute.Tensor,
    stat_full: cute.Pointer,
    o_final: cute.Pointer,
    staged: cute.Pointer,
    o_staged: cute.Pointer,
    thread: Int32,
    tiles: Int32,
    sink,
    softmax_scale: Float32,
    stage: cutlass.Constexpr[str],
) -> Float32:
    """End one query tile: O / Σ to shared memory; returns the row's natural log-sum-exp, without the sink.

    The staging buffer is the query tile's own, which no product reads any more: ``o_final`` fires after all of them.
    ``sink``: the head's float32 sink logit or None. A row whose sum is 0 has seen no key (the largest P of any other is
    at least 1) and gives zeros and −∞. The bring-up stages leave O as it is, but for the scale of ``"scores"``.
    """
    cute.arch.mbarrier_wait(stat_full, (tiles - 1) & 1)
    row_sum = statistics[0]
    reference = statistics[1]
    cute.arch.mbarrier_wait(o_final, 0)
    fence_after_wait()
    normaliser, lse, empty = Float32(1.0), row_sum, cutlass.Boolean(False)
    if cutlass.const_expr(stage == "scores"):
        normaliser = cutlass.max(softmax_scale, -softmax_scale)
    if cutlass.const_expr(stage == "online"):
        denominator = row_sum
        if cutlass.const_expr(sink is not None):
            denominator = sum_with_sink(reference, row_sum, sink)
        normaliser = Float32(1.0) / denominator
        empty = row_sum == 0.0
        lse = Float32(MINUS_INFINITY) if empty else log_sum_exp(reference, row_sum)
    stage_row(tmem, column, columns, staged, thread, normaliser, empty)
    publish_staged(o_staged)
    return lse
