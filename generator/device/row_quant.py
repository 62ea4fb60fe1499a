"""Rows in float32 fragments, spread over lanes as in ``vector_io``, as codes with one E8M0 scale for each block.

A vector is 8 columns, so a block of 32, 64 or 128 columns is the vectors of 4, 8 or 16 neighbouring lanes: its amax is
this lane's, then that many lanes' by shuffles. All lanes of a warp have to take part. Every function works on one
vector of each lane, float32 (8,), and returns this lane's codes and the block's E8M0 code.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Uint32

from dsv4.generator.device import fp4_codes, fp8_codes
from dsv4.generator.device.e8m0 import (
    amax_bits_f32,
    amax_bits_over_lanes,
    amax_f32,
    e8m0_code,
    e8m0_reciprocal,
    max_u16x2,
    permute_bytes,
    power_of_two_order,
)
from dsv4.generator.device.fragments import scaled_by


@cute.jit
def quantize_fp8(
    values: cute.Tensor, block_lanes: cutlass.Constexpr[int], floor: cutlass.Constexpr[float] = fp8_codes.FP8_FLOOR
) -> tuple[cute.Tensor, Uint32]:
    """Eight E4M3 codes, two 32-bit registers, and the E8M0 code of a block of ``block_lanes`` vectors.

    ``floor``: the least amax that a block counts with.
    """
    amax = amax_bits_over_lanes(amax_bits_f32(values), block_lanes)
    scale = e8m0_code(amax, floor, fp8_codes.E4M3_MAX)
    return fp8_codes.encode_fragment(scaled_by(values, e8m0_reciprocal(scale))), scale


@cute.jit
def quantize_mxfp4(values: cute.Tensor, native: cutlass.Constexpr[bool]) -> tuple[cute.Tensor, Uint32]:
    """Eight E2M1 codes, one 32-bit register, and the E8M0 code of their block of 32. ``native``: see ``fp4_codes``."""
    scale = fp4_codes.mxfp4_scale_code(amax_bits_over_lanes(amax_bits_f32(values), 4))
    return fp4_codes.encode_fragment(scaled_by(values, e8m0_reciprocal(scale)), native), scale


@cute.jit
def quantize_sums_fp8(
    sums: cute.Tensor,
    factors: tuple[Float32, Float32],
    norm: cutlass.Constexpr[float],
    lanes: cutlass.Constexpr[int],
) -> tuple[list[cute.Tensor], Uint32]:
    """What ``hadamard_sums`` leaves as E4M3: each four columns' codes, a 32-bit register, and the row's E8M0 code.

    ``norm``: the factors' magnitude. Registers in the order of columns, 4 · ``lanes`` of them apart.
    """
    amax = amax_bits_over_lanes(amax_bits_f32(sums), lanes).bitcast(Float32) * Float32(norm)
    scale = fp8_codes.fp8_scale_code(amax.bitcast(Uint32))
    inverse = e8m0_reciprocal(scale)  # a power of two: the product with a factor is exact
    both = [factor * inverse for factor in factors]
    fours = [(four(sums, j), both[j % 2]) for j in range(cute.size(sums) // 4)]
    return [fp8_codes.encode_fragment(scaled_by(values, factor)) for values, factor in fours], scale


@cute.jit
def quantize_sums_mxfp4(
    sums: cute.Tensor,
    factors: tuple[Float32, Float32],
    norm: cutlass.Constexpr[float],
    lane: cutlass.Int32,
    native: cutlass.Constexpr[bool],
) -> tuple[list[cute.Tensor], cute.Tensor]:
    """What ``hadamard_sums`` leaves of 128 columns over 8 lanes as MXFP4, and its four E8M0 codes in one register.

    Codes: one register of columns c … c + 7 and one of c + 64 … c + 71, with c = 8 · (lane // 2) + 32 · (lane % 2).
    A block has four columns in each of its 8 lanes. ``norm``: the factors' magnitude; ``native``: see ``fp4_codes``.
    """
    fours = [four(sums, j) for j in range(4)]
    orders = [mxfp4_order(values, norm) for values in fours]
    pairs = [orders[j] | orders[j + 1] << Uint32(16) for j in (0, 2)]
    for k in cutlass.range_constexpr(3):
        pairs = [max_u16x2(pair, cute.arch.shuffle_sync_bfly(pair, offset=1 << k)) for pair in pairs]
    scale = permute_bytes(pairs[0], pairs[1], Uint32(0x6420))  # the four lower bytes
    scaled = cute.make_rmem_tensor((16,), Float32)
    for j in cutlass.range_constexpr(4):
        # Of code 255 the scale says that the codes mean nothing, whatever is made of them here.
        inverse = (Uint32(254) - (scale >> Uint32(8 * j) & Uint32(0xFF)) << Uint32(23)).bitcast(Float32)
        values = scaled_by(fours[j], factors[j % 2] * inverse)
        for i in cutlass.range_constexpr(4):
            scaled[4 * j + i] = values[i]
    # Only a block with a NaN has numbers beyond its scale: infinities.
    if cutlass.const_expr(not native):
        _clamp_if(scaled, (pairs[0] | pairs[1]) & Uint32(0x01000100))
    a, b = [fp4_codes.encode_e2m1x8([scaled[first + i] for i in range(8)], native, clamped=True) for first in (0, 8)]
    # Two bytes of each block: an even lane takes its neighbour's of blocks 0 and 2, an odd one those of 1 and 3.
    even = lane % 2 == 0
    other = permute_bytes(a, b, Uint32(0x7632) if even else Uint32(0x5410))
    other = cute.arch.shuffle_sync_bfly(other, offset=1)
    low = permute_bytes(a, other, Uint32(0x5410) if even else Uint32(0x3254))
    high = permute_bytes(b, other, Uint32(0x7610) if even else Uint32(0x3276))
    return [in_register(low), in_register(high)], in_register(scale)


@cute.jit
def _clamp_if(values: cute.Tensor, wanted: Uint32) -> None:
    """Clamp a fragment to ±6, NaN as well, where ``wanted`` is not zero."""
    if wanted != 0:
        for i in cutlass.range_constexpr(cute.size(values)):
            values[i] = cute.arch.fmin(values[i], Float32(fp4_codes.E2M1_MAX), abs=True)


@cute.jit
def mxfp4_order(sums: cute.Tensor, norm: cutlass.Constexpr[float]) -> Uint32:
    """The E8M0 code of a block of ``sums`` · ``norm``, but 256, larger than all others, where one is NaN."""
    amax = abs(amax_f32(sums)) * Float32(norm)
    floored = cute.arch.fmax(amax, Float32(fp4_codes.MXFP4_FLOOR), nan=True)
    return power_of_two_order(floored * Float32(1.0 / fp4_codes.E2M1_MAX))


@cute.jit
def in_register(word: Uint32) -> cute.Tensor:
    """A fragment of one element."""
    result = cute.make_rmem_tensor((1,), Uint32)
    result[0] = word
    return result


@cute.jit
def four(values: cute.Tensor, number: cutlass.Constexpr[int]) -> cute.Tensor:
    """Elements 4 · number … 4 · number + 3 of a fragment, as new registers."""
    result = cute.make_rmem_tensor((4,), values.element_type)
    for i in cutlass.range_constexpr(4):
        result[i] = values[4 * number + i]
    return result
