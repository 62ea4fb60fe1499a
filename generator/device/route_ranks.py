"""Counting routes by expert, warp by warp, so that an expert's routes keep their order.

A warp owns a run of neighbouring routes and takes them 32 at a time. The lanes that hold the same expert know of each
other by ``match``; the first of them speaks for all, so no two lanes of a warp touch the same counter.
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
    experts: cute.Tensor, first: Int32, end: Int32, lane: Int32, most: cutlass.Constexpr[int]
) -> cute.Tensor:
    """This lane's routes of the warp's ``first`` … ``end`` − 1, one of every 32, at most ``most``: experts or -1."""
    held = cute.make_rmem_tensor((most,), Int32)
    for i in cutlass.range_constexpr(most):
        held[i] = route_of(experts, first + 32 * i + lane, end)
    return held


@cute.jit
def rank_routes(held: cute.Tensor, first: Int32, end: Int32, counts: cute.Tensor, lane: Int32) -> cute.Tensor:
    """For each route of :func:`load_routes` how many before it in the warp have its expert.

    Adds the warp's routes to ``counts`` (shared memory, the warp's own, zeros).
    """
    ranks = cute.make_rmem_tensor((cute.size(held),), Int32)
    for i in cutlass.range_constexpr(cute.size(held)):
        if first + 32 * i < end:
            expert = held[i]
            same = Uint32(cute.arch.match_sync(ALL_LANES, expert))
            earlier = Int32(cute.arch.popc(same & _earlier(lane)))
            before = counts[cutlass.max(expert, 0)]
            ranks[i] = before + earlier
            cute.arch.sync_warp()
            if expert >= 0 and earlier == 0:
                counts[expert] = before + Int32(cute.arch.popc(same))
            cute.arch.sync_warp()
    return ranks


@cute.jit
def place_routes(
    held: cute.Tensor,
    ranks: cute.Tensor,
    first: Int32,
    end: Int32,
    before: cute.Tensor,
    starts: cute.Tensor,
    route_row: cute.Tensor,
    row_token: cute.Tensor,
    lane: Int32,
    k: cutlass.Constexpr[int],
) -> None:
    """Give this lane's routes their rows: ``starts`` + ``before`` (shared memory, i32 [experts]) + ``ranks``.

    Writes each route's row to ``route_row`` (flat; -1 where there is no route) and its token to ``row_token``.
    """
    for i in cutlass.range_constexpr(cute.size(held)):
        route = first + 32 * i + lane
        if route < end:
            row = Int32(-1)
            if held[i] >= 0:
                row = starts[held[i]] + before[held[i]] + ranks[i]
                row_token[row] = route // k
            route_row[route] = row


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
