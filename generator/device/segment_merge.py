"""Attention over parts of the keys put together by their log-sum-exp, one warp a row (dsv4-reference §7.2).

    M = max lse_p    L = Σ e^(lse_p − M)    out = Σ e^(lse_p − M) · part_p / (L + e^(sink − M))    lse = M + ln L

A part with an lse of −∞ or +∞ has no keys: it counts nothing, whatever its values. Parts are added in their order.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device import softmax
from dsv4.generator.device.vector_io import VECTOR_ELEMENTS, to_float32


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
def load_eight(row: cute.Tensor, column: Int32) -> cute.Tensor:
    """Eight neighbouring numbers of a row (bf16 or float32) from a multiple of eight on, as float32."""
    dtype = row.element_type
    values = cute.make_rmem_tensor((VECTOR_ELEMENTS,), dtype)
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), dtype, num_bits_per_copy=128)
    count = cutlass.const_expr(128 // dtype.width)
    pieces = cute.make_tensor((row.iterator + column).align(16), cute.make_layout((count, VECTOR_ELEMENTS // count)))
    held = cute.make_tensor(values.iterator, cute.make_layout((count, VECTOR_ELEMENTS // count)))
    for piece in cutlass.range_constexpr(VECTOR_ELEMENTS // count):
        cute.copy(atom, pieces[None, piece], held[None, piece])
    if cutlass.const_expr(dtype is not Float32):
        values = to_float32(values)
    return values


@cute.jit
def merge_columns(
    parts: cute.Tensor, lses: cute.Tensor, shift: Float32, inverse: Float32, column: Int32
) -> cute.Tensor:
    """Eight columns of the merged row, float32: ``parts`` [parts, columns], weights e^(lse − M) · ``inverse``."""
    total = cute.make_rmem_tensor((VECTOR_ELEMENTS,), Float32)
    total.fill(0.0)
    for part in cutlass.range(Int32(lses.shape[0]), unroll=1):
        lse = part_lse(lses, part)
        if lse != -Float32.inf:
            weight = cute.math.exp2(lse - shift, fastmath=True) * inverse
            values = load_eight(parts[part, None], column)
            for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
                total[i] = total[i] + values[i] * weight
    return total
