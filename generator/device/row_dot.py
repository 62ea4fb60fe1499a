"""Dot product of two rows that a thread holds parts of, in float32."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32

from dsv4.generator.device.row_reduce import tree_sum
from dsv4.generator.device.vector_io import to_float32


@cute.jit
def dot(a: cute.Tensor, b: cute.Tensor) -> Float32:
    """Σ a · b over this thread's bf16 elements (at least 4), products exact, four running sums in float32."""
    left, right = to_float32(a), to_float32(b)
    sums = [left[i] * right[i] for i in range(4)]
    for i in cutlass.range_constexpr(4, cute.size(a)):
        sums[i % 4] = sums[i % 4] + left[i] * right[i]
    return tree_sum(sums)
