"""Rows added element by element, each thread its vectors."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16

from dsv4.generator.device.row_reduce import tree_sum
from dsv4.generator.device.vector_io import to_float32


@cute.jit
def rounded_sum(terms: list[cute.Tensor]) -> cute.Tensor:
    """Σ terms, bf16 fragments of one shape, in float32 by halves, rounded once to bf16."""
    wide = [to_float32(term) for term in terms]
    result = cute.make_rmem_tensor(terms[0].shape, BFloat16)
    sums = cute.make_rmem_tensor(terms[0].shape, cutlass.Float32)
    for i in cutlass.range_constexpr(cute.size(sums)):
        sums[i] = tree_sum([part[i] for part in wide])
    result.store(sums.load().to(BFloat16))
    return result
