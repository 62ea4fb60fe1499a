"""The parts of O of a cluster's CTAs for a few heads (``sm90_few_heads``): sent as they are, scaled and added up.

Each CTA stores whole blocks of 64 columns. The others send it what they have of these, not normalised, m and l with it:
nobody waits for what another CTA knows before the columns are on their way. The formulas, the order of the sums and
the result's bits are those of ``sm90_decode_output``.

A part lies as the accumulators have it: of a block of columns and eight heads each thread of the warpgroup of O has 16
bytes, columns c and c + 8 of heads h and h + 1. So the 512 bytes that a warp stores, and those that it loads again,
follow one another: stores to other CTAs' shared memory go in whole lines, and nobody meets another in a bank.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from dsv4.generator.device import sm90_wgmma, softmax
from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.cluster_sum import shift_to_cta, store_four
from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_decode_output import SPLITS_MAX
from dsv4.generator.device.sm90_few_heads import BLOCK_COLUMNS, BLOCKS

CHUNK_BYTES = 128 * 16
"""What the warpgroup of O has of 64 columns and eight heads."""


@cute.jit
def first_block(rank: Int32, parts: Int32) -> Int32:
    """The first block of 64 columns that CTA ``rank`` of ``parts`` (1 … 8) stores: up to that of the next CTA.

    Block b is stored by CTA b · parts / 8. Nobody waits for a division."""
    first = Int32(0)
    for block in cutlass.range_constexpr(BLOCKS):
        first = first + (Int32(1) if (block * parts) >> 3 < rank else Int32(0))
    return first


@cute.jit
def most_blocks(parts: Int32) -> Int32:
    """Blocks that one of ``parts`` (2 … 8) CTAs stores at most."""
    blocks = Int32(2)
    if parts <= 3:
        blocks = 6 - parts
    elif parts == BLOCKS:
        blocks = Int32(1)
    return blocks


@cute.jit
def send_columns(accs_o: cutlass.Constexpr, parts_o: Int32, rank: Int32, thread: Int32, parts: Int32):
    """Warpgroup of O: every column (float32) to the CTA that stores it, into its part number ``rank``.

    ``parts_o`` is the address of [parts][``most_blocks``][N/8] chunks of ``CHUNK_BYTES``.
    """
    eights = cutlass.const_expr(cute.size(accs_o[0]) // 4)
    first = rank * most_blocks(parts)
    owner, own_block = Int32(0), Int32(-1)
    for number, acc in enumerate(accs_o):
        rows = sm90_wgmma.rows_of(acc)
        before, owner = owner, (number * parts) >> 3
        own_block = own_block + 1 if owner == before else Int32(0)
        place = parts_o + shift_to_cta(parts_o, owner) + 16 * thread + (first + own_block) * (eights * CHUNK_BYTES)
        for eight in cutlass.range_constexpr(eights):
            store_four(
                place + eight * CHUNK_BYTES,
                *(rows[0, 2 * eight], rows[0, 2 * eight + 1], rows[1, 2 * eight], rows[1, 2 * eight + 1]),
            )


@cute.jit
def weights_of(statistics: cute.Tensor, row: Int32, scale_log2: Float32, sink, parts: Int32) -> cute.Tensor:
    """What each part's O of a head is multiplied by: 2^(c·(m_i − M)) / (L + sink's part); 0 beyond ``parts``.

    That is ``sm90_decode_output.denominator``, with all loads on their way at once.
    """
    maxima, sums, weights = (cute.make_rmem_tensor((SPLITS_MAX,), Float32) for _ in range(3))
    for part in cutlass.range_constexpr(SPLITS_MAX):
        there = cutlass.min(Int32(part), parts - 1)
        maxima[part], sums[part] = statistics[row, 0, there], statistics[row, 1, there]
    top = maxima[0]
    for part in cutlass.range_constexpr(1, SPLITS_MAX):
        top = cute.arch.fmax(top, maxima[part])  # beyond the parts: once more the last one's
    shift = (Float32(0.0) if top == -Float32.inf else top) * scale_log2
    total = Float32(0.0)
    for part in cutlass.range_constexpr(SPLITS_MAX):
        factor = cute.math.exp2(maxima[part] * scale_log2 - shift, fastmath=True)
        weights[part] = factor if part < parts else Float32(0.0)
        total = total + sums[part] * factor if part < parts else total
    below = total
    if cutlass.const_expr(sink is not None):
        below = total + cute.math.exp2(sink * softmax.LOG2_E - shift, fastmath=True)
    inverse = Float32(0.0) if total == Float32(0.0) else cute.arch.rcp_approx(below)
    for part in cutlass.range_constexpr(SPLITS_MAX):
        weights[part] = weights[part] * inverse
    return weights


@cute.jit
def first_head_of(thread: Int32, head_columns: cutlass.Constexpr[int]) -> Int32:
    """The first of the two heads that a thread of the CTA has in each of its chunks, of ``head_columns`` (N)."""
    return thread // 128 % (head_columns // 8) * 8 + 2 * (thread & 3)


@cute.jit
def load_sinks(sink, heads: Int32, thread: Int32, head_columns: cutlass.Constexpr[int]) -> cute.Tensor:
    """The logits of :func:`merge` for this thread's heads; ``sink`` is float32, of which ``heads`` may be read."""
    own, first_head = cute.make_rmem_tensor((2,), Float32), first_head_of(thread, head_columns)
    for side in cutlass.range_constexpr(2):
        own[side] = sink[cutlass.min(first_head + side, heads - 1)]
    return own


