"""Oᵀ of a decoding attention on sm_100 for few heads: scaled where a maximum grew, at the end normalised and stored.

A thread of the correction has a lane of Oᵀ: four columns of the values, N heads each (``sm100_few_heads``). The
formulas and the order of the sums are those of ``sm90_decode_output``. Heads are columns here, so that the numbers of
one head are spread over lanes: they are turned by the stores to the CTA that adds them up, one alone too.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.cluster_sum import shift_to_cta
from dsv4.generator.device.inline_asm import memory_asm
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_decode_output import denominator, log2_of
from dsv4.generator.device.sm100_few_heads import GROUPS, OUTPUT_BARRIER, column_of
from dsv4.generator.device.sm100_sparse_decode import WARPGROUP
from dsv4.generator.device.sm100_tmem import (
    fence_after_wait,
    fence_before_arrive,
    load_row,
    make_row_fragment,
    rows_view,
    store_row,
    wait_loads,
    wait_stores,
)

PIECE_HEADS = 16
"""At most so many heads of a lane are in registers at a time, with their factors."""
COLUMNS_LOG2 = 9
"""Of the values' columns, which the CTAs of a cluster share at the end."""


@cute.jit
def correct_output(
    tiles: Int32,
    output: cute.Pointer,
    heads: cutlass.Constexpr[int],
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
):
    """Makes Oᵀ (at ``output`` in tensor memory) ready for P·V of each tile; returns when the last one is complete.

    The first tile overwrites Oᵀ. Before any other it has to hold the tile before, and its heads are scaled.
    """
    slot, phase = Int32(0), Int32(0)
    before, phase_before = Int32(0), Int32(0)
    for number in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.factors_full + slot, phase)
        factor = ring.factors[thread % 32 % heads, slot]
        if number > 0:
            cute.arch.mbarrier_wait(barriers.empty + before, phase_before)
            fence_after_wait()
            if cute.arch.vote_any_sync(factor != 1.0):
                scale_heads(output, ring.factors[None, slot], thread)
        fence_before_arrive()
        cute.arch.mbarrier_arrive(barriers.output_ready)
        before, phase_before = slot, phase
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    if tiles > 0:
        cute.arch.mbarrier_wait(barriers.empty + before, phase_before)
    fence_after_wait()


