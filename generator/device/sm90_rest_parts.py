"""Queries that full rounds of CTAs leave over: parts of their keys, one a CTA, and how the parts are put together.

A part is O (64 x 512, not normalised), m and l of the tiles that a CTA had, float32 in a workspace. It lies there as
the threads of the warpgroups of O have it, four numbers each, those of a warp one behind the other; a thread of the
kernel that adds the parts up takes the same numbers of all of them. Formulas: ``sm90_decode_output``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint32

from dsv4.generator.device import sm90_decode_output, sm90_mask, sm90_prefill_value, softmax
from dsv4.generator.device.bulk_rows import load_global
from dsv4.generator.device.page_rows import store_at
from dsv4.generator.device.sm90_sparse_decode import HEAD_DIM, PRODUCT_COLUMNS, ROWS, VALUE_COLUMNS

THREADS = 128
"""Of a warpgroup of O, and of a CTA that adds up."""
O_NUMBERS = ROWS * HEAD_DIM
NUMBERS = O_NUMBERS + 2 * ROWS
"""Float32 numbers of a part: O, then m and l of each row."""
BLOCKS = 2
"""Blocks of eight columns of a CTA that adds up: the four threads that share two rows have 16 bytes of a row each."""
GROUPS = HEAD_DIM // (8 * BLOCKS)
"""CTAs that add up the parts of a query and 64 heads."""
MOST = 8
"""Parts of a query and 64 heads, at most: a thread has its numbers of all of them on their way at once."""


@cute.jit
def store_statistics(parts: cute.Tensor, number: Int32, row_max: cute.Tensor, row_sum: cute.Tensor, thread: Int32):
    """Warpgroup of S: m and l of the rows of part ``number``. ``row_sum``: this thread's parts of l."""
    sm90_decode_output.whole_sums(row_sum)
    if thread & 3 == 0:
        row = sm90_mask.thread_row(thread)
        for half in cutlass.range_constexpr(2):
            parts[number, O_NUMBERS + row + 8 * half] = row_max[half]
            parts[number, O_NUMBERS + ROWS + row + 8 * half] = row_sum[half]


