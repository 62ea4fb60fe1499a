"""2^x by additions and multiplications: for some of a row's exponentials, where the unit for them takes longest.

An SM has 16 exponentials a cycle and 128 multiplications. x is split into ⌊x⌋ and what is left, 0 ≤ f < 1; 2^f is a
polynomial that is 1 at 0, off by at most 3.0e-6 of its value, and ⌊x⌋ is added to its exponent. For x ≤ 0:

* 2^0 is exactly 1, and whatever lies below 2^−126 is smaller than 2^−126; −∞ gives exactly 0;
* a NaN stays one.
"""

from __future__ import annotations

from cutlass import Float32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.inline_asm import pure_asm

POLYNOMIAL = ("0f3C5BFB98", "0f3D55FC34", "0f3E771228", "0f3F316B63", "0f3F800000")
"""Of f⁴ … 1: 0.0134266838, 0.0522424728, 0.241280198, 0.693044841, 1; by Lawson's iteration for the relative error."""
LOWEST = "0fC2FE0000"
"""−127: 2^−127 has the bits of 0 here."""
INTEGER = "0f4B400000"
"""1.5 · 2^23: added to a float32 that is small enough, it leaves the integer in the low bits of the sum."""
MANTISSA_BITS = 23


@dsl_user_op
def exp2_emulated(x: Float32, *, loc=None, ip=None) -> Float32:
    """2^x of a number that is not above 0 (but by rounding).

    Not two at a time: the constants of packed operations take registers, and the softmax has none to spare.
    """
    steps = "".join(f"fma.rn.f32 power, power, rest, {each};\n\t" for each in POLYNOMIAL[1:])
    text = (
        "{\n\t.reg .f32 x, shifted, rest, power;\n\t.reg .b32 whole, bits;\n\t"
        f"max.NaN.f32 x, $1, {LOWEST};\n\t"
        f"add.rm.f32 shifted, x, {INTEGER};\n\t"
        f"sub.rn.f32 rest, shifted, {INTEGER};\n\t"
        "sub.rn.f32 rest, x, rest;\n\t"
        f"mov.b32 power, {POLYNOMIAL[0]};\n\t"
        f"{steps}"
        f"mov.b32 whole, shifted;\n\tshl.b32 whole, whole, {MANTISSA_BITS};\n\t"
        "mov.b32 bits, power;\n\tadd.u32 whole, whole, bits;\n\tmov.b32 power, whole;\n\t"
        "fma.rn.f32 $0, x, 0f00000000, power;\n\t}"  # a NaN's bits have gone into the sum
    )
    return Float32(pure_asm(T.f32(), [Float32(x).ir_value(loc=loc, ip=ip)], text, "=f,f", loc, ip))
