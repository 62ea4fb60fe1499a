"""The largest and sums over all threads of a cluster, in every thread, always in the same order.

A few words travel together: warps hand theirs to the first warp through shared memory, CTAs to each other through the
cluster's. One barrier of the CTA and one of the cluster; the CTAs' words have two places, used in turn, so that nobody
waits for the others to have read.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32, Uint64

from dsv4.generator.device.cluster_words import cluster_sync, send


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
def two_largest(
    order: Uint32,
    other: Uint32,
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Uint32, Uint32]:
    """The largest ``order`` and the largest ``other`` of the cluster; the other arguments are :func:`largest`'s."""
    order, other = _warp_two_largest(order, other)
    order, other = _warp_two_largest(*_of_warps([order, other], warp_words, thread))
    return _warp_two_largest(*_of_ctas([order, other], cta_words, turn, rank, thread))


@cute.jit
def two_sums(
    a: Uint64,
    b: Uint64,
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> tuple[Uint64, Uint64]:
    """Σ ``a`` and Σ ``b`` over the cluster; the other arguments are :func:`largest`'s."""
    words = _warp_two_sums(*_halves(a), *_halves(b))
    words = _warp_two_sums(*_of_warps(words, warp_words, thread))
    words = _warp_two_sums(*_of_ctas(words, cta_words, turn, rank, thread))
    return whole_of(words[0], words[1]), whole_of(words[2], words[3])


@cute.jit
def warp_largest(order: Uint32, index: Uint32) -> tuple[Uint32, Uint32]:
    """The largest ``order`` of the warp and the lowest ``index`` that has it."""
    best = cute.arch.warp_redux_sync(order, "max")
    return best, cute.arch.warp_redux_sync(index if order == best else Uint32(0xFFFFFFFF), "min")


@cute.jit
def shuffle_up(value: Uint64, lanes: cutlass.Constexpr[int]) -> Uint64:
    """The ``value`` of the lane that is ``lanes`` before this one, its own where there is none."""
    low, high = _halves(value)
    return whole_of(
        cute.arch.shuffle_sync_up(low, lanes, mask_and_clamp=0),
        cute.arch.shuffle_sync_up(high, lanes, mask_and_clamp=0),
    )


def _halves(value: Uint64) -> list[Uint32]:
    return [Uint32(value), Uint32(value >> Uint64(32))]


def whole_of(low: Uint32, high: Uint32) -> Uint64:
    """The number of these two halves."""
    return Uint64(low) | (Uint64(high) << Uint64(32))


@cute.jit
def _warp_two_largest(order: Uint32, other: Uint32) -> tuple[Uint32, Uint32]:
    return cute.arch.warp_redux_sync(order, "max"), cute.arch.warp_redux_sync(other, "max")


@cute.jit
def _warp_two_sums(a_low: Uint32, a_high: Uint32, b_low: Uint32, b_high: Uint32) -> list[Uint32]:
    a, b = whole_of(a_low, a_high), whole_of(b_low, b_high)
    for step in cutlass.range_constexpr(5):
        a = a + _shuffle_bfly(a, 1 << step)
        b = b + _shuffle_bfly(b, 1 << step)
    return [*_halves(a), *_halves(b)]


def _shuffle_bfly(value: Uint64, lanes: int) -> Uint64:
    low, high = _halves(value)
    return whole_of(cute.arch.shuffle_sync_bfly(low, lanes), cute.arch.shuffle_sync_bfly(high, lanes))


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
