"""The clamped SwiGLU of an expert on one thread's vectors, and where gate and up lie in a row that holds both.

h = silu(min(gate, limit)) · clamp(up, ±limit) (dsv4-reference §9.2). A row of 2 · width columns has the gates first and
the ups after them, or runs of 8 gates and 8 ups by turns.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device.softmax import LOG2_E
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS, to_float32, vectors_per_lane


@cute.jit
def gate_up_lane_of_part(
    gate_up: cute.Tensor,
    interleaved: cutlass.Constexpr[bool],
    columns: cutlass.Constexpr[int],
    parts: cutlass.Constexpr[int],
    lanes: cutlass.Constexpr[int],
    part: Int32,
    lane: Int32,
) -> cute.Tensor:
    """One lane's vectors of part ``part`` of the gates (0) and of the ups (1): a view (rows, 8, vectors, 2).

    ``columns``: of a part, of ``parts``, spread over ``lanes`` as in ``packed_rows``.
    """
    run = 2 * VECTOR_ELEMENTS if interleaved else VECTOR_ELEMENTS  # from a vector to the next
    to_up = VECTOR_ELEMENTS if interleaved else columns * parts
    layout = cute.make_layout(
        (gate_up.shape[0], parts, (VECTOR_ELEMENTS, vectors_per_lane(columns, lanes)), 2, lanes),
        stride=(gate_up.stride[0], columns * run // VECTOR_ELEMENTS, (1, run * lanes), to_up, run),
    )
    return cute.make_tensor(gate_up.iterator, layout)[None, part, (None, None), None, lane]


@cute.jit
def swiglu(gate: cute.Tensor, up: cute.Tensor, limit: Float32) -> cute.Tensor:
    """silu(min(gate, limit)) · clamp(up, ±limit) in float32: bf16 fragments, a float32 fragment of the same shape.

    sigmoid(g) = 1 / (1 + 2^(−g · log2 e)) by ``ex2.approx`` and ``rcp.approx``: off by less than (8 + 2 |g|) · 2^-24
    relative for g ≥ −87; below, where the power overflows, it is 0. NaN stays NaN in either.
    """
    g, u = to_float32(gate), to_float32(up)
    result = cute.make_rmem_tensor(gate.shape, Float32)
    for i in cutlass.range_constexpr(cute.size(gate)):
        low = cute.arch.fmin(g[i], limit, nan=True)
        wide = cute.arch.fmin(cute.arch.fmax(u[i], -limit, nan=True), limit, nan=True)
        power = cute.math.exp2(low * Float32(-LOG2_E), fastmath=True)
        result[i] = low * cute.arch.rcp_approx(Float32(1.0) + power) * wide
    return result
