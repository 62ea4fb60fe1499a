"""The largest and a sum over all threads of a cluster, in every thread, always in the same order.

A few words travel together: warps hand theirs to the first warp through shared memory, CTAs to each other through the
cluster's. One barrier of the CTA and one of the cluster; the CTAs' words have two places, used in turn, so that nobody
waits for the others to have read.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.cluster_words import cluster_sync, send
from dsv4.generator.device.float_order import float32_bits, float32_of


@cute.jit
def largest(
    order: Uint32,
    index: Uint32,
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Uint32, Uint32]:
    """The largest ``order`` of the cluster and the lowest ``index`` that has it.

    ``warp_words``: shared memory, u32 [warps, 4]. ``cta_words``: u32 [2, CTAs of the cluster, 4]. ``turn``: 0 and 1
    alternately, the same in all threads. ``rank``: of the CTA in its cluster.
    """
    order, index = warp_largest(order, index)
    order, index = _of_warps([order, index], warp_words, thread)
    order, index = warp_largest(order, index)
    order, index = _of_ctas([order, index], cta_words, turn, rank, thread)
    return warp_largest(order, index)


@cute.jit
def sum_and_largest(
    weight: Float32,
    order: Uint32,
    index: Uint32,
    beside: Uint32,
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Float32, Uint32, Uint32, Uint32]:
    """Σ ``weight``, the largest ``order``, the lowest ``index`` that has it and what is ``beside`` these two.

    A thread without any passes order 0; the other arguments are :func:`largest`'s.
    """
    words = _warp_sum_and_largest(float32_bits(weight), order, index, beside)
    words = _warp_sum_and_largest(*_of_warps(words, warp_words, thread))
    a, order, index, beside = _warp_sum_and_largest(*_of_ctas(words, cta_words, turn, rank, thread))
    return float32_of(a), order, index, beside


@cute.jit
def warp_largest(order: Uint32, index: Uint32) -> tuple[Uint32, Uint32]:
    """The largest ``order`` of the warp and the lowest ``index`` that has it."""
    best = cute.arch.warp_redux_sync(order, "max")
    return best, cute.arch.warp_redux_sync(index if order == best else Uint32(0xFFFFFFFF), "min")


@cute.jit
def _warp_sum_and_largest(weight_bits: Uint32, order: Uint32, index: Uint32, beside: Uint32) -> list[Uint32]:
    weight = cute.arch.warp_reduction_sum(float32_of(weight_bits))
    best, first = warp_largest(order, index)
    is_first = order == best and index == first
    beside = cute.arch.warp_redux_sync(beside if is_first else Uint32(0), "max")
    return [float32_bits(weight), best, first, beside]


@cute.jit
def _of_warps(words: list[Uint32], warp_words: cute.Tensor, thread: Int32) -> list[Uint32]:
    """Lane i gets the words of warp i, zeros beyond the last; of use in the first warp only."""
    lane, warp = thread % 32, thread // 32
    if lane == 0:
        for i in cutlass.range_constexpr(len(words)):
            warp_words[warp, i] = words[i]
    cute.arch.sync_threads()
    return _words_of(warp_words, lane, len(words))


@cute.jit
def _of_ctas(words: list[Uint32], cta_words: cute.Tensor, turn: Int32, rank: Int32, thread: Int32) -> list[Uint32]:
    """Lane i gets what the first warp of CTA i holds (the same in all its lanes), zeros beyond the last."""
    ctas = cute.size(cta_words, mode=[1])
    if thread < ctas:  # each writes to one CTA
        send(words, cta_words[turn, rank, None].iterator, thread, ctas)
    cluster_sync(ctas)
    return _words_of(cta_words[turn, None, None], thread % 32, len(words))


@cute.jit
def _words_of(all_words: cute.Tensor, lane: Int32, count: cutlass.Constexpr[int]) -> list[Uint32]:
    words = cute.make_rmem_tensor((count,), Uint32)
    words.fill(0)
    if lane < cute.size(all_words, mode=[0]):
        for i in cutlass.range_constexpr(count):
            words[i] = all_words[lane, i]
    return [words[i] for i in range(count)]
