"""The last of three terms of a float32 weight in one byte: what the first two, both bf16, leave over.

The first term is the weight rounded to bf16, 2^E its power of two and u = 2^(E − 23). Usually u is the unit of the
weight's last bit. The second term leaves at most half of its own last bit, 64 u; it is taken of the rest less 32 u, so
that what is left lies in −32 u … 96 u, a multiple of u. Where rounding carried the first term to the next power of two
the weight's last bit is u / 2 and the rest half as large: nothing is taken off, and what is left lies in
−32 u … 32 u, a multiple of u / 2. So 2 (left / u + 96) is an integer from 128 to 256 or an even one up to 384: a bf16
whose upper byte is 0x43, and the lower is kept. Two packed instructions and the first term's exponent turn it back.

The three terms add up to the weight exactly if it is zero or at least 2^-100, and to within 2^-115 if it is smaller.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.vector_io import VECTOR_ELEMENTS, to_float32

PAIRS = VECTOR_ELEMENTS // 2
CODES = VECTOR_ELEMENTS // 4
"""Registers of four bytes for eight weights."""
UNIT = 2.0**-23
EXPONENT = 0x7F800000
UPPER_BYTES = 0x43434343
HALF_UNITS, SUBTRACTED = 0x33803380, 0xB740B740
"""2^-24 and −96 · 2^-23, two bf16 each."""


@cute.jit
def split_to_byte(values: cute.Tensor):
    """Eight float32 as two bf16 terms and a byte: registers ``(4, 2)``, two bf16 in each, and ``(2,)``, four bytes."""
    packed = cute.make_rmem_tensor((PAIRS, 2), Uint32)
    first = _rounded(values, packed[None, 0])
    less = cute.make_rmem_tensor((VECTOR_ELEMENTS,), Float32)
    rest = cute.make_rmem_tensor((VECTOR_ELEMENTS,), Float32)
    powers = []
    for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
        power = (first[i].bitcast(Uint32) & Uint32(EXPONENT)).bitcast(Float32)
        magnitude = (values[i].bitcast(Uint32) & Uint32(0x7FFFFFFF)).bitcast(Float32)
        offset = Float32(0.0) if magnitude < power else power * Float32(32 * UNIT)
        rest[i] = values[i] - first[i]
        less[i] = rest[i] - offset
        powers.append(power)
    second = _rounded(less, packed[None, 1])
    codes = []
    for i in cutlass.range_constexpr(VECTOR_ELEMENTS):
        left = rest[i] - second[i]
        # The distance of two bf16 patterns: 2 (left / u + 96), scaled as u is, less what the byte 0 stands for.
        above = left + powers[i] * Float32(96 * UNIT)
        lowest = powers[i] * Float32(64 * UNIT)
        codes.append((above.bitcast(Uint32) - lowest.bitcast(Uint32)) >> Uint32(16) & Uint32(0xFF))
    packed_codes = cute.make_rmem_tensor((CODES,), Uint32)
    for c in cutlass.range_constexpr(CODES):
        packed_codes[c] = codes[4 * c]
        for i in cutlass.range_constexpr(1, 4):
            packed_codes[c] = packed_codes[c] | codes[4 * c + i] << Uint32(8 * i)
    return packed, packed_codes


@cute.jit
def _rounded(values: cute.Tensor, packed: cute.Tensor) -> cute.Tensor:
    """Eight float32 rounded to bf16, into ``packed`` (4,), and as float32 again."""
    narrow = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
    narrow.store(values.load().to(BFloat16))
    cute.autovec_copy(cute.recast_tensor(narrow, Uint32), packed)
    return to_float32(narrow)


@cute.jit
def last_term(codes: cute.Tensor, first: cute.Tensor) -> cute.Tensor:
    """The last term of eight weights as bf16, ``(4,)``, from their bytes ``(2,)`` and their first terms ``(4,)``."""
    pairs = cute.make_rmem_tensor((PAIRS,), Uint32)
    for p in cutlass.range_constexpr(PAIRS):
        biased = _under_upper_bytes(codes[p // 2], 0x4140 if p % 2 == 0 else 0x4342)
        left = _fma_bf16x2(biased, Uint32(HALF_UNITS), Uint32(SUBTRACTED))
        pairs[p] = _mul_bf16x2(left, first[p] & Uint32(EXPONENT | EXPONENT >> 16))
    return pairs


@dsl_user_op
def _under_upper_bytes(codes: Uint32, selector: int, *, loc=None, ip=None) -> Uint32:
    """Two of four bytes, each under an upper byte. Volatile, or the compiler does all of it once before the passes and
    keeps the terms, for which there are no registers."""
    return _instruction(f"prmt.b32 $0, $1, $2, {selector:#x};", (codes, Uint32(UPPER_BYTES)), True, loc, ip)


@dsl_user_op
def _fma_bf16x2(a: Uint32, b: Uint32, c: Uint32, *, loc=None, ip=None) -> Uint32:
    return _instruction("fma.rn.bf16x2 $0, $1, $2, $3;", (a, b, c), False, loc, ip)


@dsl_user_op
def _mul_bf16x2(a: Uint32, b: Uint32, *, loc=None, ip=None) -> Uint32:
    return _instruction("mul.rn.bf16x2 $0, $1, $2;", (a, b), False, loc, ip)


def _instruction(text: str, operands, volatile: bool, loc, ip) -> Uint32:
    """One instruction whose operands and result are 32-bit registers."""
    values = [Uint32(each).ir_value(loc=loc, ip=ip) for each in operands]
    constraints = ",".join(["=r"] + ["r"] * len(values))
    return Uint32(
        llvm.inline_asm(
            T.i32(), values, text, constraints, has_side_effects=volatile, is_align_stack=False,
            asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
        )
    )  # fmt: skip
