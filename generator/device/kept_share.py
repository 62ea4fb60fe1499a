"""top-p without a threshold: the best score's token is drawn if it is kept, else the next best before it is tried.

A token is kept where the weight of those before it in the order of the logits is below the share of the whole. If the
best one is not, no token behind it is: the next candidate is the best of those before it. The best of all is kept with
probability p or more, a later candidate with a larger one: a row asks 1.1 times on average at p = 0.9, and at any p no
more than 1 + ln(1/p) times on average. Each asking is one reduction over the cluster, which brings the next candidate
along; each leaves fewer tokens, so it comes to an end.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.cluster_reduce import sum_and_largest
from dsv4.generator.device.float_order import float32_bits, float32_of
from dsv4.generator.device.kept_tokens import index_of, logit_at, not_hoisted, offset_of

LOG2_E = 1.4426950408889634


@cute.jit
def best_of_share(
    logits: cute.Tensor,
    scores: cute.Tensor,
    score: Uint32,
    place: Int32,
    share: Float32,
    peak: Float32,
    inverse: Float32,
    first_index: Int32,
    vector: cutlass.Constexpr[int],
    stride: cutlass.Constexpr[int],
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
) -> Uint32:
    """The token with the best score of those kept by top-p.

    ``logits``: float32, this thread's, registers, NaN where there is none. ``scores``: their orders (u32), in shared
    memory, as this thread wrote them. ``score``, ``place``: this thread's best, order 0 if it has none. ``share``: p,
    above 0 and below 1. ``peak``: the largest logit of the row, finite; ``inverse``: 1/T, finite. ``first_index``,
    ``vector``, ``stride``: ``kept_tokens.index_of``. ``warp_words`` … ``thread``: ``cluster_reduce.largest``.
    """
    weight = Float32(0.0)
    for i in cutlass.range_constexpr(cute.size(logits)):
        own = _weight_of(logits[i], peak, inverse)
        weight = weight + (own if logits[i] == logits[i] else Float32(0.0))
    index, bits = index_of(first_index, place, vector, stride), float32_bits(logit_at(logits, place))
    whole, score, token, bits = sum_and_largest(
        weight, score, Uint32(index), bits, warp_words, cta_words, turn, rank, thread
    )
    logit, target = float32_of(bits), whole * share
    is_behind = score > Uint32(0)
    while is_behind:
        turn = turn ^ 1
        mass, next_score, place = Float32(0.0), Uint32(0), Int32(0)
        token_offset = Int32(token) - first_index
        factor = not_hoisted(inverse)
        for i in cutlass.range_constexpr(cute.size(logits)):
            is_earlier = offset_of(i, vector, stride) < token_offset
            is_before = logits[i] > logit or (logits[i] == logit and is_earlier)
            own = _weight_of(logits[i], peak, factor)
            mass = mass + (own if is_before else Float32(0.0))
            score_here = scores[i] if is_before else Uint32(0)
            is_better = score_here > next_score
            place = Int32(i) if is_better else place
            next_score = score_here if is_better else next_score
        index, bits = index_of(first_index, place, vector, stride), float32_bits(logit_at(logits, place))
        mass, score, next_token, bits = sum_and_largest(
            mass, next_score, Uint32(index), bits, warp_words, cta_words, turn, rank, thread
        )
        # The largest logit is kept, however small the share.
        is_behind = mass >= target and score > Uint32(0)
        token = next_token if is_behind else token
        logit = float32_of(bits) if is_behind else logit
    return token


def _weight_of(logit: Float32, peak: Float32, inverse: Float32) -> Float32:
    return cute.math.exp2((logit - peak) * inverse * Float32(LOG2_E), fastmath=True)
