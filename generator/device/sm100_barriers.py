"""Mbarriers as arrays in shared memory: initialisation."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute


@cute.jit
def init_barriers(barriers: cute.Pointer, count: cutlass.Constexpr[int], arrivals: cutlass.Constexpr[int]):
    """Initialise ``count`` mbarriers whose phase ends after ``arrivals`` arrivals (and the bytes announced to it).

    For one thread, before ``mbarrier_init_fence`` and the CTA's barrier.
    """
    for index in cutlass.range_constexpr(count):
        cute.arch.mbarrier_init(barriers + index, arrivals)
