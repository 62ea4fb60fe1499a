"""float32 to E4M3 codes and back, four codes in a 32-bit register, the first in the lowest byte.

Both chips have the conversions in hardware: ``cvt.rn.satfinite.e4m3x2.f32`` rounds two values to the nearest, ties to
even, with ±448 for what lies beyond and 0x7F for a NaN of either sign; ``cvt.rn.f16x2.e4m3x2`` gives two codes back as
f16, exactly. Byte for byte that is torch's cast to ``float8_e4m3fn`` after a clamp to ±448, but for the sign of a NaN.
The scales are those of ``e8m0``.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.e8m0 import e8m0_code
from dsv4.generator.device.inline_asm import pure_asm

E4M3_MAX = 448.0
FP8_FLOOR = 1e-4
"""The least amax that a block counts with, in the official code."""


@cute.jit
def fp8_scale_code(amax_bits: Uint32) -> Uint32:
    """The E8M0 code of a block of E4M3 from its amax (float32 bits): 2^⌈log2(max(amax, 1e-4) / 448)⌉."""
    return e8m0_code(amax_bits, FP8_FLOOR, E4M3_MAX)


@dsl_user_op
def encode_e4m3x4(a: Float32, b: Float32, c: Float32, d: Float32, *, loc=None, ip=None) -> Uint32:
    """Four float32 as E4M3 codes, ``a`` in the lowest byte: rounded to the nearest even code, clamped to ±448."""
    text = (
        "{\n\t.reg .b16 low, high;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;\n\t"
        "mov.b32 $0, {low, high};\n\t}"
    )
    operands = [Float32(value).ir_value(loc=loc, ip=ip) for value in (a, b, c, d)]
    return Uint32(pure_asm(T.i32(), operands, text, "=r,f,f,f,f", loc, ip))


@dsl_user_op
def encode_e4m3(value: Float32, *, loc=None, ip=None) -> Uint32:
    """The E4M3 code of one float32, by the same rule."""
    text = (
        "{\n\t.reg .b16 code;\n\t.reg .f32 zero;\n\tmov.f32 zero, 0f00000000;\n\t"
        "cvt.rn.satfinite.e4m3x2.f32 code, zero, $1;\n\tcvt.u32.u16 $0, code;\n\t}"
    )
    return Uint32(pure_asm(T.i32(), [Float32(value).ir_value(loc=loc, ip=ip)], text, "=r,f", loc, ip))


@dsl_user_op
def decode_e4m3x4(codes: Uint32, *, loc=None, ip=None) -> tuple[Float32, Float32, Float32, Float32]:
    """The values of four E4M3 codes as float32, that of the lowest byte first."""
    text = (
        "{\n\t.reg .b16 low, high, h0, h1, h2, h3;\n\t.reg .b32 pair0, pair1;\n\t"
        "mov.b32 {low, high}, $4;\n\t"
        "cvt.rn.f16x2.e4m3x2 pair0, low;\n\t"
        "cvt.rn.f16x2.e4m3x2 pair1, high;\n\t"
        "mov.b32 {h0, h1}, pair0;\n\t"
        "mov.b32 {h2, h3}, pair1;\n\t"
        "cvt.f32.f16 $0, h0;\n\tcvt.f32.f16 $1, h1;\n\tcvt.f32.f16 $2, h2;\n\tcvt.f32.f16 $3, h3;\n\t}"
    )
    four = ir.Type.parse("!llvm.struct<(f32, f32, f32, f32)>")
    result = pure_asm(four, [Uint32(codes).ir_value(loc=loc, ip=ip)], text, "=f,=f,=f,=f,r", loc, ip)
    return tuple(Float32(llvm.extractvalue(T.f32(), result, [i], loc=loc, ip=ip)) for i in range(4))


@cute.jit
def encode_fragment(values: cute.Tensor) -> cute.Tensor:
    """float32 fragment (a multiple of 4 elements), scaled already, as E4M3 codes: a fragment of 32-bit registers."""
    codes = cute.make_rmem_tensor((cute.size(values) // 4,), Uint32)
    for i in cutlass.range_constexpr(cute.size(codes)):
        codes[i] = encode_e4m3x4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3])
    return codes


@cute.jit
def decode_fragment(codes: cute.Tensor) -> cute.Tensor:
    """A fragment of 32-bit registers of E4M3 codes as float32, four times as many."""
    values = cute.make_rmem_tensor((4 * cute.size(codes),), Float32)
    for i in cutlass.range_constexpr(cute.size(codes)):
        values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3] = decode_e4m3x4(codes[i])
    return values
