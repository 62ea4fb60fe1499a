"""The rotation of a row's last 64 columns (RoPE), on rows that ``vector_io`` spreads over ``lanes`` threads.

Pairs are interleaved: columns 2i and 2i + 1 of the rotary part are a complex number, multiplied by cos + i·sin of the
pair's angle, or by the conjugate (dsv4-reference §3.4, §3.5). A table row is 64 floats: 32 cosines, then 32 sines.

A rotary part of 64 columns is 8 vectors of 8 columns. Where ``lanes`` is a multiple of 8 and the row a multiple of
``8 * lanes`` columns, these are the *last* vector of the *last 8* lanes: each holds four whole pairs, nobody else any.
That holds for 512 columns over 8 … 64 lanes and for 128 columns over 8 or 16.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32

from dsv4.generator.device.vector_io import to_float32

ROTARY_COLUMNS = 64
ROTARY_LANES = 8
PAIRS_PER_LANE = 4


@cute.jit
def is_rotary_lane(lanes: cutlass.Constexpr[int], lane: cutlass.Int32) -> cutlass.Boolean:
    """Whether this thread's last vector belongs to the rotary part."""
    return lane >= lanes - ROTARY_LANES


@cute.jit
def load_cos_sin(table: cute.Tensor, lanes: cutlass.Constexpr[int], lane: cutlass.Int32) -> cute.Tensor:
    """Cosines and sines of this lane's four pairs, float32 of shape ``(4, 2)``, in two 16-byte loads.

    ``table``: one row of the cos ‖ sin table, float32 [64], aligned to 16 bytes. Lanes without a rotary vector load
    nothing, and what they get back is not set.
    """
    halves = cute.make_tensor(
        table.iterator,
        cute.make_layout(((PAIRS_PER_LANE, 2), ROTARY_LANES), stride=((1, ROTARY_COLUMNS // 2), PAIRS_PER_LANE)),
    )
    found = cute.make_rmem_tensor((PAIRS_PER_LANE, 2), Float32)
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Float32, num_bits_per_copy=128)
    if is_rotary_lane(lanes, lane):
        cute.copy(atom, halves[(None, None), lane - (lanes - ROTARY_LANES)], found)
    return found


@cute.jit
def rotate_pairs(values: cute.Tensor, cos_sin: cute.Tensor, inverse: cutlass.Constexpr[bool]) -> None:
    """Turn four pairs in place. ``values``: float32 (8,); ``cos_sin``: from :func:`load_cos_sin`."""
    for i in cutlass.range_constexpr(PAIRS_PER_LANE):
        even, odd = values[2 * i], values[2 * i + 1]
        cos, sin = cos_sin[i, 0], cos_sin[i, 1]
        if cutlass.const_expr(inverse):
            sin = -sin
        values[2 * i] = even * cos - odd * sin
        values[2 * i + 1] = even * sin + odd * cos


@cute.jit
def rotate_row(
    values: cute.Tensor,
    cos_sin: cute.Tensor,
    lanes: cutlass.Constexpr[int],
    lane: cutlass.Int32,
    inverse: cutlass.Constexpr[bool] = False,
) -> None:
    """Turn the last 64 columns of a row in place. ``values``: this lane's part of the row, float32 ``(8, vectors)``."""
    if is_rotary_lane(lanes, lane):
        rotate_pairs(values[None, cute.size(values, mode=[1]) - 1], cos_sin, inverse)


@cute.jit
def rotate_bf16_row(
    row: cute.Tensor,
    cos_sin: cute.Tensor,
    lanes: cutlass.Constexpr[int],
    lane: cutlass.Int32,
    inverse: cutlass.Constexpr[bool] = False,
) -> None:
    """Turn the last 64 columns of a row of bf16 ``(8, vectors)`` in place, rounding once; the others stay."""
    if is_rotary_lane(lanes, lane):
        last = row[None, cute.size(row, mode=[1]) - 1]
        values = to_float32(last)
        rotate_pairs(values, cos_sin, inverse)
        last.store(values.load().to(BFloat16))
