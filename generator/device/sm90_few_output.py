"""The end of a decoding attention on Hopper for 8 to 32 heads (``sm90_few_heads``): m and l told, Oᵀ stored.

The formulas and what the CTAs of a cluster tell one another are those of ``sm90_decode_output``. What they do with
their parts of O: ``sm90_few_merge``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.cluster_sum import shift_to_cta, store_float
from dsv4.generator.device.page_rows import store_at
from dsv4.generator.device.sm90_decode_output import denominator, log2_of
from dsv4.generator.device.sm90_few_heads import (
    BLOCK_COLUMNS,
    BLOCKS,
    SCORE_BARRIER,
    VALUE_BARRIER,
    head_of,
    load_heads,
    scale_heads,
)
from dsv4.generator.device.transposed_store import PIECE_BYTES, ROW_BYTES, store_transposed


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
    # Eight lanes have the same heads: each tells another CTA, and each warp tells of other heads.
    to = thread % 32 // 4
    if to < parts:
        shift = shift_to_cta(statistics.iterator.toint(), to)
        for column in cutlass.range_constexpr(heads // 4):
            if column % 4 == thread // 32:
                head = head_of(column, thread)
                total = (sums[head, 0] + sums[head, 1]) + (sums[head, 2] + sums[head, 3])
                for kind, number in enumerate((head_max[column], total)):
                    place = statistics.iterator + statistics.layout((head, kind, rank))
                    store_float(place.toint() + shift, number)


@cute.jit
def normaliser_of(statistics: cute.Tensor, head: Int32, scale_log2: Float32, sink) -> Float32:
    """What a CTA that has all keys multiplies O of ``head`` by: 2^(c·(m − M)) / (L + sink's part), with M = m.

    ``statistics`` (N, 2, 1 or more). ``sink`` is the head's logit, or None.
    """
    shift, inverse, _ = denominator(statistics, head, scale_log2, sink, Int32(1))
    own_max = statistics[head, 0, 0]
    return cute.math.exp2(own_max * scale_log2 - shift, fastmath=True) * inverse


@cute.jit
def normalise(accs_o: cutlass.Constexpr, normalisers: cute.Tensor, thread: Int32):
    """Warpgroup of O: each head's O times its number of the (N,) ``normalisers`` in shared memory."""
    own = cute.make_rmem_tensor((cute.size(normalisers) // 4,), Float32)
    load_heads(normalisers, own, thread)
    for acc in accs_o:
        scale_heads(acc, own)


@cute.jit
def store_alone(
    accs_o: cutlass.Constexpr,
    stage: Int32,
    out: cute.Tensor,
    heads: Int32,
    thread: Int32,
    blocks: cutlass.Constexpr[int] = BLOCKS,
    again: cutlass.Constexpr[bool] = False,
):
    """Warpgroup of O: all columns as bf16 through the shared memory at ``stage``, which only it still uses.

    ``out`` is [heads, 512]. ``blocks``: of 64 columns, for which there is room at ``stage`` (2, 4 or 8).
    ``again``: there the last result may still be read.
    """
    head_columns = cutlass.const_expr(cute.size(accs_o[0]) // 4 * 8)
    block_bytes = head_columns * ROW_BYTES
    pieces = 8 * blocks
    registers = cute.make_rmem_tensor((4,), Uint32)
    for first in cutlass.range_constexpr(0, BLOCKS, blocks):
        if cutlass.const_expr(again or first > 0):
            cute.arch.barrier(barrier_id=VALUE_BARRIER, number_of_threads=128)  # what was there is read
        for block in cutlass.range_constexpr(blocks):
            store_transposed(accs_o[first + block], stage + block * block_bytes, thread)
        cute.arch.barrier(barrier_id=VALUE_BARRIER, number_of_threads=128)
        for turn in cutlass.range_constexpr(head_columns * pieces // 128):
            number = turn * 128 + thread
            row, piece = number // pieces, number % pieces
            if row < heads:
                place = stage + (piece >> 3) * block_bytes + row * ROW_BYTES
                load_shared(place + ((piece ^ row) & 7) * PIECE_BYTES, registers)
                target = Int64(first * (BLOCK_COLUMNS * 2) + piece * PIECE_BYTES)
                store_at((out.iterator + row * out.stride[0]).toint() + target, registers)
