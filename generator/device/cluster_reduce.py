"""Sums and maxima over all threads of a cluster, in every thread, always in the same order.

Pairs of 32-bit numbers travel together: warps hand theirs to the first warp through shared memory, CTAs to each other
through the cluster's. One barrier of the CTA and one of the cluster; the CTAs' pairs have two places, used in turn, so
that nobody waits for the others to have read.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.float_order import float32_bits, float32_of


@cute.jit
def sums(
    first: Float32,
    second: Float32,
    warp_pairs: cute.Tensor,
    cta_pairs: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Float32, Float32]:
    """Σ ``first`` and Σ ``second`` over the cluster.

    ``warp_pairs``: shared memory, u32 [warps, 2]. ``cta_pairs``: u32 [2, CTAs of the cluster, 2]. ``turn``: 0 and 1
    alternately, the same in all threads. ``rank``: of the CTA in its cluster.
    """
    first, second = _warp_sum(first), _warp_sum(second)
    a, b = _of_warps(float32_bits(first), float32_bits(second), warp_pairs, thread)
    first, second = _warp_sum(float32_of(a)), _warp_sum(float32_of(b))
    a, b = _of_ctas(float32_bits(first), float32_bits(second), cta_pairs, turn, rank, thread)
    return _warp_sum(float32_of(a)), _warp_sum(float32_of(b))


@cute.jit
def largest(
    order: Uint32,
    index: Uint32,
    warp_pairs: cute.Tensor,
    cta_pairs: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Uint32, Uint32]:
    """The largest ``order`` of the cluster and the lowest ``index`` that has it; arguments as for :func:`sums`."""
    order, index = _warp_largest(order, index)
    order, index = _of_warps(order, index, warp_pairs, thread)
    order, index = _warp_largest(order, index)
    order, index = _of_ctas(order, index, cta_pairs, turn, rank, thread)
    return _warp_largest(order, index)


@cute.jit
def _warp_sum(value: Float32) -> Float32:
    return cute.arch.warp_reduction_sum(value)


@cute.jit
def _warp_largest(order: Uint32, index: Uint32) -> tuple[Uint32, Uint32]:
    best = cute.arch.warp_redux_sync(order, "max")
    return best, cute.arch.warp_redux_sync(index if order == best else Uint32(0xFFFFFFFF), "min")


@cute.jit
def _of_warps(first: Uint32, second: Uint32, warp_pairs: cute.Tensor, thread: Int32) -> tuple[Uint32, Uint32]:
    """Lane i gets the pair of warp i, zeros beyond the last; of use in the first warp only."""
    lane, warp = thread % 32, thread // 32
    if lane == 0:
        warp_pairs[warp, 0] = first
        warp_pairs[warp, 1] = second
    cute.arch.sync_threads()
    return _pair_of(warp_pairs, lane)


@cute.jit
def _of_ctas(
    first: Uint32, second: Uint32, cta_pairs: cute.Tensor, turn: Int32, rank: Int32, thread: Int32
) -> tuple[Uint32, Uint32]:
    """Lane i gets what the first warp of CTA i holds (the same in all its lanes), zeros beyond the last."""
    ctas = cute.size(cta_pairs, mode=[1])
    if cutlass.const_expr(ctas == 1):
        if thread == 0:
            cta_pairs[turn, 0, 0] = first
            cta_pairs[turn, 0, 1] = second
        cute.arch.sync_threads()
    else:
        if thread < ctas:  # each writes to one CTA
            theirs = cute.arch.map_dsmem_ptr(cta_pairs[turn, rank, None].iterator, thread)
            cute.arch.inline_ptx(
                "st.shared::cluster.v2.b32 [{$r0}], {{$r1}, {$r2}};", read_only_args=[theirs.toint(), first, second]
            )
        cute.arch.cluster_arrive()
        cute.arch.cluster_wait()
    return _pair_of(cta_pairs[turn, None, None], thread % 32)


@cute.jit
def _pair_of(pairs: cute.Tensor, lane: Int32) -> tuple[Uint32, Uint32]:
    first, second = Uint32(0), Uint32(0)
    if lane < cute.size(pairs, mode=[0]):
        first, second = pairs[lane, 0], pairs[lane, 1]
    return first, second
