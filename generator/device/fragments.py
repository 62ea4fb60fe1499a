"""Arithmetic on register fragments that several kernels share."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32


@cute.jit
def scaled_by(values: cute.Tensor, factor: Float32) -> cute.Tensor:
    """float32 values · factor, as new registers of the same shape."""
    result = cute.make_rmem_tensor(values.shape, Float32)
    for i in cutlass.range_constexpr(cute.size(values)):
        result[i] = values[i] * factor
    return result
