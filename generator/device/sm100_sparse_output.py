"""O of a decoding attention on sm_100: scaled where a row's maximum grew, at the end normalised and stored.

A warpgroup has the 64 rows of O, two threads a row with 256 columns each (``sm100_sparse_lanes``). What the CTAs that
shared a query's keys tell one another, and how they add up, is that of ``sm90_decode_output``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.cluster_sum import store_to_cta
from dsv4.generator.device.inline_asm import memory_asm
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, PIECE_BYTES, ROW_BYTES
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_decode_output import denominator, log2_of
from dsv4.generator.device.sm100_attention_correction import rescale_rows
from dsv4.generator.device.sm100_sparse_decode import HALF_COLUMNS, ROWS
from dsv4.generator.device.sm100_sparse_lanes import ALONE
from dsv4.generator.device.sm100_tmem import (
    fence_after_wait,
    fence_before_arrive,
    load_row,
    make_row_fragment,
    rows_view,
    wait_loads,
)

PIECE_COLUMNS = 32
"""Columns of O in registers at a time."""


@cute.jit
def correct_output(
    tiles: Int32,
    output: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr = ALONE,
):
    """Makes O (at ``output`` in tensor memory) ready for P·V of each tile; returns when the last one is complete.

    The first tile overwrites O. Before any other O has to hold the tile before, and its rows are scaled.
    """
    row = lanes.row_of(thread)
    slot, phase = Int32(0), Int32(0)
    before, phase_before = Int32(0), Int32(0)
    for number in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.factors_full + slot, phase)
        factor = ring.factors[row, slot]
        if number > 0:
            cute.arch.mbarrier_wait(barriers.empty + before, phase_before)
            fence_after_wait()
            if cute.arch.vote_any_sync(factor != 1.0):
                rescale_rows(output, 0, HALF_COLUMNS, factor, thread)
        fence_before_arrive()
        lanes.arrive(barriers.output_ready)
        before, phase_before = slot, phase
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    if tiles > 0:
        cute.arch.mbarrier_wait(barriers.empty + before, phase_before)
    fence_after_wait()


@cute.jit
def tell_statistics(
    row_max: Float32,
    row_sum: Float32,
    statistics: cute.Tensor,
    rank: Int32,
    thread: Int32,
    parts: Int32,
    lanes: cutlass.Constexpr = ALONE,
):
    """Softmax warpgroup: m and l of its rows into ``statistics`` (64, 2, parts) of every CTA with these rows.

    ``rank``: of the part of the keys that this CTA has.
    """
    if lanes.half_of(thread) == 0:
        row = lanes.row_of(thread)
        for to in cutlass.range(parts, unroll=1):
            store_to_cta(statistics.iterator + statistics.layout((row, 0, rank)), lanes.cta_of(to), row_max)
            store_to_cta(statistics.iterator + statistics.layout((row, 1, rank)), lanes.cta_of(to), row_sum)


@cute.jit
def own_share(
    statistics: cute.Tensor,
    sink,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
    lanes: cutlass.Constexpr = ALONE,
) -> Float32:
    """What the thread's row of O has to be multiplied by: 2^(c·(m_i − M)) / (L + sink's part), of the part ``rank``.

    ``sink`` is (64,) float32, of which ``heads`` may be read, or None.
    """
    row = lanes.row_of(thread)
    own_sink = None
    if cutlass.const_expr(sink is not None):
        own_sink = sink[cutlass.min(row, heads - 1)]
    shift, inverse, _ = denominator(statistics, row, scale_log2, own_sink, parts)
    return cute.math.exp2(statistics[row, 0, rank] * scale_log2 - shift, fastmath=True) * inverse


@cute.jit
def load_piece(output: cute.Pointer, first: Int32, factor: Float32, tiles: Int32, thread: Int32) -> cute.Tensor:
    """Columns ``first`` … + 31 of the thread's half row of O, times ``factor``; zeros where no tile wrote an O."""
    values = make_row_fragment(PIECE_COLUMNS)
    values.fill(0.0)
    if tiles > 0:
        load_row(rows_view(output + first, PIECE_COLUMNS), values, thread)
        wait_loads()
        for i in cutlass.range_constexpr(PIECE_COLUMNS):
            values[i] = values[i] * factor
    return values


