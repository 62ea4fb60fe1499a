"""The normalised Walsh–Hadamard transform of a row that ``vector_io`` spreads over lanes of one warp.

``hadamard_row`` leaves the row spread as it was, for one shuffle an element and lane bit. ``hadamard_sums`` halves the
shuffles, leaves the row spread otherwise and its numbers to be multiplied by factors that its reader has use for.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Uint32

from dsv4.generator.device.vector_io import VECTOR_ELEMENTS


@cute.jit
def hadamard_row(values: cute.Tensor, lanes: cutlass.Constexpr[int], lane: cutlass.Int32) -> None:
    """y = H x · D^(−½) in place, Sylvester order (dsv4-reference §6.2), D = 8 · lanes · vectors columns.

    ``values``: this lane's part of the row, float32 ``(8, vectors)``; ``lanes`` and ``vectors`` powers of two, at most
    32 lanes, a row's lanes aligned in their warp, all lanes of the warp taking part. log2(D) rounds of butterflies: the
    distances 1, 2, 4 lie in a lane's vector, the next ones between lanes (one shuffle an element), the rest between
    vectors. The rounds are those of the float32 reference in the same order, so the sums round alike.
    """
    vectors = cute.size(values, mode=[1])
    for distance in cutlass.range_constexpr(VECTOR_ELEMENTS.bit_length() - 1):
        for v in cutlass.range_constexpr(vectors):
            for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                if cutlass.const_expr(not i & 1 << distance):
                    _butterfly(values, (i, v), (i | 1 << distance, v))
    for distance in cutlass.range_constexpr(lanes.bit_length() - 1):
        # low + high where the lane's bit is 0, low − high where it is 1: there the own value is the high one.
        sign = Float32(1.0)
        if lane & 1 << distance != 0:
            sign = Float32(-1.0)
        for v in cutlass.range_constexpr(vectors):
            for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                other = cute.arch.shuffle_sync_bfly(values[i, v], offset=1 << distance)
                values[i, v] = other + sign * values[i, v]
    for distance in cutlass.range_constexpr(vectors.bit_length() - 1):
        for v in cutlass.range_constexpr(vectors):
            if cutlass.const_expr(not v & 1 << distance):
                for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                    _butterfly(values, (i, v), (i, v | 1 << distance))
    norm = (VECTOR_ELEMENTS * lanes * vectors) ** -0.5
    for v in cutlass.range_constexpr(vectors):
        for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
            values[i, v] = values[i, v] * Float32(norm)


@cute.jit
def hadamard_sums(values: cute.Tensor, lanes: cutlass.Constexpr[int], lane: cutlass.Int32) -> tuple[Float32, Float32]:
    """Unscaled sums of the transform of D = 8 · lanes · vectors columns in place, and the factors of both halves.

    ``values`` as in :func:`hadamard_row`. Afterwards ``values[i + 4 h, v]``, i < 4, times factor h (±D^(−½)) is column
    i + 4 · (lane + lanes · (h + 2 v)). The rounds, their order and so their rounding are those of ``hadamard_row``.

    Between lanes a and b = a + 2^k, each with a pair of numbers (u, v) that the round before has still to add and
    subtract, a keeps u + v and sends u − v, b keeps u − v and sends u + v: half of the numbers are sent. Then a has
    both sums and b both differences, the pairs of the next round. b has them the wrong way round: not exchanged, they
    change the sign of the lane's next differences, which its partner's signs make common to all that either keeps.
    """
    vectors = cute.size(values, mode=[1])
    lane_bits = lanes.bit_length() - 1
    bits = [Uint32(lane) << Uint32(31 - k) for k in range(lane_bits)]  # bit k of the lane where float32 has its sign
    for distance in cutlass.range_constexpr(2):
        for v in cutlass.range_constexpr(vectors):
            for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                if cutlass.const_expr(not i & 1 << distance):
                    _butterfly(values, (i, v), (i | 1 << distance, v))
    for k in cutlass.range_constexpr(lane_bits):
        sign = _signed(1.0, bits[k])
        for v in cutlass.range_constexpr(vectors):
            for i in cutlass.range_constexpr(4):
                low, high = values[i, v], values[i + 4, v]
                values[i, v] = low + sign * high
                values[i + 4, v] = cute.arch.shuffle_sync_bfly(low - sign * high, offset=1 << k)
    for v in cutlass.range_constexpr(vectors):
        for i in cutlass.range_constexpr(4):
            _butterfly(values, (i, v), (i + 4, v))
    for distance in cutlass.range_constexpr(vectors.bit_length() - 1):
        for v in cutlass.range_constexpr(vectors):
            if cutlass.const_expr(not v & 1 << distance):
                for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                    _butterfly(values, (i, v), (i, v | 1 << distance))
    changed = Uint32(0)
    for k in cutlass.range_constexpr(lane_bits - 1):
        changed = changed ^ bits[k] & bits[k + 1]
    norm = (VECTOR_ELEMENTS * lanes * vectors) ** -0.5
    return _signed(norm, changed), _signed(norm, changed ^ bits[lane_bits - 1])


@cute.jit
def _signed(magnitude: cutlass.Constexpr[float], sign: Uint32) -> Float32:
    """± ``magnitude``, negative where the uppermost bit of ``sign`` is set."""
    return (Float32(magnitude).bitcast(Uint32) | sign & Uint32(0x80000000)).bitcast(Float32)


@cute.jit
def _butterfly(values: cute.Tensor, low: cutlass.Constexpr[tuple], high: cutlass.Constexpr[tuple]) -> None:
    a, b = values[low], values[high]
    values[low] = a + b
    values[high] = a - b