@cute.jit
def merge(
    out: cute.Tensor,
    parts_o: Int32,
    statistics: cute.Tensor,
    sinks,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    parts: Int32,
):
    """All threads of a CTA: Σ O_i · 2^(c·(m_i − M)) / (L + sink's part) of its columns, bf16 to ``out`` [heads, 512].

    ``parts_o``: see :func:`send_columns`. ``statistics`` (N, 2, parts); ``sinks``: of ``load_sinks``, or None.
    """
    head_columns = cutlass.const_expr(cute.size(statistics, mode=[0]))
    eights = cutlass.const_expr(head_columns // 8)
    turns = cutlass.const_expr(threads // 128 // eights)  # blocks of columns that the threads work on at once
    group, own = thread // 128, thread % 128
    eight, first_head = group % eights, first_head_of(thread, head_columns)
    start, most = first_block(rank, parts), most_blocks(parts)
    count = first_block(rank + 1, parts) - start
    if group < turns * eights and group // eights < count:
        first = parts_o + 16 * own + eight * CHUNK_BYTES
        registers = cute.make_rmem_tensor((4, SPLITS_MAX), Uint32)
        values = cute.recast_tensor(registers, Float32)
        total = cute.make_rmem_tensor((4,), Float32)
        # The first chunks are on their way while it is worked out what they are multiplied by.
        load_chunks(first + group // eights * (eights * CHUNK_BYTES), most * (eights * CHUNK_BYTES), registers, parts)
        weights = []
        for side in cutlass.range_constexpr(2):
            own_sink = sinks[side] if cutlass.const_expr(sinks is not None) else None
            weights.append(weights_of(statistics, first_head + side, scale_log2, own_sink, parts))
        for block in cutlass.range(group // eights, count, turns, unroll=1):
            total.fill(0.0)
            for part in cutlass.range_constexpr(SPLITS_MAX):
                for i in cutlass.range_constexpr(4):
                    more = total[i] + values[i, part] * weights[i % 2][part]
                    total[i] = more if part < parts else total[i]
            store_columns(out, total, first_head, heads, (start + block) * BLOCK_COLUMNS, own)
            if block + turns < count:
                load_chunks(
                    *(first + (block + turns) * (eights * CHUNK_BYTES), most * (eights * CHUNK_BYTES)),
                    *(registers, parts),
                )


@cute.jit
def load_chunks(first: Int32, step: Int32, registers: cute.Tensor, parts: Int32):
    """What each part has at address ``first`` + part · ``step``, to ``registers`` (4, ``SPLITS_MAX``)."""
    for part in cutlass.range_constexpr(SPLITS_MAX):
        if part < parts:
            load_shared(first + part * step, registers[None, part])


@cute.jit
def store_columns(out: cute.Tensor, total: cute.Tensor, first_head: Int32, heads: Int32, start: Int32, thread: Int32):
    """Two columns, eight apart, of two heads as bf16 to ``out``; lanes four apart, which have the same heads, give
    one another what makes a pair. All lanes call. ``start``: of the block of columns.
    """
    odd = (thread >> 2) & 1
    head = first_head + odd
    column = start + thread // 32 * 16 + thread % 32 // 8 * 2
    pair = cute.make_rmem_tensor((2,), Float32)
    for half in cutlass.range_constexpr(2):
        first, second = total[2 * half], total[2 * half + 1]
        given = first if odd == 1 else second
        taken = cute.arch.shuffle_sync_bfly(given, offset=4)
        pair[0] = taken if odd == 1 else first
        pair[1] = second if odd == 1 else taken
        if head < heads:
            place = Int64(column + 8 * half) * 2
            store_at((out.iterator + head * out.stride[0]).toint() + place, cute.recast_tensor(to_bf16(pair), Uint32))
