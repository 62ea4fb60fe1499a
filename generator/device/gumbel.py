"""Gumbel noise as a function of seed, position and token: dsv4.runtime.reference.sample's, in float32."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int64, Uint32, Uint64

STEP = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LN_2 = 0.6931471805599453
SERIES_UPTO = 0.25
SERIES_TERMS = 11


@cute.jit
def mixed(x: Uint64) -> Uint64:
    """splitmix64's finaliser."""
    x = (x ^ (x >> Uint64(30))) * Uint64(MIX_1)
    x = (x ^ (x >> Uint64(27))) * Uint64(MIX_2)
    return x ^ (x >> Uint64(31))


@cute.jit
def row_state(seed: Int64, position: Int64) -> Uint64:
    """What all tokens of a row share."""
    return mixed(Uint64(seed) * Uint64(STEP) + Uint64(position))


@cute.jit
def token_state(state: Uint64, token: Uint32) -> Uint64:
    """What :func:`gumbel` takes for ``token`` of a row with :func:`row_state` ``state``."""
    return state + Uint64(token) * Uint64(STEP)


def advanced(state: Uint64, tokens: int) -> Uint64:
    """The state of the token that is ``tokens`` later: an addition instead of a product."""
    return state + Uint64(tokens * STEP % 2**64)


@cute.jit
def gumbel(state: Uint64) -> Float32:
    """−log(−log u) in float32, u = (m + 1/2) / 2⁵², m the upper 52 bits of the mixed ``state`` of a token.

    The largest noise decides, so u close to 1 has to be exact: −log u is the series of w = 1 − u there, and w comes
    from the inverted bits. The relative error of −log u is below 1e-6, that is the absolute error of its logarithm.
    """
    bits = mixed(state)
    w = _fraction(bits ^ Uint64(0xFFFFFFFFFFFFFFFF))
    series = Float32(1.0 / SERIES_TERMS)
    for n in cutlass.range_constexpr(SERIES_TERMS - 1, 0, -1):
        series = series * w + Float32(1.0 / n)
    exponential = cute.math.log2(_fraction(bits), fastmath=True) * Float32(-LN_2)
    exponential = series * w if w <= Float32(SERIES_UPTO) else exponential
    return cute.math.log2(exponential, fastmath=True) * Float32(-LN_2)


@cute.jit
def _fraction(bits: Uint64) -> Float32:
    """(m + 1/2) / 2⁵² of the upper 52 bits m, relative error below 2^-23."""
    high = Uint32(bits >> Uint64(32))
    low = Uint32(bits) >> Uint32(12)
    return Float32(high) * Float32(2.0**-32) + (Float32(low) + Float32(0.5)) * Float32(2.0**-52)
