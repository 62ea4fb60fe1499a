"""Eight values of a block as codes, given the block's amax: E4M3 or E2M1 with an E8M0 scale, E2M1 with an E4M3 scale.

The same bytes as ``runtime/reference/quantize.py``. ``amax_bits`` are float32 bits (see ``e8m0``), the same in every
lane of the block; each function returns this lane's codes as 32-bit registers and the block's scale code.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Uint32

from dsv4.generator.device import fp4_codes, fp8_codes
from dsv4.generator.device.e8m0 import (
    amax_bits_bf16,
    amax_bits_f32,
    amax_bits_over_lanes,
    e8m0_reciprocal,
)
from dsv4.generator.device.fp4_codes import E2M1_MAX
from dsv4.generator.device.fragments import scaled_by
from dsv4.generator.device.vector_io import to_float32

BLOCK = {"fp8_128": 128, "fp8_32": 32, "mxfp4": 32, "nvfp4": 16}
"""Columns that share a scale."""
VECTOR_BYTES = {"fp8_128": 8, "fp8_32": 8, "mxfp4": 4, "nvfp4": 4}
"""Bytes of the codes of 8 columns."""
AMAX_BEYOND = 4096.0
"""An amax, as a multiple of the tensor's scale, beyond the largest that a block's scale covers: 6 · 448."""
LARGEST_CODE = 0x7E
"""E4M3's 448."""


@cute.jit
def encode_vectors(
    values: cute.Tensor,
    format: cutlass.Constexpr[str],
    native: cutlass.Constexpr[bool] = False,
    outer: Float32 | None = None,
) -> tuple[cute.Tensor, list[Uint32]]:
    """This lane's vectors ``values``, bf16 or float32 (8, vectors), as codes and the scale code of each one's block.

    A vector is 8 columns, so a block is the vectors of neighbouring lanes, all of which have to take part. The codes
    are Uint32 (2, vectors) of E4M3 or (1, vectors) of E2M1. ``native``: see ``fp4_codes``; ``outer``: see
    :func:`nvfp4`.
    """
    vectors, lanes = cute.size(values, mode=[1]), BLOCK[format] // 8
    packed = cute.make_rmem_tensor((VECTOR_BYTES[format] // 4, vectors), Uint32)
    scales = []
    for v in cutlass.range_constexpr(vectors):
        if cutlass.const_expr(values.element_type is BFloat16):
            amax = amax_bits_over_lanes(amax_bits_bf16(values[None, v]), lanes)
            vector = to_float32(values[None, v])
        else:
            amax = amax_bits_over_lanes(amax_bits_f32(values[None, v]), lanes)
            vector = values[None, v]
        if cutlass.const_expr(format == "nvfp4"):
            codes, scale = nvfp4(vector, amax, outer, native)
        elif cutlass.const_expr(format == "mxfp4"):
            codes, scale = mxfp4(vector, amax, native)
        else:
            codes, scale = fp8(vector, amax)
        packed[None, v].store(codes.load())
        scales.append(scale)
    return packed, scales


@cute.jit
def decode_vector(codes: cute.Tensor, step: Float32, format: cutlass.Constexpr[str]) -> cute.Tensor:
    """One vector's codes, Uint32 (2,) or (1,), as float32 (8,): each code's value · ``step``, rounded once."""
    if cutlass.const_expr(VECTOR_BYTES[format] == 4):
        values = scaled_by(fp4_codes.decode_fragment(codes), step)
    else:
        values = scaled_by(fp8_codes.decode_fragment(codes), step)
    return values


@cute.jit
def fp8(values: cute.Tensor, amax_bits: Uint32) -> tuple[cute.Tensor, Uint32]:
    """float32 (8,) as E4M3 codes, Uint32 (2,), and the E8M0 code of the block: 2^⌈log2(max(amax, 1e-4) / 448)⌉."""
    scale = fp8_codes.fp8_scale_code(amax_bits)
    return fp8_codes.encode_fragment(scaled_by(values, e8m0_reciprocal(scale))), scale


@cute.jit
def mxfp4(values: cute.Tensor, amax_bits: Uint32, native: cutlass.Constexpr[bool]) -> tuple[cute.Tensor, Uint32]:
    """float32 (8,) as E2M1 codes, Uint32 (1,), and the E8M0 code of the block. ``native``: see ``fp4_codes``."""
    scale = fp4_codes.mxfp4_scale_code(amax_bits)
    return fp4_codes.encode_fragment(scaled_by(values, e8m0_reciprocal(scale)), native), scale


@cute.jit
def nvfp4(
    values: cute.Tensor, amax_bits: Uint32, outer: Float32, native: cutlass.Constexpr[bool]
) -> tuple[cute.Tensor, Uint32]:
    """float32 (8,) as E2M1 codes, Uint32 (1,), and the E4M3 code of the block: sf = RN_E4M3(amax / 6 / outer).

    Codes are of v / (sf · outer), all zero where sf is. ``outer``: the tensor's f32 scale, from 2^-90 to 2^90. A NaN
    in the block makes sf NaN; the codes are then those for the largest sf, of a NaN with magnitude 6.
    """
    # Above 6 · 448 · outer sf is its largest, whatever the amax: the clamp keeps infinity out of the divisions. A
    # quotient too small for them to be exact is far too small for sf.
    amax = cute.arch.fmin(amax_bits.bitcast(Float32), outer * Float32(AMAX_BEYOND), nan=True)
    sixth = quotient(amax, Float32(E2M1_MAX), Float32(1.0 / E2M1_MAX))
    scale = fp8_codes.encode_e4m3(quotient(sixth, outer, reciprocal(outer))) & Uint32(0xFF)
    step = fp8_codes.decode_e4m3x4(cutlass.min(scale, Uint32(LARGEST_CODE)))[0] * outer
    codes = fp4_codes.encode_fragment(quotients(values, step, E2M1_MAX), native, clamped=True)
    codes[0] = Uint32(0) if scale == Uint32(0) else codes[0]
    return codes, scale


@cute.jit
def quotients(values: cute.Tensor, divisor: Float32, beyond: cutlass.Constexpr[float]) -> cute.Tensor:
    """values / divisor in float32, correctly rounded; magnitudes above ``beyond`` become that, rounded, and so NaN.

    ``divisor``: from 2^-100 to 2^100; what is made of 0 is not to be used.
    """
    inverse, limit = reciprocal(divisor), divisor * Float32(beyond)
    result = cute.make_rmem_tensor(values.shape, Float32)
    for i in cutlass.range_constexpr(cute.size(values)):
        result[i] = quotient(cute.arch.fmin(values[i], limit, abs=True), divisor, inverse)
    return result


@cute.jit
def quotient(value: Float32, divisor: Float32, inverse: Float32) -> Float32:
    """value / divisor, correctly rounded, with the sign of a zero; ``inverse``: 1 / divisor, correctly rounded.

    q = v · y with y the inverse, then q − (q · divisor − v) · y, whose remainder is exact (Markstein, "Computation of
    elementary functions on the IBM RISC System/6000 processor"); 0 < divisor, and no intermediate may be beyond
    float32's normal range but for v = 0.
    """
    rough = value * inverse
    return cute.math.fma(cute.math.fma(rough, divisor, -value), -inverse, rough)


@cute.jit
def reciprocal(value: Float32) -> Float32:
    """1 / value, correctly rounded, for 2^-125 < value < 2^125: what rcp.rn does there, without its other branch."""
    rough = cute.arch.rcp_approx(value)
    return cute.math.fma(rough, cute.math.fma(-value, rough, Float32(1.0)), rough)
