"""The best score of a thread's tokens, with a logarithm for those few only whose noise can be enough.

A token's noise is −log(−log u) ≤ −log w, w = 1 − u, and its score is its scaled logit x and its noise. Once some token
of the row is known to have a score of b, another can win only where −log w ≥ b − x, that is w ≤ exp(x − b). So a vector
gets the bound of its largest logit, as a 32-bit integer, and a token is looked at further only where the upper bits of
its mixed state, which are u's, are no smaller than the bound's complement. b is shared by the warp after each chunk. In
the first chunk every token gets its promise x − log w, each lane computes the score of its most promising token, and
the best of these is b.

What is left out is behind b by more than all roundings: it lies MARGIN + |b| 2^-16 and a share of 2^-17 of |x| below
(in units of log 2), where b, x and the exponential are off by 2^-21 of their size at most, the noise by 4e-6, and the
last of the upper bits by the final shift, which is left out; a promise is off by 2^-18 of its size, for the place in
its last bits. So the best score and its lowest token are those of all tokens.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32, Uint64

from dsv4.generator.device.float_order import float32_bits, float32_of, order_of, value_of
from dsv4.generator.device.gumbel import LN_2, MIX_1, MIX_2, advanced, gumbel, token_state
from dsv4.generator.device.kept_tokens import logit_at, lowest_bit
from dsv4.generator.device.row_part import Part, first_index, index_of, offset_of

LOG2_E = 1.4426950408889634
MARGIN = 2.0**-9
BOUND_ERROR, SCALED_ERROR, PROMISE_ERROR = 2.0**-16, 2.0**-17, 2.0**-14
LEAST_W = 2.0**-21.5
"""In units of 2^-32 no more than any w."""
MOST_BITS = 4294967040.0
"""The largest float32 below 2^32."""
ALL = 0xFFFFFFFF
"""Every token's bit."""
PLACES = 31
"""The last bits of a float32, which can hold a token's place in its chunk."""
LEAST_NOISE = -4.0
"""No noise is smaller: −log(53 log 2) is −3.61."""


@cute.jit
def score_of(logit: Float32, reference: Float32, inverse: Float32, noise: Float32) -> Float32:
    """(``logit`` − ``reference``) · ``inverse`` + ``noise``, the product not rounded."""
    return cute.arch.inline_ptx(
        "fma.rn.f32 {$w0}, {$r0}, {$r1}, {$r2};",
        write_only_types=[Float32],
        read_only_args=[logit - reference, inverse, noise],
    )


