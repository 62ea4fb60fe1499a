"""Probabilities as integers: sums that do not depend on their order, so not on how many CTAs share a row."""

from __future__ import annotations

import cutlass.cute as cute
from cutlass import Float32, Uint64

LOG2_E = 1.4426950408889634
ONE = 2.0**40
"""The weight of the largest logit: 2^19 tokens of it fit 64 bits, and as many roundings down are 5e-7 of the whole."""


@cute.jit
def weight_of(logit: Float32, peak: Float32, inverse: Float32) -> Uint64:
    """exp((``logit`` − ``peak``) · ``inverse``) in units of 2^-40, rounded down; 0 for a NaN. ``peak``: the largest."""
    weight = cute.math.exp2((logit - peak) * inverse * Float32(LOG2_E), fastmath=True)
    return Uint64(weight * Float32(ONE)) if weight == weight else Uint64(0)


@cute.jit
def is_below_share(mass: Uint64, whole: Uint64, share: Float32) -> bool:
    """Whether ``mass`` is below ``share`` of the ``whole``."""
    return Float32(mass) < Float32(whole) * share