@cute.jit
def store_alone(
    output: cute.Pointer,
    factor: Float32,
    tiles: Int32,
    staged: Int32,
    out: cute.Tensor,
    heads: Int32,
    thread: Int32,
    lanes: cutlass.Constexpr = ALONE,
):
    """O as bf16 to ``out`` [64 or fewer heads, 512], through 64 KB of shared memory at ``staged``.

    Rows from ``heads`` on are left out. A warp reads back its own rows only.
    """
    row, half = lanes.row_of(thread), lanes.half_of(thread)
    for first in cutlass.range(0, HALF_COLUMNS, PIECE_COLUMNS, unroll=1):
        rounded = to_bf16(load_piece(output, first, factor, tiles, thread))
        words = cute.make_tensor(
            cute.recast_ptr(rounded.iterator, dtype=Uint32), cute.make_layout((4, PIECE_COLUMNS // 8))
        )
        column = half * HALF_COLUMNS + first
        block = staged + (column >> 6) * BLOCK_BYTES + row * ROW_BYTES
        for piece in cutlass.range_constexpr(PIECE_COLUMNS // 8):
            place = (((column & 63) >> 3) + piece) ^ (row & 7)
            store_shared(block + place * PIECE_BYTES, words[None, piece])
    cute.arch.sync_warp()
    lane, (first_row, rows, halves) = thread & 31, lanes.rows_of_warp(thread >> 5)
    registers = cute.make_rmem_tensor((4,), Uint32)
    for turn in cutlass.range(rows, unroll=4):
        own_row = first_row + turn
        if own_row < heads:
            for half in halves:
                block = staged + ((lane >> 3) + 4 * half) * BLOCK_BYTES + own_row * ROW_BYTES
                load_shared(block + ((lane ^ own_row) & 7) * PIECE_BYTES, registers)
                column = Int64(half * HALF_COLUMNS + lane * 8)
                store_at((out.iterator + own_row * out.stride[0]).toint() + 2 * column, registers)


@dsl_user_op
def _store_four_to_cta(address: Int32, rank: Int32, values: tuple, *, loc=None, ip=None) -> None:
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        Int32(rank).ir_value(loc=loc, ip=ip),
        *[Float32(value).ir_value(loc=loc, ip=ip) for value in values],
    ]
    text = (
        "{\n\t.reg .b32 address;\n\t"
        "mapa.shared::cluster.u32 address, $0, $1;\n\t"
        "st.shared::cluster.v4.f32 [address], {$2, $3, $4, $5};\n\t}"
    )
    memory_asm(operands, text, "r,r,f,f,f,f", loc, ip)


@cute.jit
def send_columns(
    output: cute.Pointer,
    factor: Float32,
    tiles: Int32,
    parts_o: Int32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
    lanes: cutlass.Constexpr = ALONE,
):
    """Every column of O, times ``factor``, to the CTA that adds it up, as ``sm90_decode_output.add_up`` expects it."""
    row, half = lanes.row_of(thread), lanes.half_of(thread)
    groups_log2 = 6 - log2_of(parts)  # groups of eight columns that a CTA stores
    start = parts_o + ((rank * ROWS + row) << (groups_log2 + 5))
    for first in cutlass.range(0, HALF_COLUMNS, PIECE_COLUMNS, unroll=1):
        values = load_piece(output, first, factor, tiles, thread)
        for eight in cutlass.range_constexpr(PIECE_COLUMNS // 8):
            number = (half * HALF_COLUMNS + first) // 8 + eight
            owner, group = number >> groups_log2, number & ((1 << groups_log2) - 1)
            place = start + (group ^ (row & 7)) * 32
            for side in cutlass.range_constexpr(2):
                four = tuple(values[8 * eight + 4 * side + i] for i in range(4))
                _store_four_to_cta(place + 16 * side, lanes.cta_of(owner), four)
