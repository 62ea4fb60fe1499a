"""The end of a decoding attention on Hopper for 8 to 32 heads (``sm90_few_heads``): Oᵀ normalised, turned and stored.

The formulas, the order of the sums and what the CTAs of a cluster tell one another are those of ``sm90_decode_output``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from dsv4.generator.device import sm90_wgmma
from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.cluster_sum import shift_to_cta, store_pair, store_to_cta
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_decode_output import denominator, log2_of
from dsv4.generator.device.sm90_few_heads import (
    BLOCK_COLUMNS,
    BLOCKS,
    HEAD_DIM,
    SCORE_BARRIER,
    VALUE_BARRIER,
    head_of,
    load_heads,
    scale_heads,
)
from dsv4.generator.device.transposed_store import PIECE_BYTES, ROW_BYTES, store_transposed


@cute.jit
def first_block(rank: Int32, parts: Int32) -> Int32:
    """The first block of 64 columns that CTA ``rank`` of ``parts`` (1 … 8) stores: up to that of the next CTA.

    Block b is stored by CTA b · parts / 8. Nobody waits for a division."""
    first = Int32(0)
    for block in cutlass.range_constexpr(BLOCKS):
        first = first + (Int32(1) if (block * parts) >> 3 < rank else Int32(0))
    return first


@cute.jit
def most_columns(parts: Int32) -> Int32:
    """Columns that one of ``parts`` CTAs stores at most."""
    blocks = Int32(2)
    if parts == 1:
        blocks = Int32(BLOCKS)
    elif parts <= 3:
        blocks = 6 - parts
    elif parts == BLOCKS:
        blocks = Int32(1)
    return blocks * BLOCK_COLUMNS


@cute.jit
def share_of(tiles: Int32, rank: Int32, parts: Int32) -> Int32:
    """Where the share of CTA ``rank`` of ``parts`` of the tiles begins; that of CTA ``parts`` at their end."""
    return tiles * rank >> log2_of(parts) if parts & (parts - 1) == 0 else tiles * rank // parts


@cute.jit
def tell_statistics(
    head_max: cute.Tensor,
    head_sum: cute.Tensor,
    sums: cute.Tensor,
    statistics: cute.Tensor,
    rank: Int32,
    thread: Int32,
    parts: Int32,
):
    """Warpgroup of S: m and l (whole) of every head into ``statistics`` (N, 2, parts) of every CTA of the cluster.

    ``head_max`` and ``head_sum`` are this thread's N/4, of which the sums are parts; ``sums`` (N, 4) is shared memory
    that no thread reads any more.
    """
    heads = cutlass.const_expr(cute.size(sums, mode=[0]))
    for column in cutlass.range_constexpr(heads // 4):
        total = head_sum[column]
        for step in cutlass.range_constexpr(3):
            total = total + cute.arch.shuffle_sync_bfly(total, offset=4 << step)
        if thread % 32 < 4:
            sums[head_of(column, thread), thread // 32] = total
    cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)
    for to in cutlass.range(parts, unroll=1):
        if thread < 4:
            for column in cutlass.range_constexpr(heads // 4):
                place = statistics.iterator + statistics.layout((head_of(column, thread), 0, rank))
                store_to_cta(place, to, head_max[column])
        head = thread - 32
        if head >= 0 and head < heads:
            total = (sums[head, 0] + sums[head, 1]) + (sums[head, 2] + sums[head, 3])
            store_to_cta(statistics.iterator + statistics.layout((head, 1, rank)), to, total)


@cute.jit
def normalise(
    accs_o: cutlass.Constexpr,
    statistics: cute.Tensor,
    factors: cute.Tensor,
    sink,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    parts: Int32,
):
    """Warpgroup of O: its part's share of the result, O_i · 2^(c·(m_i − M)) / (L + sink's part).

    ``factors`` (N,) is shared memory that nobody else uses any more. ``sink`` is float32, of which ``heads`` may be
    read, or None.
    """
    if thread < cute.size(factors):
        own_sink = None
        if cutlass.const_expr(sink is not None):
            own_sink = sink[cutlass.min(thread, heads - 1)]
        shift, inverse, _ = denominator(statistics, thread, scale_log2, own_sink, parts)
        own_max = statistics[thread, 0, rank]
        factors[thread] = cute.math.exp2(own_max * scale_log2 - shift, fastmath=True) * inverse
    cute.arch.barrier(barrier_id=VALUE_BARRIER, number_of_threads=128)
    own = cute.make_rmem_tensor((cute.size(factors) // 4,), Float32)
    load_heads(factors, own, thread)
    for acc in accs_o:
        scale_heads(acc, own)


@cute.jit
def store_alone(accs_o: cutlass.Constexpr, stage: Int32, out: cute.Tensor, heads: Int32, thread: Int32):
    """Warpgroup of O: all columns as bf16 through the shared memory at ``stage``, which only it still uses.

    ``out`` is [heads, 512].
    """
    head_columns = cutlass.const_expr(cute.size(accs_o[0]) // 4 * 8)
    block_bytes = head_columns * ROW_BYTES
    for block, acc in enumerate(accs_o):
        store_transposed(acc, stage + block * block_bytes, thread)
    cute.arch.barrier(barrier_id=VALUE_BARRIER, number_of_threads=128)
    pieces = HEAD_DIM // 8
    registers = cute.make_rmem_tensor((4,), Uint32)
    for turn in cutlass.range_constexpr(head_columns * pieces // 128):
        number = turn * 128 + thread
        row, piece = number // pieces, number % pieces
        if row < heads:
            place = stage + (piece >> 3) * block_bytes + row * ROW_BYTES
            load_shared(place + ((piece ^ row) & 7) * PIECE_BYTES, registers)
            store_at((out.iterator + row * out.stride[0]).toint() + Int64(piece * 16), registers)


@cute.jit
def turned(block: Int32, column: Int32, blocks: cutlass.Constexpr[int]) -> Int32:
    """Where the ``block``-th eight heads of a column stand: so the columns of a warp go to different banks."""
    place = block
    if cutlass.const_expr(blocks == 4):
        place = block ^ (column & 3)
    elif cutlass.const_expr(blocks == 2):
        place = block ^ ((column >> 1) & 1)
    return place


@cute.jit
def send_columns(accs_o: cutlass.Constexpr, parts_o: Int32, rank: Int32, thread: Int32, parts: Int32):
    """Warpgroup of O: every column (normalised, float32) to the CTA that stores it, into its part number ``rank``.

    ``parts_o`` is the address of [parts][``most_columns``][N] float32.
    """
    blocks = cutlass.const_expr(cute.size(accs_o[0]) // 4)
    first = rank * most_columns(parts) + (thread // 32 * 16 + thread % 32 // 4)
    owner, own_block = Int32(0), Int32(-1)
    for number, acc in enumerate(accs_o):
        rows = sm90_wgmma.rows_of(acc)
        before, owner = owner, (number * parts) >> 3
        own_block = own_block + 1 if owner == before else Int32(0)
        block_start = parts_o + shift_to_cta(parts_o, owner) + 8 * (thread & 3)
        for half in cutlass.range_constexpr(2):
            column = first + own_block * BLOCK_COLUMNS + 8 * half
            start = block_start + column * (32 * blocks)
            for block in cutlass.range_constexpr(blocks):
                place = start + 32 * turned(Int32(block), column, blocks)
                store_pair(place, rows[half, 2 * block], rows[half, 2 * block + 1])


@cute.jit
def add_up(
    out: cute.Tensor,
    parts_o: Int32,
    head_columns: cutlass.Constexpr[int],
    heads: Int32,
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    parts: Int32,
):
    """All threads of a CTA: its columns of the result from what the CTAs have sent, as bf16 to ``out`` [heads, 512].

    ``head_columns`` is N.
    """
    blocks = cutlass.const_expr(head_columns // 8)
    most, start = most_columns(parts), first_block(rank, parts)
    count = (first_block(rank + 1, parts) - start) * (BLOCK_COLUMNS // 8)
    total = cute.make_rmem_tensor((8,), Float32)
    for number in cutlass.range(thread, 8 * blocks * count, threads, unroll=1):
        row, group = number % (8 * blocks), number // (8 * blocks)
        if row < heads:
            total.fill(0.0)
            for source in cutlass.range(parts, unroll=1):
                for i in cutlass.range_constexpr(8):
                    column = source * most + group * 8 + i
                    place = parts_o + column * (32 * blocks) + 32 * turned(row >> 3, Int32(i), blocks)
                    total[i] = total[i] + load_number(place + 4 * (row & 7))
            first = Int64((start * BLOCK_COLUMNS + group * 8) * 2)
            store_at((out.iterator + row * out.stride[0]).toint() + first, to_bf16(total))


@cute.jit
def load_number(address: Int32) -> Float32:
    """The float32 at an address of shared memory."""
    pointer = cute.make_ptr(Float32, address, cute.AddressSpace.smem, assumed_align=4)
    return cute.make_tensor(pointer, cute.make_layout(1))[0]
