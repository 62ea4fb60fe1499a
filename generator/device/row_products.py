"""Products of rows by ``mma.sync`` m16n8k16, bf16 with float32 sums, operands loaded 16 bytes at a time.

A dot product does not mind in which order its terms come, so the columns of both operands are renamed in the same way:
of 32 columns, lane ``l`` holds the eight from 8 · (l % 4) on of row l / 4. Its first four serve as the columns that the
instruction asks of it in one product, its last four in a second. So one 16-byte load (of global or of shared memory,
without ldmatrix) brings a lane all it needs of 8 rows x 32 columns.

Results: lane ``l`` gets rows l / 4 and l / 4 + 8 of the first operand, rows 2 · (l % 4) and the next of the second.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Uint32
from cutlass.cute.nvgpu import warp

STEP_COLUMNS = 32
"""Columns of one step: two instructions' worth."""


def make_sums() -> cute.Tensor:
    """Registers for 16 x 8 sums of a warp: (row, its neighbour), (row + 8, its neighbour). Zero."""
    sums = cute.make_rmem_tensor((4, 1, 1), Float32)
    sums.fill(0.0)
    return sums


@cute.jit
def add_products(sums: cute.Tensor, low: cute.Tensor, high: cute.Tensor, other: cute.Tensor) -> None:
    """``sums`` += 16 rows · 8 rows over 32 columns. ``low``, ``high``, ``other``: 8 bf16 of a lane (16 bytes).

    ``low`` and ``high`` are of rows 0-7 and 8-15 of the first operand, ``other`` of the second's 8 rows.
    """
    instruction = cute.make_mma_atom(warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))
    low_pairs, high_pairs, other_pairs = (cute.recast_tensor(part, Uint32) for part in (low, high, other))
    for half in cutlass.range_constexpr(2):
        first = cute.make_rmem_tensor((8, 1), BFloat16)
        second = cute.make_rmem_tensor((4, 1), BFloat16)
        first_pairs, second_pairs = cute.recast_tensor(first, Uint32), cute.recast_tensor(second, Uint32)
        for pair in cutlass.range_constexpr(2):
            first_pairs[2 * pair] = low_pairs[2 * half + pair]
            first_pairs[2 * pair + 1] = high_pairs[2 * half + pair]
            second_pairs[pair] = other_pairs[2 * half + pair]
        cute.gemm(instruction, sums, first, second, sums)
