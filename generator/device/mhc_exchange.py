"""What the CTAs of a cluster tell each other: asynchronous stores into another CTA's shared memory, counted by bytes.

Each CTA waits on its own mbarriers. Those that count what comes in count bytes, which one arrival of its own announces
each pass; two more count arrivals that say that what was sent has been read, so that a buffer may be written again:

    partials   columns of all CTAs -> owner      (bytes)      taken   owners -> columns of all CTAs
    weights    owners -> columns of all CTAs     (bytes)      used    column warps of all CTAs -> owners
    squares    columns -> columns of all CTAs    (bytes)      two buffers and two barriers in turn, covered by `used`:
               a warp says `used` of a pass after it has read the squares of the pass before

Nothing is sent after the last pass that nobody waits for: the other CTA may have ended.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device.mhc_tiling import QUAD


class Barriers(NamedTuple):
    """Pointers to this CTA's mbarriers."""

    partials: cute.Pointer
    weights: cute.Pointer
    taken: cute.Pointer
    used: cute.Pointer
    squares: cute.Pointer  # the first of two that lie side by side


BARRIERS = 6


@cute.jit
def init_barriers(barriers, several, tiling: cutlass.Constexpr, norm: cutlass.Constexpr[bool]):
    """One thread: initialises the barriers and announces the bytes of the first pass, with ``several`` passes also the
    squares of the second."""
    for counted in (barriers.partials, barriers.weights, barriers.squares, barriers.squares + 1):
        cute.arch.mbarrier_init(counted, 1)
    cute.arch.mbarrier_init(barriers.taken, tiling.cluster)
    cute.arch.mbarrier_init(barriers.used, tiling.cluster * tiling.warps)
    cute.arch.mbarrier_init_fence()
    cute.arch.mbarrier_arrive_and_expect_tx(barriers.partials, tiling.partial_bytes)
    cute.arch.mbarrier_arrive_and_expect_tx(barriers.weights, tiling.weight_bytes)
    if cutlass.const_expr(norm):
        cute.arch.mbarrier_arrive_and_expect_tx(barriers.squares, tiling.square_bytes)
        if several:
            cute.arch.mbarrier_arrive_and_expect_tx(barriers.squares + 1, tiling.square_bytes)


@cute.jit
def send_quad(values: cute.Tensor, target: cute.Tensor, barrier: cute.Pointer, peer: Int32):
    """Sends four float32 to where ``target`` (4,) lies in the CTA ``peer`` of the cluster."""
    bits = cute.recast_tensor(values, Int32)
    cute.arch.store_async_dsmem(target.iterator, (bits[0], bits[1], bits[2], bits[3]), barrier, peer)


@cute.jit
def send_partials(
    partials: cute.Tensor,
    received: cute.Tensor,
    barrier: cute.Pointer,
    rank: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
    threads: cutlass.Constexpr[int],
):
    """``threads`` add up the warps' ``partials`` (4, tokens, quads, warps) and send them to the tokens' owners.

    They arrive in the owner's ``received`` (4, quads, owned tokens, CTAs) under this CTA's ``rank``.
    """
    items = tiling.tokens * tiling.quads
    for visit in cutlass.range_constexpr(-(-items // threads)):
        item = thread + visit * threads
        if item < items:
            token, quad = item % tiling.tokens, item // tiling.tokens
            total = cute.make_rmem_tensor((QUAD,), Float32)
            cute.autovec_copy(partials[None, token, quad, 0], total)
            for other in cutlass.range_constexpr(1, tiling.role_warps):
                part = cute.make_rmem_tensor((QUAD,), Float32)
                cute.autovec_copy(partials[None, token, quad, other], part)
                total.store(total.load() + part.load())
            place = received[None, quad, token // tiling.cluster, rank]
            send_quad(total, place, barrier, token % tiling.cluster)


@cute.jit
def send_squares(
    sums: cute.Tensor,
    received: cute.Tensor,
    barrier: cute.Pointer,
    rank: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Adds up the warps' ``sums`` (tokens, warps) and sends them to ``received`` (CTAs, tokens) of every CTA."""
    items = tiling.tokens * tiling.cluster
    for visit in cutlass.range_constexpr(-(-items // tiling.threads)):
        item = thread + visit * tiling.threads
        if item < items:
            token, peer = item % tiling.tokens, item // tiling.tokens
            total = cute.make_rmem_tensor((1,), Float32)
            total[0] = sums[token, 0]
            for other in cutlass.range_constexpr(1, tiling.warps):
                total[0] = total[0] + sums[token, other]
            place = cute.make_tensor(received.iterator + (token * tiling.cluster + rank), cute.make_layout(1))
            cute.arch.store_async_dsmem(place.iterator, cute.recast_tensor(total, Int32)[0], barrier, peer)


@cute.jit
def tell_all(barrier: cute.Pointer, lane: Int32, tiling: cutlass.Constexpr):
    """One warp: an arrival at ``barrier`` of every CTA of the cluster, after all that the warp has read."""
    cute.arch.sync_warp()
    if lane < tiling.cluster:
        cute.arch.mbarrier_arrive(barrier, lane)
