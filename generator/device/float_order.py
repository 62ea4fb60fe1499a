"""float32 as unsigned numbers of the same order, and back."""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import Float32, Uint32

NOT_A_NUMBER = 0xFFFFFFFF
"""The order of every NaN: above all numbers, as in torch.sort."""
INFINITY = 0xFF800000
MINUS_INFINITY = 0x007FFFFF
"""The least order of a number: 0 stands for none."""
TOP_BIT = 0x80000000


@cute.jit
def order_of(value: Float32) -> Uint32:
    """An unsigned number that is larger for a larger ``value``, and :data:`NOT_A_NUMBER` for a NaN. −0 counts as 0."""
    bits = float32_bits(value)
    bits = Uint32(0) if bits == Uint32(TOP_BIT) else bits
    flipped = bits ^ (Uint32(TOP_BIT) if bits < Uint32(TOP_BIT) else Uint32(0xFFFFFFFF))
    return flipped if value == value else Uint32(NOT_A_NUMBER)


@cute.jit
def value_of(order: Uint32) -> Float32:
    """The number whose :func:`order_of` is ``order``."""
    return float32_of(order ^ (Uint32(TOP_BIT) if order >= Uint32(TOP_BIT) else Uint32(0xFFFFFFFF)))


@cute.jit
def float32_bits(value: Float32) -> Uint32:
    """The 32 bits of ``value``."""
    word = cute.make_rmem_tensor((1,), Float32)
    word[0] = value
    return cute.recast_tensor(word, Uint32)[0]


@cute.jit
def float32_of(bits: Uint32) -> Float32:
    """The float32 of these 32 bits."""
    word = cute.make_rmem_tensor((1,), Uint32)
    word[0] = bits
    return cute.recast_tensor(word, Float32)[0]
