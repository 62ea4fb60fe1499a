"""Attention over parts of the keys put together by their log-sum-exp, one warp a row (dsv4-reference §7.2).

    M = max lse_p    L = Σ e^(lse_p − M)    out = Σ e^(lse_p − M) · part_p / (L + e^(sink − M))    lse = M + ln L

A part with an lse of −∞ or +∞ has no keys: it counts nothing, whatever its values. Parts are added in their order.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device import softmax
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS

AHEAD = 4
"""Parts of a row whose values are loaded before the first of them is used."""


@cute.jit
def part_lse(lses: cute.Tensor, part: Int32) -> Float32:
    """log2(e) · lse of a part; −∞ for one without keys."""
    value = lses[part] * softmax.LOG2_E
    return -Float32.inf if value == Float32.inf else value


@cute.jit
def merged_statistics(lses: cute.Tensor, lane: Int32) -> tuple[Float32, Float32]:
    """log2(e) · M, 0 where no part has keys, and L, over ``lses`` [parts] float32; all lanes get them."""
    top = -Float32.inf
    parts = Int32(lses.shape[0])
    for part in cutlass.range(lane, parts, 32, unroll=1):
        top = cute.arch.fmax(top, part_lse(lses, part))
    for step in cutlass.range_constexpr(5):
        top = cute.arch.fmax(top, cute.arch.shuffle_sync_bfly(top, offset=1 << step))
    shift = Float32(0.0) if top == -Float32.inf else top
    total = Float32(0.0)
    for part in cutlass.range(lane, parts, 32, unroll=1):
        total = total + cute.math.exp2(part_lse(lses, part) - shift, fastmath=True)
    for step in cutlass.range_constexpr(5):
        total = total + cute.arch.shuffle_sync_bfly(total, offset=1 << step)
    return shift, total


@cute.jit
def load_eight(row: cute.Tensor, column: Int32, held: cute.Tensor, place: cutlass.Constexpr[int]) -> None:
    """Eight neighbouring numbers of a row (bf16 or float32) from a multiple of eight on, to ``held`` [8, places]."""
    dtype = row.element_type
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), dtype, num_bits_per_copy=128)
    count = cutlass.const_expr(128 // dtype.width)
    layout = cute.make_layout((count, VECTOR_ELEMENTS // count))
    pieces = cute.make_tensor((row.iterator + column).align(16), layout)
    own = cute.make_tensor(held.iterator + place * VECTOR_ELEMENTS, layout)
    for piece in cutlass.range_constexpr(VECTOR_ELEMENTS // count):
        cute.copy(atom, pieces[None, piece], own[None, piece])


@cute.jit
def merge_columns(
    parts: cute.Tensor,
    lses: cute.Tensor,
    shift: Float32,
    inverse: Float32,
    lane: Int32,
    columns: cutlass.Constexpr[int],
) -> cute.Tensor:
    """A lane's columns of the merged row, [8, groups] float32; the weight of a part is e^(lse − M) · ``inverse``.

    A lane has the groups of eight columns lane, lane + 32 and so on. :data:`AHEAD` parts are on their way at a time. A
    part without keys is not read.
    """
    groups = cutlass.const_expr(columns // VECTOR_ELEMENTS)
    own = cutlass.const_expr((groups + 31) // 32)
    total = cute.make_rmem_tensor((VECTOR_ELEMENTS, own), Float32)
    total.fill(0.0)
    held = cute.make_rmem_tensor((VECTOR_ELEMENTS, AHEAD * own), parts.element_type)
    lse = cute.make_rmem_tensor((AHEAD,), Float32)
    count = Int32(lses.shape[0])
    for first in cutlass.range(0, count, AHEAD, unroll=1):
        for place in cutlass.range_constexpr(AHEAD):
            lse[place] = -Float32.inf
            if first + place < count:
                lse[place] = part_lse(lses, first + place)
        for place in cutlass.range_constexpr(AHEAD):
            if lse[place] != -Float32.inf:
                row = parts[first + place, None]
                for number in cutlass.range_constexpr(own):
                    group = lane + 32 * number
                    if group < groups:
                        load_eight(row, VECTOR_ELEMENTS * group, held, place * own + number)
        for place in cutlass.range_constexpr(AHEAD):
            if lse[place] != -Float32.inf:
                weight = cute.math.exp2(lse[place] - shift, fastmath=True) * inverse
                for number in cutlass.range_constexpr(own):
                    for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                        value = held[i, place * own + number].to(Float32)
                        total[i, number] = total[i, number] + value * weight
    return total