@cute.jit
def load_factors(numbers: cute.Tensor, first: cutlass.Constexpr[int], count: cutlass.Constexpr[int]) -> cute.Tensor:
    """Numbers ``first`` … of float32 in shared memory to ``count`` registers: all threads have the same."""
    values = cute.make_rmem_tensor((count,), Float32)
    words = cute.make_tensor(cute.recast_ptr(values.iterator, dtype=Uint32), cute.make_layout((4, count // 4)))
    for four in cutlass.range_constexpr(count // 4):
        load_shared(numbers.iterator.toint() + 4 * first + 16 * four, words[None, four])
    return values


@cute.jit
def scale_heads(output: cute.Pointer, factors: cute.Tensor, thread: Int32):
    """Each head of Oᵀ times its factor in shared memory. Collective over the warp."""
    heads = cutlass.const_expr(cute.size(factors))
    for first in cutlass.range_constexpr(0, heads, PIECE_HEADS):
        count = cutlass.const_expr(min(PIECE_HEADS, heads - first))
        own = load_factors(factors, first, count)
        for group in cutlass.range_constexpr(GROUPS):
            cells = rows_view(output + (group * heads + first), count)
            values = make_row_fragment(count)
            load_row(cells, values, thread)
            wait_loads()
            for head in cutlass.range_constexpr(0, count, 2):
                values[head], values[head + 1] = cute.arch.mul_packed_f32x2(
                    (values[head], values[head + 1]), (own[head], own[head + 1])
                )
            store_row(values, cells, thread)
    wait_stores()


@cute.jit
def own_shares(
    statistics: cute.Tensor,
    shares: cute.Tensor,
    sink,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
):
    """What the heads of Oᵀ have to be multiplied by, to ``shares`` (N,) in shared memory, which nobody else uses:
    2^(c·(m_i − M)) / (L + sink's part), of the part ``rank``. The threads of the correction call.

    ``sink`` is float32, of which ``heads`` may be read, or None.
    """
    if thread < cute.size(shares):
        own_sink = None
        if cutlass.const_expr(sink is not None):
            own_sink = sink[cutlass.min(thread, heads - 1)]
        shift, inverse, _ = denominator(statistics, thread, scale_log2, own_sink, parts)
        shares[thread] = cute.math.exp2(statistics[thread, 0, rank] * scale_log2 - shift, fastmath=True) * inverse
    cute.arch.barrier(barrier_id=OUTPUT_BARRIER, number_of_threads=WARPGROUP)


@dsl_user_op
def _store_number(address: Int32, value: Float32, *, loc=None, ip=None) -> None:
    """Store a float32 at a ``shared::cluster`` address."""
    operands = [Int32(address).ir_value(loc=loc, ip=ip), Float32(value).ir_value(loc=loc, ip=ip)]
    memory_asm(operands, "st.shared::cluster.f32 [$0], $1;", "r,f", loc, ip)


@cute.jit
def send_columns(
    output: cute.Pointer,
    shares: cute.Tensor,
    count: cutlass.Constexpr[int],
    tiles: Int32,
    parts_o: Int32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
):
    """Every column of the first ``count`` heads, times the head's share, to the CTA that adds it up.

    It is there in part number ``rank`` of [parts][N][512 / parts] float32 at ``parts_o``: neighbouring lanes have
    neighbouring columns. Without a tile there is no Oᵀ, and zeros go.
    """
    heads = cutlass.const_expr(cute.size(shares))
    width_log2 = COLUMNS_LOG2 - log2_of(parts)
    part = parts_o + ((rank * heads) << (width_log2 + 2))
    for first in cutlass.range_constexpr(0, count, PIECE_HEADS):
        piece = cutlass.const_expr(min(PIECE_HEADS, heads - first))
        own = load_factors(shares, first, piece)
        for group in cutlass.range_constexpr(GROUPS):
            values = make_row_fragment(piece)
            values.fill(0.0)
            if tiles > 0:
                load_row(rows_view(output + (group * heads + first), piece), values, thread)
                wait_loads()
                for head in cutlass.range_constexpr(piece):
                    values[head] = values[head] * own[head]
            column = column_of(group, thread, heads)
            owner, own_column = column >> width_log2, column & ((1 << width_log2) - 1)
            place = part + shift_to_cta(parts_o, owner) + ((first << width_log2) + own_column) * 4
            for head in cutlass.range_constexpr(min(piece, count - first)):
                _store_number(place, values[head])
                place = place + (4 << width_log2)


@cute.jit
def add_up(
    out: cute.Tensor,
    parts_o: Int32,
    heads: cutlass.Constexpr[int],
    count: cutlass.Constexpr[int],
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    parts: Int32,
):
    """All threads of a CTA: its columns of the result from what the CTAs have sent, as bf16 to ``out`` [count, 512].

    ``heads`` is N.
    """
    width_log2 = COLUMNS_LOG2 - log2_of(parts)
    groups_log2 = width_log2 - 3  # of eight columns
    registers = cute.make_rmem_tensor((4, 2), Uint32)
    values = cute.recast_tensor(registers, Float32)
    total = cute.make_rmem_tensor((8,), Float32)
    for number in cutlass.range(thread, count << groups_log2, threads, unroll=1):
        head, group = number >> groups_log2, number & ((1 << groups_log2) - 1)
        place = parts_o + (head << (width_log2 + 2)) + 32 * group
        total.fill(0.0)
        for source in cutlass.range(parts, unroll=1):
            for half in cutlass.range_constexpr(2):
                load_shared(place + ((source * heads) << (width_log2 + 2)) + 16 * half, registers[None, half])
            for i in cutlass.range_constexpr(8):
                total[i] = total[i] + values[i]
        column = Int64((rank << width_log2) + 8 * group)
        store_at((out.iterator + head * out.stride[0]).toint() + 2 * column, to_bf16(total))
