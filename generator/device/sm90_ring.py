"""A ring of shared-memory slots between TMA loads and warpgroups: one full and one empty mbarrier per slot.

A position in the ring is the pair ``(slot, phase)`` of Int32; ``phase`` flips each time round, so a waiter can tell
this round's completion from the last one's. Barriers are passed as pointers to the first of ``slots`` mbarriers.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32


@cute.jit
def init_ring(full, empty, slots: cutlass.Constexpr[int], consumers: cutlass.Constexpr[int]):
    """Initialises the ring's mbarriers: one arrival (with its bytes) fills a slot, ``consumers`` arrivals empty it.

    To be called by one thread, before ``mbarrier_init_fence`` and a CTA barrier.
    """
    for slot in cutlass.range_constexpr(slots):
        cute.arch.mbarrier_init(full + slot, 1)
        cute.arch.mbarrier_init(empty + slot, consumers)


@cute.jit
def next_position(slot: Int32, phase: Int32, slots: cutlass.Constexpr[int]):
    """The position after ``(slot, phase)`` in a ring of ``slots``."""
    next_slot = slot + 1
    next_phase = phase
    if next_slot == slots:
        next_slot = Int32(0)
        next_phase = phase ^ 1
    return next_slot, next_phase


@cute.jit
def acquire(full, empty, slot: Int32, phase: Int32, slot_bytes: cutlass.Constexpr[int]):
    """Producer, one warp: waits until the slot is empty, then announces ``slot_bytes`` on its full barrier."""
    cute.arch.mbarrier_wait(empty + slot, phase ^ 1)
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full + slot, slot_bytes)


@cute.jit
def wait_full(full, slot: Int32, phase: Int32):
    """Consumer: waits until every byte of the slot has landed."""
    cute.arch.mbarrier_wait(full + slot, phase)


@cute.jit
def release(empty, slot: Int32):
    """Consumer: one arrival per warp, after that warp's last read of the slot has completed."""
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(empty + slot)