@cute.jit
def store_columns(parts: cute.Tensor, number: Int32, accs_o: cutlass.Constexpr, part: Int32, thread: Int32):
    """Warpgroup of O: columns 256·``part`` … of part ``number``, as they are."""
    start = (parts.iterator + parts.layout((number, 0))).toint()
    start += Int64(part * (VALUE_COLUMNS // 8 * 16 * THREADS) + thread * 16)
    for i, acc in enumerate(accs_o):
        blocks = cute.make_tensor(acc.iterator, cute.make_layout((4, PRODUCT_COLUMNS // 8)))
        for block in cutlass.range_constexpr(PRODUCT_COLUMNS // 8):
            place = (i * (PRODUCT_COLUMNS // 8) + block) * 16 * THREADS
            store_at(start + Int64(place), blocks[None, block])


@cute.jit
def _load(
    parts: cute.Tensor,
    first: Int32,
    count: Int32,
    group: Int32,
    thread: Int32,
    values: cute.Tensor,
    statistics: cute.Tensor,
):
    """``count`` parts from ``first`` on; the last one in place of those that are none.

    ``values`` (4, BLOCKS, MOST) Uint32: a thread's numbers of O, in each block two columns of either row.
    ``statistics`` (2 · 64, MOST) float32 in shared memory: m and l of all rows. (If each thread read them from global
    memory, the compiler would wait for them before it asks for O.)
    """
    own = cute.make_rmem_tensor((MOST,), Float32)
    numbers = [first + cutlass.min(Int32(place), count - 1) for place in range(MOST)]
    for place, number in enumerate(numbers):
        own[place] = parts[number, O_NUMBERS + thread]
    for place, number in enumerate(numbers):
        start = (parts.iterator + parts.layout((number, 0))).toint() + Int64(thread * 16)
        for block in cutlass.range_constexpr(BLOCKS):
            load_global(start + Int64((group * BLOCKS + block) * (16 * THREADS)), values[None, block, place])
    for place in cutlass.range_constexpr(MOST):
        statistics[thread, place] = own[place]
    cute.arch.sync_threads()


@cute.jit
def sinks_of(sink: cute.Tensor, heads: Int32, thread: Int32) -> cute.Tensor:
    """Those of a thread's two rows; ``sink`` is (64,) float32, of which ``heads`` may be read."""
    sinks = cute.make_rmem_tensor((2,), Float32)
    for half in cutlass.range_constexpr(2):
        sinks[half] = sink[cutlass.min(sm90_mask.thread_row(thread) + 8 * half, heads - 1)]
    return sinks


@cute.jit
def add_up(
    parts: cute.Tensor,
    first: Int32,
    count: Int32,
    group: Int32,
    sinks,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits,
    heads: Int32,
    scale_log2: Float32,
    empty_lse: Float32,
    statistics: cute.Tensor,
    thread: Int32,
):
    """Threads of a CTA: columns 16·``group`` … of the result, from ``count`` parts from ``first`` on in their order.

    ``sinks``: of :func:`sinks_of`, or None; ``out`` [64 or fewer heads, 512]; ``lse`` and ``max_logits`` (64,), the
    latter may be None: the first group's CTA stores them. ``statistics`` (2 · 64, MOST) float32: shared memory.
    """
    row = sm90_mask.thread_row(thread)
    held = cute.make_rmem_tensor((4, BLOCKS, MOST), Uint32)
    values = cute.recast_tensor(held, Float32)
    summed = cute.make_rmem_tensor((2, BLOCKS, 2), Float32)  # columns, blocks, rows
    top, shift, total = [cute.make_rmem_tensor((2,), Float32) for _ in range(3)]
    summed.fill(0.0)
    total.fill(0.0)
    _load(parts, first, count, group, thread, held, statistics)
    for half in cutlass.range_constexpr(2):
        top[half] = statistics[row + 8 * half, 0]
        for place in cutlass.range_constexpr(1, MOST):
            top[half] = cute.arch.fmax(top[half], statistics[row + 8 * half, place])
        shift[half] = (Float32(0.0) if top[half] == -Float32.inf else top[half]) * scale_log2
    for place in cutlass.range_constexpr(MOST):
        if place < count:
            for half in cutlass.range_constexpr(2):
                own_row = row + 8 * half
                factor = cute.math.exp2(statistics[own_row, place] * scale_log2 - shift[half], fastmath=True)
                total[half] = total[half] + statistics[ROWS + own_row, place] * factor
                for block in cutlass.range_constexpr(BLOCKS):
                    for column in cutlass.range_constexpr(2):
                        more = values[2 * half + column, block, place] * factor
                        summed[column, block, half] = summed[column, block, half] + more
    for half in cutlass.range_constexpr(2):
        below = total[half]
        if cutlass.const_expr(sinks is not None):
            below = below + cute.math.exp2(sinks[half] * softmax.LOG2_E - shift[half], fastmath=True)
        inverse = Float32(0.0) if total[half] == Float32(0.0) else cute.arch.rcp_approx(below)
        for block in cutlass.range_constexpr(BLOCKS):
            for column in cutlass.range_constexpr(2):
                summed[column, block, half] = summed[column, block, half] * inverse
        if group == 0 and thread & 3 == 0 and row + 8 * half < heads:
            value = (shift[half] + cute.math.log2(total[half], fastmath=True)) * softmax.LN_2
            lse[row + 8 * half] = empty_lse if total[half] == Float32(0.0) else value
            if cutlass.const_expr(max_logits is not None):
                max_logits[row + 8 * half] = top[half] * (scale_log2 * softmax.LN_2)
    narrow = cute.make_rmem_tensor((2, 2 * BLOCKS), BFloat16)
    narrow.store(cute.make_tensor(summed.iterator, narrow.layout).load().to(BFloat16))
    words = cute.make_tensor(cute.recast_ptr(narrow.iterator, dtype=Uint32), cute.make_layout(2 * BLOCKS))
    piece = sm90_prefill_value.exchanged([words[number] for number in range(4)], thread & 3)
    # Of the four threads that share the rows the first two have the upper one's blocks.
    own_row = row + 8 * ((thread & 3) >> 1)
    if own_row < heads:
        place = (out.iterator + own_row * out.stride[0]).toint()
        store_at(place + Int64((group * BLOCKS + (thread & 1)) * 16), piece)
