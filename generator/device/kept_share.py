"""The best score's token; with top-p it is drawn if it is kept, else the next best before it is tried.

A token is kept where the weight of those before it in the order of the logits is below the share of the whole. If the
best one is not, no token behind it is: the next candidate is the best of those before it. The best of all is kept with
probability p or more, a later candidate with a larger one: a row asks 1.1 times on average at p = 0.9, and at any p no
more than 1 + ln(1/p) times on average. Each asking is one pass and one reduction over the cluster, and so is each
further candidate; each leaves fewer tokens, so it comes to an end.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32, Uint64

from dsv4.generator.device.cluster_reduce import largest, two_sums
from dsv4.generator.device.fixed_weight import is_below_share, weight_of
from dsv4.generator.device.inline_asm import not_hoisted
from dsv4.generator.device.row_part import Part, chunk_of, first_index, kept_bits, offset_of
from dsv4.generator.device.row_passes import best_score


@cute.jit
def best_of_share(
    row: cute.Tensor,
    held: cute.Tensor,
    is_known: bool,
    token: Uint32,
    threshold: Float32,
    last_index: Int32,
    share: Float32,
    peak: Float32,
    inverse: Float32,
    state: Uint64,
    warp_words: cute.Tensor,
    cta_words: cute.Tensor,
    turn: Int32,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> Uint32:
    """The token with the best score of those kept by top-p.

    ``row``, ``held``: ``row_part.chunk_of``; what is behind ``threshold`` and ``last_index`` is no token
    (``row_part.kept_bits``). ``is_known``: whether ``token`` has the best score of all. ``share``: p, above 0.
    ``peak``: the largest logit of the row, finite; ``inverse``: 1/T, finite. ``state``: ``gumbel.row_state``.
    ``warp_words`` … ``thread``: ``cluster_reduce.largest``.
    """
    whole, is_open = Uint64(0), True
    while is_open:
        if not is_known:
            order, index = best_score(row, held, threshold, last_index, peak, inverse, state, rank, thread, part)
            _, token = largest(order, index, warp_words, cta_words, turn, rank, thread)
            turn = turn ^ 1
        is_known, is_open = False, False
        if share < Float32(1.0):
            logit, before = Float32(row[Int32(token)]), Int32(token) - 1
            mass, kept = Uint64(0), Uint64(0)
            if whole == Uint64(0) and threshold > Float32(float("-inf")):
                mass, kept = _weights(
                    row, held, True, threshold, last_index, logit, before, peak, inverse, rank, thread, part
                )
            else:  # without top-k all tokens are the whole; later candidates ask for a part of the same whole
                mass, kept = _weights(
                    row, held, False, threshold, last_index, logit, before, peak, inverse, rank, thread, part
                )
            mass, kept = two_sums(mass, kept, warp_words, cta_words, turn, rank, thread)
            turn = turn ^ 1
            whole = kept if whole == Uint64(0) else whole
            # The largest logit has no mass before it and is kept, however small the share.
            is_open = not is_below_share(mass, whole, share)
            threshold = logit if is_open else threshold
            last_index = before if is_open else last_index
    return token


@cute.jit
def _weights(
    row: cute.Tensor,
    held: cute.Tensor,
    is_part: cutlass.Constexpr[bool],
    threshold: Float32,
    last_index: Int32,
    logit: Float32,
    before: Int32,
    peak: Float32,
    inverse: Float32,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> tuple[Uint64, Uint64]:
    """The weight of this thread's tokens up to ``logit`` and ``before``; and of all, where ``is_part`` of those up to
    ``threshold`` and ``last_index``."""
    mass, kept = Uint64(0), Uint64(0)
    factor = not_hoisted(inverse)
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = chunk_of(row, held, chunk, rank, thread, part)
        first = first_index(chunk, rank, thread, part)
        if cutlass.const_expr(is_part):
            is_kept = kept_bits(logits, threshold, last_index, first, part)
        before_offset = before - first
        for i in cutlass.range_constexpr(part.chunk):
            weight = weight_of(logits[i], peak, factor)
            if cutlass.const_expr(is_part):
                kept = kept + (weight if (is_kept & Uint32(1 << i)) != Uint32(0) else Uint64(0))
            else:
                kept = kept + weight
            is_early = offset_of(i, part) <= before_offset
            is_before = logits[i] > logit or (logits[i] == logit and is_early)
            mass = mass + (weight if is_before else Uint64(0))
    return mass, kept
