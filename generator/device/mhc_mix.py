"""The mixing weights of mHC from the projections of one token: sigmoids, and the Sinkhorn normalisation."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32

from dsv4.generator.device.mhc_tiling import STREAMS
from dsv4.generator.device.softmax import LOG2_E


@cute.jit
def sigmoid(value: Float32) -> Float32:
    """1 / (1 + e^−value) with approximate exponential and reciprocal, a few 2^-23 off; 0 where e^−value overflows."""
    return cute.arch.rcp_approx(Float32(1.0) + cute.math.exp2(value * Float32(-LOG2_E), fastmath=True))


@cute.jit
def sinkhorn(logits: cute.Tensor, eps: Float32, iterations: cutlass.Constexpr[int]) -> cute.Tensor:
    """A nearly doubly stochastic 4 × 4 matrix from ``logits`` (16,), row-major, in this thread's registers.

    The softmax of the rows plus eps, then ``iterations`` column steps with the other row steps between them; a step
    divides by the sum plus eps. Only the factors of rows and columns are carried along, the matrix stays what it was:
    a row that had the factor r and has the sum r·s gets the factor r / (r·s + eps).
    """
    matrix = cute.make_rmem_tensor((STREAMS, STREAMS), Float32)
    for j in cutlass.range_constexpr(STREAMS):
        row = [logits[STREAMS * j + k] for k in range(STREAMS)]
        top = cute.arch.fmax(cute.arch.fmax(row[0], row[1]), cute.arch.fmax(row[2], row[3]))
        powers = [cute.math.exp2((value - top) * Float32(LOG2_E), fastmath=True) for value in row]
        scale = cute.arch.rcp_approx((powers[0] + powers[1]) + (powers[2] + powers[3]))
        for k in cutlass.range_constexpr(STREAMS):
            matrix[j, k] = powers[k] * scale + eps
    rows = cute.make_rmem_tensor((STREAMS,), Float32)
    columns = cute.make_rmem_tensor((STREAMS,), Float32)
    rows.fill(1.0)
    columns.fill(1.0)
    _column_step(matrix, rows, columns, eps)
    for _step in cutlass.range(iterations - 1, unroll=1):
        for j in cutlass.range_constexpr(STREAMS):
            total = (matrix[j, 0] * columns[0] + matrix[j, 1] * columns[1]) + (
                matrix[j, 2] * columns[2] + matrix[j, 3] * columns[3]
            )
            rows[j] = rows[j] * cute.arch.rcp_approx(rows[j] * total + eps)
        _column_step(matrix, rows, columns, eps)
    for j in cutlass.range_constexpr(STREAMS):
        for k in cutlass.range_constexpr(STREAMS):
            matrix[j, k] = matrix[j, k] * (rows[j] * columns[k])
    return matrix


@cute.jit
def _column_step(matrix: cute.Tensor, rows: cute.Tensor, columns: cute.Tensor, eps: Float32):
    for k in cutlass.range_constexpr(STREAMS):
        total = (matrix[0, k] * rows[0] + matrix[1, k] * rows[1]) + (matrix[2, k] * rows[2] + matrix[3, k] * rows[3])
        columns[k] = columns[k] * cute.arch.rcp_approx(columns[k] * total + eps)
