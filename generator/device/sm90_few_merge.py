"""The end of a decoding attention on Hopper for a few heads whose parts lie beside the ring: one exchange, not two.

Where the parts of O of a cluster's CTAs have shared memory of their own, nobody need wait until the others have left
their rings: a CTA sends its columns as they are, its m and l with them, and who adds them up scales them. That saves a
barrier of the cluster, and the wait for the statistics. The formulas are those of ``sm90_decode_output``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64

from dsv4.generator.device.page_rows import store_at, to_bf16
from dsv4.generator.device.sm90_decode_output import denominator
from dsv4.generator.device.sm90_few_heads import BLOCK_COLUMNS
from dsv4.generator.device.sm90_few_output import first_block, load_number, most_columns, turned

STEP = 2
"""Columns of one head that a thread adds up at a time: few, so that all threads of a CTA have some."""


@cute.jit
def merge(
    out: cute.Tensor,
    parts_o: Int32,
    statistics: cute.Tensor,
    sink,
    heads: Int32,
    scale_log2: Float32,
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    parts: Int32,
):
    """All threads of a CTA: Σ O_i · 2^(c·(m_i − M)) / (L + sink's part) of its columns, bf16 to ``out`` [heads, 512].

    ``parts_o`` is the address of [parts][``most_columns``][N] float32, not normalised (``sm90_few_output``).
    ``statistics`` (N, 2, parts); ``sink`` is float32, of which ``heads`` may be read, or None.
    """
    rows = cutlass.const_expr(cute.size(statistics, mode=[0]))
    blocks = cutlass.const_expr(rows // 8)
    most, start = most_columns(parts), first_block(rank, parts)
    count = (first_block(rank + 1, parts) - start) * (BLOCK_COLUMNS // STEP)
    for number in cutlass.range(thread, rows * count, threads, unroll=1):
        row, group = number % rows, number // rows
        if row < heads:
            own_sink = None
            if cutlass.const_expr(sink is not None):
                own_sink = sink[row]
            shift, inverse, _ = denominator(statistics, row, scale_log2, own_sink, parts)
            total = cute.make_rmem_tensor((STEP,), Float32)
            total.fill(0.0)
            for source in cutlass.range(parts, unroll=1):
                weight = cute.math.exp2(statistics[row, 0, source] * scale_log2 - shift, fastmath=True) * inverse
                for i in cutlass.range_constexpr(STEP):
                    own_column = group * STEP + i
                    column = source * most + own_column
                    place = parts_o + column * (32 * blocks) + 32 * turned(row >> 3, own_column, blocks)
                    total[i] = total[i] + load_number(place + 4 * (row & 7)) * weight
            first = Int64(start * BLOCK_COLUMNS + group * STEP)
            store_at((out.iterator + row * out.stride[0]).toint() + 2 * first, to_bf16(total))
