"""Counting routes by expert, and ranking those of a warp so that an expert's routes keep their order.

Counts are sums in shared memory, whatever the order. Ranks are by warp, which has 32 neighbouring routes: the lanes
that hold the same expert know of each other by ``match``, and the first of them says how many they are.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

ALL_LANES = 0xFFFFFFFF


@cute.jit
def route_of(experts: cute.Tensor, route: Int32, end: Int32) -> Int32:
    """The expert of ``route`` (experts: i32, flat); -1 from ``end`` on."""
    expert = Int32(-1)
    if route < end:
        expert = experts[route]
    return expert


@cute.jit
def load_routes(
    experts: cute.Tensor, first: Int32, end: Int32, step: Int32, most: cutlass.Constexpr[int]
) -> cute.Tensor:
    """The experts of the routes ``first``, ``first`` + ``step`` … before ``end``, ``most`` of them; -1 beyond."""
    held = cute.make_rmem_tensor((most,), Int32)
    for i in cutlass.range_constexpr(most):
        held[i] = route_of(experts, first + step * i, end)
    return held


@cute.jit
def add_routes(held: cute.Tensor, counts: cute.Tensor) -> None:
    """Add routes of :func:`load_routes` to ``counts`` (shared memory, i32 [experts]), which other threads add to, too.

    Sums of integers do not depend on who comes first, and nobody looks at one before all are there.
    """
    for i in cutlass.range_constexpr(cute.size(held)):
        if held[i] >= 0:
            cute.arch.atomic_add(counts.iterator + held[i], Int32(1), sem="relaxed", scope="cta")


@cute.jit
def rank_route(expert: Int32, counts: cute.Tensor, lane: Int32) -> Int32:
    """How many routes of the warp's lanes before this one have its expert; all lanes call, -1 is no route.

    Sets the warp's own ``counts`` (shared memory, i32 [experts], zeros) to how many of them each expert has.
    """
    same = Uint32(cute.arch.match_sync(ALL_LANES, expert))
    earlier = Int32(cute.arch.popc(same & _earlier(lane)))
    if expert >= 0 and earlier == 0:
        counts[expert] = Int32(cute.arch.popc(same))
    return earlier


def _earlier(lane: Int32) -> Uint32:
    """The lanes before ``lane``, a bit each."""
    return (Uint32(1) << Uint32(lane)) - Uint32(1)


@cute.jit
def sum_before(value: Int32, sums: cute.Tensor, thread: Int32, warps: cutlass.Constexpr[int]) -> tuple[Int32, Int32]:
    """The sum of the values of all threads before this one, and of all. ``sums``: shared memory, i32 [``warps``], free.

    Only the first ``warps`` warps, up to 32, have values; for the others' threads the first result means nothing. One
    barrier of the whole CTA.
    """
    lane, warp = thread % 32, thread // 32
    upto = value
    if warp < warps:
        for step in (1, 2, 4, 8, 16):
            other = cute.arch.shuffle_sync_up(upto, step, mask_and_clamp=0)
            upto = upto + (other if lane >= step else Int32(0))
        if lane == 31:
            sums[warp] = upto
    cute.arch.sync_threads()
    before, total = Int32(0), Int32(0)
    for i in cutlass.range_constexpr(warps):
        part = sums[i]
        before = before + (part if i < warp else Int32(0))
        total = total + part
    return before + upto - value, total
