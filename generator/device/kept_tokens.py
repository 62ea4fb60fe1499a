"""top-k and top-p without a sort: the kept tokens are the first in the order of the logits, a threshold says which.

Both ask for the shortest prefix of the descending logits whose weights reach a target: top-k weighs each token 1, top-p
by its probability. The threshold is found by halving the range of float32 orders; equal logits at the threshold are
told apart by index, the lower first.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.cluster_reduce import sums
from dsv4.generator.device.float_order import MINUS_INFINITY, value_of


def offset_of(i: int, vector: int, stride: int) -> int:
    """How many tokens after a thread's first logit its ``i``-th one is."""
    return i // vector * stride + i % vector


def index_of(first: Int32, i: int, vector: int, stride: int) -> Int32:
    """The token of a thread's ``i``-th logit: vectors of ``vector`` neighbours, ``stride`` tokens apart."""
    return first + Int32(offset_of(i, vector, stride))


@cute.jit
def keep_prefix(
    logits: cute.Tensor,
    weights: cute.Tensor,
    by_count: cutlass.Constexpr[bool],
    target: Float32,
    scale: Float32,
    largest: Uint32,
    first_index: Int32,
    vector: cutlass.Constexpr[int],
    stride: cutlass.Constexpr[int],
    end_index: cutlass.Constexpr[int],
    turn: Int32,
    warp_pairs: cute.Tensor,
    cta_pairs: cute.Tensor,
    rank: Int32,
    thread: Int32,
) -> Int32:
    """Drop (set to NaN, weight 0) every logit behind the shortest prefix with Σ weights ≥ ``target``; the next turn.

    ``logits``, ``weights``: this thread's, registers; what is not there is NaN with weight 0. A weight is
    exp2((logit − the largest) · ``scale``); ``by_count``: every token weighs 1 instead. ``target`` is above 0, at most
    the sum of all weights; ``largest`` is the order of the largest logit, which is finite. ``first_index``,
    ``vector``, ``stride``: :func:`index_of`; all tokens are below ``end_index``. ``turn`` … ``thread``:
    ``cluster_reduce.sums``.
    """
    # weights from low's value on reach the target, those from high's on do not
    low, high = Uint32(MINUS_INFINITY), largest + Uint32(1)
    low_count, high_count = Float32(2.0**30), Float32(0.0)
    high_sum = Float32(0.0)
    while high - low > Uint32(1) and low_count - high_count > Float32(1.0):
        middle = low + ((high - low) >> Uint32(1))
        threshold = value_of(middle)
        count, weight = Float32(0.0), Float32(0.0)
        for i in cutlass.range_constexpr(cute.size(logits)):
            taken = logits[i] >= threshold
            count = count + (Float32(1.0) if taken else Float32(0.0))
            if cutlass.const_expr(not by_count):
                weight = weight + (weights[i] if taken else Float32(0.0))
        count, weight = sums(count, weight, warp_pairs, cta_pairs, turn, rank, thread)
        turn = turn ^ 1
        if cutlass.const_expr(by_count):
            weight = count
        reached = weight >= target
        low, low_count = (middle if reached else low), (count if reached else low_count)
        high, high_count = (high if reached else middle), (high_count if reached else count)
        high_sum = high_sum if reached else weight

    # Of the logits that equal the threshold as many as are needed, the lower indices first.
    threshold = value_of(low)
    needed = target - high_sum
    if cutlass.const_expr(not by_count):
        needed = needed / cute.math.exp2((threshold - value_of(largest)) * scale, fastmath=True)
    equal = low_count - high_count
    first_dropped = Int32(end_index)
    if equal > Float32(1.0) and equal > needed:
        kept, dropped = Int32(-1), Int32(end_index)  # upto index kept they do not reach what is needed
        while dropped - kept > 1:
            middle_index = (kept + dropped) // 2
            count = Float32(0.0)
            for i in cutlass.range_constexpr(cute.size(logits)):
                taken = logits[i] == threshold and index_of(first_index, i, vector, stride) <= middle_index
                count = count + (Float32(1.0) if taken else Float32(0.0))
            count, _ = sums(count, Float32(0.0), warp_pairs, cta_pairs, turn, rank, thread)
            turn = turn ^ 1
            kept = kept if count >= needed else middle_index
            dropped = middle_index if count >= needed else dropped
        first_dropped = dropped + 1
    for i in cutlass.range_constexpr(cute.size(logits)):
        early = index_of(first_index, i, vector, stride) < first_dropped
        keep = logits[i] > threshold or (logits[i] == threshold and early)
        logits[i] = logits[i] if keep else Float32(float("nan"))
        weights[i] = weights[i] if keep else Float32(0.0)
    return turn
