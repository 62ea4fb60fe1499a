"""float32 to E2M1 codes and back, eight codes in a 32-bit register, the first in the lowest nibble.

The magnitudes of codes 0 … 7 are 0, ½, 1, 1½, 2, 3, 4, 6; bit 3 is the sign, that of a zero included. sm_100a rounds in
hardware: ``cvt.rn.satfinite.e2m1x2.f32``, to the nearest, ties to even, ±6 beyond. sm_90a has no such instruction:
there the value is added to a number so large that float32's own rounding leaves a multiple of the step (½, 1 or 2),
and one product brings what makes the code to the top of the register. Both give the codes of
``runtime/reference/codes.encode_e2m1``, but for a NaN: E2M1 has none, it becomes a code of magnitude 6 here, and the
scale of its block says what it was. Codes are decoded by putting their bits in f16's exponent and mantissa, on either
chip.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float16, Float32, Uint32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.e8m0 import e8m0_code
from dsv4.generator.device.inline_asm import pure_asm

E2M1_MAX = 6.0
MXFP4_FLOOR = 6.0 * 2.0**-126
_SIGN_AND_EXPONENT = 0xFF800000
_MAGIC = 2.0**22 + 1.0  # an ulp is ½ here; see code_in_top


@cute.jit
def mxfp4_scale_code(amax_bits: Uint32) -> Uint32:
    """The E8M0 code of a block of MXFP4 from its amax (float32 bits): 2^⌈log2(max(amax, 6 · 2⁻¹²⁶) / 6)⌉."""
    return e8m0_code(amax_bits, MXFP4_FLOOR, E2M1_MAX)


@cute.jit
def code_in_top(value: Float32) -> Uint32:
    """Bits 28 … 31: the code of ``value``, |value| up to 6; those below are not zero.

    M = (2^22 + 1) · 2^e with e = max(⌊log2 |v|⌋, 0), and the sign of v, has an ulp of half of 2^e, the step of E2M1
    there, so M + v is M and k steps away from zero, rounded to even. The code is k + 2e and the sign. Of the sum's
    bits, one product brings k + 2 to the top nibble (2^28), twice the exponent, 149 + e, mod 16 (2^6), and the sign and
    4, the exponent's uppermost three bits (1): together the code and 16; what lies below does not carry.
    """
    power = (value.bitcast(Uint32) & Uint32(_SIGN_AND_EXPONENT)).bitcast(Float32)
    total = cute.math.fma(cute.arch.fmax(power, Float32(1.0), abs=True), Float32(_MAGIC), value)
    return total.bitcast(Uint32) * Uint32((1 << 28) + (1 << 6) + 1)


@cute.jit
def encode_e2m1x8(
    values: list[Float32], native: cutlass.Constexpr[bool], clamped: cutlass.Constexpr[bool] = False
) -> Uint32:
    """Eight float32 as E2M1 codes, clamped to ±6. ``native``: the chip has the instruction (sm_100a).

    ``clamped``: none is beyond ±6 by more than rounding.
    """
    if cutlass.const_expr(native):
        return _cvt_e2m1x8(*values)
    if cutlass.const_expr(not clamped):
        values = [cute.arch.fmin(value, Float32(E2M1_MAX), abs=True) for value in values]
    packed = code_in_top(values[7]) >> Uint32(28)
    for i in cutlass.range_constexpr(7):
        packed = packed << Uint32(4) | code_in_top(values[6 - i]) >> Uint32(28)  # one funnel shift
    return packed


@dsl_user_op
def _cvt_e2m1x8(
    a: Float32, b: Float32, c: Float32, d: Float32, e: Float32, f: Float32, g: Float32, h: Float32, *, loc=None, ip=None
) -> Uint32:
    text = "{\n\t.reg .b8 b0, b1, b2, b3;\n\t"
    for i in range(4):
        text += f"cvt.rn.satfinite.e2m1x2.f32 b{i}, ${2 * i + 2}, ${2 * i + 1};\n\t"
    text += "mov.b32 $0, {b0, b1, b2, b3};\n\t}"
    operands = [Float32(value).ir_value(loc=loc, ip=ip) for value in (a, b, c, d, e, f, g, h)]
    return Uint32(pure_asm(T.i32(), operands, text, "=r" + ",f" * 8, loc, ip))


@cute.jit
def encode_fragment(
    values: cute.Tensor, native: cutlass.Constexpr[bool], clamped: cutlass.Constexpr[bool] = False
) -> cute.Tensor:
    """float32 fragment (a multiple of 8 elements), scaled already, as E2M1 codes: a fragment of 32-bit registers.

    ``native`` and ``clamped`` as in :func:`encode_e2m1x8`.
    """
    codes = cute.make_rmem_tensor((cute.size(values) // 8,), Uint32)
    for i in cutlass.range_constexpr(cute.size(codes)):
        codes[i] = encode_e2m1x8([values[8 * i + k] for k in range(8)], native, clamped)
    return codes


@cute.jit
def decode_fragment(codes: cute.Tensor) -> cute.Tensor:
    """A fragment of 32-bit registers of E2M1 codes as float32, eight times as many.

    Magnitude bits at 9 … 11 of an f16 are the value · 2^-14, ½ as the subnormal that it is. Codes i and i + 4 of a
    register share an f16x2.
    """
    values = cute.make_rmem_tensor((8 * cute.size(codes),), Float32)
    pairs = cute.make_rmem_tensor((4,), Uint32)  # not one by one: a mode of size 1 has stride 0, recast too
    halves = cute.recast_tensor(pairs, Float16)
    for i in cutlass.range_constexpr(cute.size(codes)):
        for k in cutlass.range_constexpr(4):
            sign = codes[i] << Uint32(12 - 4 * k) & Uint32(0x80008000)
            magnitude = codes[i] << Uint32(9 - 4 * k) if k < 3 else codes[i] >> Uint32(3)
            pairs[k] = sign | magnitude & Uint32(0x0E000E00)
            values[8 * i + k] = halves[2 * k].to(Float32) * Float32(2.0**14)
            values[8 * i + k + 4] = halves[2 * k + 1].to(Float32) * Float32(2.0**14)
    return values
