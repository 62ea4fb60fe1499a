"""Power-of-two scales of blocks: the largest magnitude as float32 bits, and the E8M0 code that follows from it.

Magnitudes are compared as unsigned integers, whose order is that of non-negative floats with NaN above infinity: so a
NaN reaches the scale as it does in ``runtime/reference/quantize.py``. A block with a NaN gets code 0 (2^-127; the
exponent overflows the byte), one with an infinity code 255 (NaN, as all its E4M3 codes then are). All of it is integer
arithmetic on either chip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Uint32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.inline_asm import pure_asm

MAGNITUDE = 0x7FFFFFFF
NAN_CODE = 255
_NAN = 0x7FC00000
Number = TypeVar("Number", Uint32, Float32)


@dsl_user_op
def max_u16x2(a: Uint32, b: Uint32, *, loc=None, ip=None) -> Uint32:
    """The larger of each 16-bit half, unsigned (``max.u16x2``, one instruction from sm_90 on)."""
    operands = [Uint32(a).ir_value(loc=loc, ip=ip), Uint32(b).ir_value(loc=loc, ip=ip)]
    return Uint32(pure_asm(T.i32(), operands, "max.u16x2 $0, $1, $2;", "=r,r,r", loc, ip))


@dsl_user_op
def permute_bytes(a: Uint32, b: Uint32, selector: Uint32, *, loc=None, ip=None) -> Uint32:
    """Byte i of the result is the one that nibble i of ``selector`` names: 0 … 3 of ``a``, 4 … 7 of ``b``."""
    operands = [Uint32(value).ir_value(loc=loc, ip=ip) for value in (a, b, selector)]
    return Uint32(pure_asm(T.i32(), operands, "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", loc, ip))


def tree_max(terms: list[Number], larger: Callable[[Number, Number], Number]) -> Number:
    """The largest of ``terms`` by halves: the longest chain of comparisons is log2 of their number."""
    while len(terms) > 1:
        pairs = [larger(terms[i], terms[i + 1]) for i in range(0, len(terms) - 1, 2)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]


@cute.jit
def amax_bits_bf16(fragment: cute.Tensor) -> Uint32:
    """The largest |v| of a fragment of bf16 (an even number of elements) as float32 bits."""
    pairs = cute.recast_tensor(fragment, Uint32)
    largest = [pairs[i] & Uint32(0x7FFF7FFF) for i in range(cute.size(pairs))]
    both = tree_max(largest, max_u16x2)
    return cutlass.max(both & Uint32(0xFFFF0000), both << Uint32(16))


@cute.jit
def amax_bits_f32(fragment: cute.Tensor) -> Uint32:
    """The largest |v| of a fragment of float32 as float32 bits; those of some NaN where there is one."""
    return amax_f32(fragment).bitcast(Uint32) & Uint32(MAGNITUDE)


@cute.jit
def amax_f32(fragment: cute.Tensor) -> Float32:
    """The same as a number with some sign."""
    return tree_max([fragment[i] for i in range(cute.size(fragment))], larger_magnitude)


@cute.jit
def larger_magnitude(a: Float32, b: Float32) -> Float32:
    """The larger of |a| and |b|, or NaN, with some sign: one instruction, where integers take three."""
    return cute.arch.fmax(a, b, abs=True, nan=True)


@cute.jit
def amax_bits_over_lanes(bits: Uint32, lanes: cutlass.Constexpr[int]) -> Uint32:
    """The largest over the aligned group of ``lanes`` (a power of two up to 32) lanes, in every one of them."""
    for step in cutlass.range_constexpr(lanes.bit_length() - 1):
        bits = cutlass.max(bits, cute.arch.shuffle_sync_bfly(bits, offset=1 << step))
    return bits


@cute.jit
def power_of_two_ceil(value: Float32) -> Uint32:
    """2^⌈log2 value⌉ as an E8M0 code, for float32 > 0 that is normal, infinite or NaN: exponent + (mantissa ≠ 0)."""
    return power_of_two_order(value) & Uint32(0xFF)


@cute.jit
def power_of_two_order(value: Float32) -> Uint32:
    """The same, but 256 for NaN (whose code is 0): larger than all others."""
    return (value.bitcast(Uint32) + Uint32(0x7FFFFF)) >> Uint32(23)


@cute.jit
def e8m0_code(amax_bits: Uint32, floor: cutlass.Constexpr[float], largest: cutlass.Constexpr[float]) -> Uint32:
    """The E8M0 code of a block: 2^⌈log2(max(amax, floor) · (1 / largest))⌉, the product rounded to float32.

    ``floor`` and ``largest`` are rounded to float32 as the reference's are (dsv4-reference §4.2, §6.3).
    """
    amax = cutlass.max(amax_bits, Float32(floor).bitcast(Uint32)).bitcast(Float32)
    return power_of_two_ceil(amax * Float32(1.0 / largest))


@cute.jit
def e8m0_reciprocal(code: Uint32) -> Float32:
    """1 / scale, exactly, for codes 0 … 253, and NaN for 255; v · it is then v / scale, rounded once, whatever v is."""
    bits = (Uint32(254) - code) << Uint32(23)
    return (Uint32(_NAN) if code == Uint32(NAN_CODE) else bits).bitcast(Float32)


@cute.jit
def e8m0_value(code: Uint32) -> Float32:
    """The scale itself: 2^(code − 127), of which code 0 is subnormal; NaN for 255."""
    bits = code << Uint32(23)
    bits = Uint32(0x00400000) if code == Uint32(0) else bits
    return (Uint32(_NAN) if code == Uint32(NAN_CODE) else bits).bitcast(Float32)


@cute.jit
def pack_bytes(codes: list[Uint32]) -> Uint32:
    """Up to four codes (0 … 255) in one register, the first in the lowest byte."""
    packed = codes[0]
    for i in cutlass.range_constexpr(1, len(codes)):
        packed = packed | codes[i] << Uint32(8 * i)
    return packed
