"""The mixing weights of mHC from the projections of one token: sigmoids, and the Sinkhorn normalisation."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device.mhc_tiling import STREAMS
from dsv4.generator.device.softmax import LOG2_E

TOGETHER = (32 - STREAMS) << 8 | 31
"""Operand of shuffles that stay among aligned groups of four lanes."""


@cute.jit
def sigmoid(value: Float32) -> Float32:
    """1 / (1 + e^−value) with approximate exponential and reciprocal, a few 2^-23 off; 0 where e^−value overflows."""
    return cute.arch.rcp_approx(Float32(1.0) + cute.math.exp2(value * Float32(-LOG2_E), fastmath=True))


@cute.jit
def sinkhorn(logits: cute.Tensor, lane: Int32, eps: Float32, iterations: cutlass.Constexpr[int]) -> cute.Tensor:
    """Row ``lane % 4`` of a nearly doubly stochastic 4 × 4 matrix from ``logits`` (16,), row-major; float32 (4,).

    Four lanes work on a matrix, each on a row and a column of it: a step is a shuffle, four multiply-adds and one
    reciprocal, and what would be four reciprocals one after the other for one lane is the same instruction for four.
    All lanes of the warp have to call it.

    The softmax of the rows plus eps, then ``iterations`` column steps with the other row steps between them; a step
    divides by the sum plus eps. Only the factors of rows and columns are carried along, the matrix stays what it was:
    a row that had the factor r and has the sum r·s gets the factor r / (r·s + eps).
    """
    own = lane % STREAMS
    row = cute.make_rmem_tensor((STREAMS,), Float32)
    cute.autovec_copy(cute.make_tensor(logits.iterator + cute.assume(STREAMS * own, divby=STREAMS), STREAMS), row)
    column = [logits[STREAMS * j + own] for j in range(STREAMS)]
    top = cute.arch.fmax(cute.arch.fmax(row[0], row[1]), cute.arch.fmax(row[2], row[3]))
    powers = [cute.math.exp2((row[k] - top) * Float32(LOG2_E), fastmath=True) for k in range(STREAMS)]
    scale = cute.arch.rcp_approx((powers[0] + powers[1]) + (powers[2] + powers[3]))
    tops, scales = _of_all(top), _of_all(scale)
    for j in cutlass.range_constexpr(STREAMS):
        row[j] = powers[j] * scale + eps
        column[j] = cute.math.exp2((column[j] - tops[j]) * Float32(LOG2_E), fastmath=True) * scales[j] + eps
    row_factor = Float32(1.0)
    column_factor = _step(column, [Float32(1.0)] * STREAMS, Float32(1.0), eps)
    for _step_number in cutlass.range(iterations - 1, unroll=1):
        row_factor = _step([row[k] for k in range(STREAMS)], _of_all(column_factor), row_factor, eps)
        column_factor = _step(column, _of_all(row_factor), column_factor, eps)
    columns = _of_all(column_factor)
    for k in cutlass.range_constexpr(STREAMS):
        row[k] = row[k] * (row_factor * columns[k])
    return row


@cute.jit
def _of_all(value: Float32):
    """The value of each of the four lanes that work together."""
    return [cute.arch.shuffle_sync(value, j, mask_and_clamp=TOGETHER) for j in range(STREAMS)]


@cute.jit
def _step(line, others, factor: Float32, eps: Float32) -> Float32:
    """The next factor of a row or column ``line`` whose elements have the factors ``others`` as well."""
    total = (line[0] * others[0] + line[1] * others[1]) + (line[2] * others[2] + line[3] * others[3])
    return factor * cute.arch.rcp_approx(factor * total + eps)