@cute.jit
def best_of_chunk(
    logits: cute.Tensor,
    tops: cute.Tensor,
    taken: Uint32,
    reference: Float32,
    inverse: Float32,
    state: Uint64,
    bound: Float32,
    best: Float32,
    index: Int32,
    second: Float32,
    chunk: Int32,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> tuple[Float32, Float32, Int32, Float32]:
    """``bound``, ``best``, ``index`` and ``second`` with the tokens of this chunk, which all threads of a warp pass.

    ``logits``: float32 [part.chunk] in registers; a NaN or −∞ is no token, nor is one without its bit of ``taken``.
    ``tops``: float32 [part.chunk_vectors], no smaller than any of the vector's, NaN not counting. ``reference``: what
    scores are relative to (:func:`score_of`). ``state``: ``gumbel.row_state``. ``bound``: a score that the row's best
    reaches, finite, the same in all lanes. ``best``, ``index``: the thread's best score (−∞ for none) and the lowest
    token that has it; ``second``: the largest score of its other tokens, of those at least that are not behind
    ``bound`` by more than the margin.
    """
    first = first_index(chunk, rank, thread, part)
    if cutlass.const_expr(part.chunks == 1):
        bound, best, index, chances = _promising(logits, taken, reference, inverse, state, bound, first, part)
    else:
        chances = Uint32(0)  # a bit for each token
        if chunk == 0:
            bound, best, index, chances = _promising(logits, taken, reference, inverse, state, bound, first, part)
        else:
            chances = taken & _possible(tops, reference, inverse, state, bound, first, part)
    while chances != Uint32(0):
        n = lowest_bit(chances)
        chances = chances & (chances - Uint32(1))
        logit = logit_at(logits, n)
        if logit > Float32(float("-inf")):
            token = index_of(first, n, part)
            noise = gumbel(token_state(state, Uint32(token)))
            score = score_of(logit, reference, inverse, noise)
            is_better = score > best or (score == best and token < index)
            second = cute.arch.fmax(second, best if is_better else score)
            index = token if is_better else index
            best = score if is_better else best
    if cutlass.const_expr(part.chunks > 1):
        bound = cute.arch.fmax(bound, _warp_largest(best))
    return bound, best, index, second


@cute.jit
def tops_of(logits: cute.Tensor, part: cutlass.Constexpr[Part], nan: cutlass.Constexpr[bool]) -> cute.Tensor:
    """Each vector's largest logit, float32 [part.chunk_vectors]; NaN if it has one where ``nan`` is set."""
    tops = cute.make_rmem_tensor((part.chunk_vectors,), Float32)
    for v in cutlass.range_constexpr(part.chunk_vectors):
        top = Float32(float("-inf"))
        for i in cutlass.range_constexpr(part.vector):
            top = cute.arch.fmax(top, logits[v * part.vector + i], nan=nan)
        tops[v] = top
    return tops


@cute.jit
def _possible(
    tops: cute.Tensor,
    reference: Float32,
    inverse: Float32,
    state: Uint64,
    bound: Float32,
    first: Int32,
    part: cutlass.Constexpr[Part],
) -> Uint32:
    """A bit for each token of a chunk whose noise may be enough for its vector's largest logit to reach ``bound``."""
    first_state = token_state(state, Uint32(first))
    base = Float32(32.0 + MARGIN) + cute.arch.fmax(bound, -bound) * Float32(BOUND_ERROR) - bound * Float32(LOG2_E)
    chances = Uint32(0)
    for v in cutlass.range_constexpr(part.chunk_vectors):
        scaled = (tops[v] - reference) * inverse
        exponent = cute.arch.fmax(
            scaled * Float32(LOG2_E * (1 + SCALED_ERROR)) + base, scaled * Float32(LOG2_E * (1 - SCALED_ERROR)) + base
        )
        most = Uint32(cute.arch.fmin(cute.math.exp2(exponent, fastmath=True), Float32(MOST_BITS)))
        least = (most + Uint32(1)) ^ Uint32(0xFFFFFFFF)
        for i in cutlass.range_constexpr(v * part.vector, (v + 1) * part.vector):
            is_chance = _upper_bits(advanced(first_state, offset_of(i, part))) >= least
            chances = chances | (Uint32(1 << i) if is_chance else Uint32(0))
    return chances


@cute.jit
def _promising(
    logits: cute.Tensor,
    taken: Uint32,
    reference: Float32,
    inverse: Float32,
    state: Uint64,
    bound: Float32,
    first: Int32,
    part: cutlass.Constexpr[Part],
) -> tuple[Float32, Float32, Int32, Uint32]:
    """What a warp begins with: the larger of ``bound`` and the best score of its lanes' most promising tokens, this
    lane's score and token, and a bit for each other token of its chunk that promises as much.

    A promise is x − log w of a w that is no larger than u's.
    """
    first_state = token_state(state, Uint32(first))
    promises = cute.make_rmem_tensor((part.chunk,), Float32)
    most = Float32(float("-inf"))
    for i in cutlass.range_constexpr(part.chunk):
        upper = _upper_bits(advanced(first_state, offset_of(i, part)))
        w = cute.arch.fmax(Float32(upper ^ Uint32(0xFFFFFFFF)) - Float32(1.5), Float32(LEAST_W))
        surprise = Float32(32.0) - cute.math.log2(w, fastmath=True)
        promise = (logits[i] - reference) * inverse + surprise * Float32(LN_2)
        # The place in the last bits: −∞ becomes a NaN or stays, and either is no token.
        placed = float32_of((float32_bits(promise) & Uint32(~PLACES & 0xFFFFFFFF)) | Uint32(i))
        promises[i] = placed if (taken & Uint32(1 << i)) != Uint32(0) else Float32(float("-inf"))
        most = cute.arch.fmax(most, promises[i])
    score, token, place = Float32(float("-inf")), Int32(0), Int32(0)
    if most > Float32(float("-inf")):
        place = Int32(float32_bits(most) & Uint32(PLACES))
        token = index_of(first, place, part)
        score = score_of(logit_at(logits, place), reference, inverse, gumbel(token_state(state, Uint32(token))))
    bound = cute.arch.fmax(bound, _warp_largest(score))
    least = bound - Float32(MARGIN) - cute.arch.fmax(bound, -bound) * Float32(PROMISE_ERROR)
    others = Uint32(0)
    for i in cutlass.range_constexpr(part.chunk):
        others = others | (Uint32(1 << i) if promises[i] >= least and place != i else Uint32(0))
    return bound, score, token, others


@cute.jit
def _upper_bits(state: Uint64) -> Uint32:
    """The upper 32 bits of ``gumbel.mixed(state)``, of which the last may be off."""
    x = (state ^ (state >> Uint64(30))) * Uint64(MIX_1)
    return Uint32(((x ^ (x >> Uint64(27))) * Uint64(MIX_2)) >> Uint64(32))


@cute.jit
def _warp_largest(value: Float32) -> Float32:
    return value_of(cute.arch.warp_redux_sync(order_of(value), "max"))
