"""Passes over a row of logits, each by all threads: the largest, the best score, both at once."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32, Uint64

from dsv4.generator.device.filtered_noise import ALL, LEAST_NOISE, best_of_chunk, score_of, tops_of
from dsv4.generator.device.float_order import NOT_A_NUMBER, order_of
from dsv4.generator.device.gumbel import gumbel, token_state
from dsv4.generator.device.inline_asm import not_hoisted
from dsv4.generator.device.row_part import Part, chunk_of, first_index, index_of, is_there, kept_bits, load_chunk

LEAST_BOUND, MOST_SCORE = -1e37, 1e30
"""A bound that is none, and the scores above it and up to which :func:`draw_all` can decide."""


@cute.jit
def largest_logit(
    row: cute.Tensor, held: cute.Tensor, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]
) -> tuple[Uint32, Uint32]:
    """The order of this thread's largest logit and the lowest token that has it; order 0 if it has none.

    ``row``, ``held``: ``row_part.chunk_of``. A NaN is the largest.
    """
    order, index = Uint32(0), Uint32(0)
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = chunk_of(row, held, chunk, rank, thread, part)
        best, place = Uint32(0), Int32(0)
        for v in cutlass.range_constexpr(part.chunk_vectors):
            is_here = is_there(chunk, v, rank, thread, part)
            for i in cutlass.range_constexpr(v * part.vector, (v + 1) * part.vector):
                found = order_of(logits[i]) if is_here else Uint32(0)
                place = Int32(i) if found > best else place
                best = found if found > best else best
        token = Uint32(index_of(first_index(chunk, rank, thread, part), place, part))
        is_better = best > order or (best == order and token < index)
        index = token if is_better else index
        order = best if is_better else order
    return order, index


@cute.jit
def peak_of_row(row: cute.Tensor, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]) -> Float32:
    """This thread's largest logit, NaN if it has one, −∞ if it has no logit."""
    peak = Float32(float("-inf"))
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = load_chunk(row, chunk, rank, thread, part, float("-inf"))
        for i in cutlass.range_constexpr(part.chunk):
            peak = cute.arch.fmax(peak, logits[i], nan=True)
    return peak


@cute.jit
def draw_all(
    row: cute.Tensor, inverse: Float32, state: Uint64, rank: Int32, thread: Int32, part: cutlass.Constexpr[Part]
) -> tuple[Float32, Float32, Int32, Float32]:
    """This thread's largest logit (:func:`peak_of_row`), best score, its token and the second best score.

    The scores are relative to 0, as the largest logit of the row is not known yet: :func:`decided`.
    """
    peak = Float32(float("-inf"))
    bound, best, index, second = Float32(LEAST_BOUND), Float32(float("-inf")), Int32(0), Float32(float("-inf"))
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = load_chunk(row, chunk, rank, thread, part, float("-inf"))
        tops = tops_of(logits, part, True)
        for v in cutlass.range_constexpr(part.chunk_vectors):
            peak = cute.arch.fmax(peak, tops[v], nan=True)
        bound, best, index, second = best_of_chunk(
            *(logits, tops, Uint32(ALL), Float32(0.0), inverse, state, bound, best, index, second),
            *(chunk, rank, thread, part),
        )
    return peak, best, index, second


@cute.jit
def decided(
    row: cute.Tensor,
    best: Float32,
    index: Int32,
    second: Float32,
    top: Float32,
    peak: Float32,
    inverse: Float32,
    state: Uint64,
) -> Uint32:
    """The order of the score of a thread's token relative to ``peak``, 0 where it cannot be the row's best.

    ``best``, ``index``, ``second``: :func:`draw_all`'s; ``top``: the largest ``best`` of the row. The order is
    ``NOT_A_NUMBER`` where a token of which no more is known might be the row's best: all scores have then to be
    computed again.

    Of two tokens that may matter, those within 100 of the peak, scores relative to 0 are off by 2^-22 (|``peak``| ·
    ``inverse`` + 140) + 1e-5 each, those relative to the peak by 3e-5; so where they differ by more than ``margin`` the
    larger is the larger.
    """
    margin = cute.arch.fmax(peak * inverse, -(peak * inverse)) * Float32(2.0**-20) + Float32(2e-4)
    least = top - margin
    order = Uint32(0)
    if best >= least:
        logit = Float32(row[index])
        order = order_of(score_of(logit, peak, inverse, gumbel(token_state(state, Uint32(index)))))
    is_known = top > Float32(LEAST_BOUND * 0.1) and top < Float32(MOST_SCORE) and not second >= least
    return order if is_known else Uint32(NOT_A_NUMBER)


@cute.jit
def best_score(
    row: cute.Tensor,
    held: cute.Tensor,
    threshold: Float32,
    last_index: Int32,
    peak: Float32,
    inverse: Float32,
    state: Uint64,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> tuple[Uint32, Uint32]:
    """The order of this thread's best score and the lowest token that has it; order 0 if it has no token.

    ``row``, ``held``: ``row_part.chunk_of``. What is behind ``threshold`` and ``last_index`` is no token
    (``row_part.kept_bits``), but the largest logit is one. ``peak``: the largest logit of the row, finite.
    """
    bound, best, index, second = Float32(LEAST_NOISE), Float32(float("-inf")), Int32(0), Float32(float("-inf"))
    state = not_hoisted(state)
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = chunk_of(row, held, chunk, rank, thread, part)
        kept = Uint32(ALL)
        if threshold > Float32(float("-inf")):
            kept = kept_bits(logits, threshold, last_index, first_index(chunk, rank, thread, part), part)
        bound, best, index, second = best_of_chunk(
            *(logits, tops_of(logits, part, False), kept, peak, inverse, state, bound, best, index, second),
            *(chunk, rank, thread, part),
        )
    order = order_of(best) if best > Float32(float("-inf")) else Uint32(0)
    return order, Uint32(index)
