"""A decoding attention on sm_100 for 8 to 32 heads: keys, and columns of the values, are the rows of the products.

tcgen05.mma has 64 rows or 128, so with heads as rows most of the work would be padding. Here the tile of 64 keys is
operand A of both products, and the heads are their columns:

    Sᵀ (64 x N) = K·Qᵀ          Oᵀ (512 x N) += Vᵀ·Pᵀ

N is the number of heads, rounded up to a multiple of 8. Q lies in shared memory as in global memory, V is the tile that
K was, read the other way, and P [N, 64] is written transposed. Roles, barriers and the ring of tiles are those of
``sm100_sparse_decode``, but Q is whole in shared memory.

Tensor memory: Sᵀ has 64 rows, so that those of the two slots share N columns (``sm100_half_mma``). Oᵀ takes 4·N columns
of all lanes, in four groups. With N a multiple of 16 a group is a product of 128 rows; else, which has to be a product
of 64 rows for the columns to be N, it is two of them, in one half of the lanes each.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device import sm100_half_mma
from dsv4.generator.device.bulk_rows import load_global, store_shared
from dsv4.generator.device.kv_dequant import PIECE_BYTES, ROW_BYTES
from dsv4.generator.device.sm100_sparse_decode import HEAD_DIM, WARPGROUP

GROUPS = 4
"""Of N columns of tensor memory that Oᵀ takes."""
GROUP_ROWS = HEAD_DIM // GROUPS
HEADS_STEP = 8
"""Heads, the columns of a product of 64 rows, come in multiples of this, and here of one of 128 rows in multiples of
twice as many: CUTLASS has both rules for those."""

OUTPUT_BARRIER = 2
"""The named barrier of the correction's threads; that of the softmax's is ``sm90_few_heads.SCORE_BARRIER``."""


def product_rows(heads: int) -> int:
    """Rows of one product of Oᵀ with ``heads`` columns."""
    assert heads % HEADS_STEP == 0, heads
    return GROUP_ROWS if heads % (2 * HEADS_STEP) == 0 else sm100_half_mma.ROWS


def column_of(group: int, thread: Int32, heads: int) -> Int32:
    """Which of the values' 512 columns is the row of Oᵀ in the lane of ``thread`` (0 … 127), in a group's columns."""
    if product_rows(heads) == GROUP_ROWS:
        return group * GROUP_ROWS + thread
    half = sm100_half_mma.half_of(thread)
    return group * GROUP_ROWS + half * sm100_half_mma.ROWS + sm100_half_mma.row_of(thread)


@cute.jit
def q_to_shared(
    q: cute.Tensor,
    heads: Int32,
    target: Int32,
    rows: cutlass.Constexpr[int],
    q_full: cute.Pointer,
    thread: Int32,
    turned: cutlass.Constexpr[bool] = False,
):
    """``q`` [``heads``, 512] bf16 to shared memory at ``target``: ``rows`` rows, in swizzled blocks of 64 columns.

    The rows from ``heads`` on become zeros. ``turned``: in the order of K in tensor memory (``kv_tmem_feed``): of the
    four times four groups of four columns of a block, group (i, j) stands at (j, i). Two warpgroups call, ``thread`` is
    0 … 255.
    """
    pieces = HEAD_DIM // 8  # of 16 bytes, a row
    for turn in cutlass.range(rows * pieces // (2 * WARPGROUP), unroll=4):
        number = turn * (2 * WARPGROUP) + thread
        row, piece = number // pieces, number % pieces
        values = cute.make_rmem_tensor((4,), Uint32)
        values.fill(0)
        if row < heads:
            place = q.iterator + row * q.stride[0]
            if cutlass.const_expr(turned):
                first = (piece >> 3) * 64 + (piece & 1) * 32 + (piece >> 1 & 3) * 4
                for half in cutlass.range_constexpr(2):
                    pair = cute.make_tensor(values.iterator + 2 * half, cute.make_layout(2))
                    load_global((place + (first + 16 * half)).toint(), pair)
            else:
                load_global((place + 8 * piece).toint(), values)
        block = target + (piece >> 3) * (rows * ROW_BYTES) + row * ROW_BYTES
        store_shared(block + ((piece ^ row) & 7) * PIECE_BYTES, values)
    cute.arch.fence_view_async_shared()
    cute.arch.mbarrier_arrive(q_full)
