"""top-k of a small k: the few tokens that can be among the k largest, listed in the first CTA, which draws alone.

Tokens are in groups, a warp's or a part of it. The k-th largest of the groups' maxima is a bound below which none of
the k largest lies, and few others lie above it: for k = 50 of 256 groups about 56 tokens if the large ones lie at
random. All CTAs write what they have above the bound into the first one's shared memory. Whether the list fits does not
depend on the order of arrival, and no more does the result: a token's place is how many are before it, and all sums run
over the places.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32, Uint64

from dsv4.generator.device.cluster_reduce import shuffle_up, warp_largest, whole_of
from dsv4.generator.device.cluster_words import cluster_sync, send
from dsv4.generator.device.filtered_noise import score_of
from dsv4.generator.device.fixed_weight import is_below_share, weight_of
from dsv4.generator.device.float_order import MINUS_INFINITY, order_of, value_of
from dsv4.generator.device.gumbel import gumbel, token_state
from dsv4.generator.device.kept_tokens import lane_sum_upto, logit_at, lowest_bit
from dsv4.generator.device.row_part import Part, chunk_of, first_index, index_of

LEAST_SCALED = -100.0
"""(logit − the largest) / T below which a token weighs nothing beside 1 and its noise, −3.7 to 36.8, cannot help it.

It is behind all tokens that matter, so that leaving it out does not shift their places.
"""


@cute.jit
def send_maxima(order: Uint32, maxima: cute.Tensor, rank: Int32, thread: Int32, lanes: cutlass.Constexpr[int]) -> None:
    """The largest ``order`` of each group of ``lanes`` threads to all CTAs; seen after the next barrier of the cluster.

    ``maxima``: shared memory, u32 [CTAs of the cluster, groups of a CTA].
    """
    ctas = cute.size(maxima, mode=[0])
    for step in cutlass.range_constexpr(5):
        if cutlass.const_expr(1 << step < lanes):
            other = cute.arch.shuffle_sync_bfly(order, 1 << step)
            order = other if other > order else order
    for first in cutlass.range_constexpr(0, ctas, lanes):
        cta = first + thread % lanes
        if cta < ctas:
            send([order], maxima[rank, None].iterator + thread // lanes, cta, ctas)


@cute.jit
def bound_of(maxima: cute.Tensor, wanted: Int32, warp_words: cute.Tensor, thread: Int32) -> Float32:
    """The ``wanted``-th largest of ``maxima`` (shared memory, u32 [groups], as many as threads or fewer), −∞ if none.

    ``warp_words``: shared memory, u32 [warps, 4], which nobody reads any more. One barrier of the CTA.
    """
    groups, warps = cute.size(maxima), cute.size(warp_words, mode=[0])
    quads = cute.make_tensor(maxima.iterator, cute.make_layout((4, groups // 4)))
    lane, warp = thread % 32, thread // 32
    reached = Uint32(MINUS_INFINITY)
    if thread < groups:
        own, upto = maxima[thread], Int32(0)
        others = cute.make_rmem_tensor((4,), Uint32)
        for n in cutlass.range(groups // 4, unroll=4):
            cute.autovec_copy(quads[None, n], others)
            for i in cutlass.range_constexpr(4):
                upto = upto + (Int32(1) if others[i] >= own else Int32(0))
        reached = own if upto >= wanted and own > reached else reached
    reached = cute.arch.warp_redux_sync(reached, "max")
    if lane == 0:
        warp_words[warp, 0] = reached
    cute.arch.sync_threads()
    reached = warp_words[lane % warps, 0]
    return value_of(cute.arch.warp_redux_sync(reached, "max"))


@cute.jit
def collect(
    row: cute.Tensor,
    held: cute.Tensor,
    bound: Float32,
    peak: Float32,
    inverse: Float32,
    own_size: cute.Tensor,
    sizes: cute.Tensor,
    tokens: cute.Tensor,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> Int32:
    """How many tokens of the row are listed: those not below ``bound`` and not hopeless (:data:`LEAST_SCALED`).

    ``row``, ``held``: ``row_part.chunk_of``. ``peak``: the largest logit of the row; ``inverse``: 1/T. Shared memory,
    u32: ``own_size`` [1] is 0; ``sizes`` [CTAs of the cluster]; ``tokens`` [CTAs, the most on the list, 2], of the
    first CTA, gets each CTA's orders and indices in any order, unless they are too many. One barrier of the CTA, one of
    the cluster.
    """
    ctas, most = cute.size(tokens, mode=[0]), cute.size(tokens, mode=[1])
    lane = thread % 32
    for chunk in cutlass.range(part.chunks, unroll=1):
        logits = chunk_of(row, held, chunk, rank, thread, part)
        listed = Uint32(0)  # a bit for each
        for i in cutlass.range_constexpr(part.chunk):
            is_listed = logits[i] >= bound and (logits[i] - peak) * inverse >= Float32(LEAST_SCALED)
            listed = listed | (Uint32(1 << i) if is_listed else Uint32(0))
        number = Uint32(cute.arch.popc(listed))
        warp_number = cute.arch.warp_redux_sync(number, "add")
        if warp_number > Uint32(0):
            place = Uint32(0)
            if lane == 0:
                place = cute.arch.atomic_add(own_size.iterator, warp_number, sem="relaxed", scope="cta")
            place = cute.arch.shuffle_sync(place, 0) + lane_sum_upto(number, lane) - number
            first = first_index(chunk, rank, thread, part)
            while listed != Uint32(0) and place < Uint32(most):  # one or two in most warps that have any
                n = lowest_bit(listed)
                index = Uint32(index_of(first, n, part))
                send([order_of(logit_at(logits, n)), index], tokens[rank, Int32(place), None].iterator, Int32(0), ctas)
                place = place + Uint32(1)
                listed = listed & (listed - Uint32(1))
    cute.arch.sync_threads()
    if thread < ctas:
        send([own_size[0]], sizes.iterator + rank, thread, ctas)
    cluster_sync(ctas)
    size = sizes[lane % ctas]
    return Int32(cute.arch.warp_redux_sync(size if lane < ctas else Uint32(0), "add"))


@cute.jit
def draw_listed(
    sizes: cute.Tensor,
    tokens: cute.Tensor,
    keys: cute.Tensor,
    ranked: cute.Tensor,
    wanted: Int32,
    share: Float32,
    peak: Float32,
    inverse: Float32,
    state: Uint64,
    warp_words: cute.Tensor,
    thread: Int32,
) -> Uint32:
    """The token drawn from the listed ones: top-k, then top-p, then the best score; in the first warp of the CTA.

    ``sizes``, ``tokens``: :func:`collect`'s; the list fits. ``keys``: shared memory, u64 [the most on the list].
    ``ranked``: u32 [the most, 2]. ``share``: top-p, above 0. ``state``: ``gumbel.row_state``. ``warp_words``: u32
    [warps, 4], which nobody reads any more. Four barriers of the CTA.
    """
    ctas, most = cute.size(tokens, mode=[0]), cute.size(tokens, mode=[1])
    warps = cute.size(warp_words, mode=[0])
    lane, warp = thread % 32, thread // 32

    # Each thread takes a token of some CTA and counts how many are before it.
    end, cta, place = Int32(0), Int32(0), Int32(0)
    for r in cutlass.range_constexpr(ctas):
        first, end = end, end + Int32(sizes[r])
        is_here = thread >= first and thread < end
        cta, place = (Int32(r) if is_here else cta), (thread - first if is_here else place)
    order, index = Uint32(0), Uint32(0)
    if thread < end:
        order, index = tokens[cta, place, 0], tokens[cta, place, 1]
    key = (Uint64(order) << Uint64(32)) | Uint64(index ^ Uint32(0xFFFFFFFF))
    if thread < most:
        keys[thread] = key if thread < end else Uint64(0)
    cute.arch.sync_threads()
    before = Int32(0)
    if thread < end:
        pairs = cute.make_tensor(keys.iterator, cute.make_layout((2, most // 2)))
        others = cute.make_rmem_tensor((2,), Uint64)
        for n in cutlass.range((end + 1) // 2, unroll=4):
            cute.autovec_copy(pairs[None, n], others)
            for i in cutlass.range_constexpr(2):
                before = before + (Int32(1) if others[i] > key else Int32(0))
        ranked[before, 0] = order
        ranked[before, 1] = index
    cute.arch.sync_threads()

    # Each thread takes the token at its place.
    is_kept = thread < end and thread < wanted
    logit, index, weight = peak, Uint32(0), Uint64(0)
    if is_kept:
        logit, index = value_of(ranked[thread, 0]), ranked[thread, 1]
        weight = weight_of(logit, peak, inverse)
    upto = weight
    for step in cutlass.range_constexpr(5):
        other_weight = shuffle_up(upto, 1 << step)
        upto = upto + (other_weight if lane >= 1 << step else Uint64(0))
    mass = upto - weight  # before this one
    if lane == 31:
        warp_words[warp, 0] = Uint32(upto)
        warp_words[warp, 1] = Uint32(upto >> Uint64(32))
    cute.arch.sync_threads()
    whole = Uint64(0)
    for w in cutlass.range_constexpr(most // 32):
        in_warp = whole_of(warp_words[w, 0], warp_words[w, 1])
        mass = mass + (in_warp if w < warp else Uint64(0))
        whole = whole + in_warp
    is_kept = is_kept and (share >= Float32(1.0) or thread == 0 or is_below_share(mass, whole, share))
    score = Uint32(0)
    if is_kept:
        score = order_of(score_of(logit, peak, inverse, gumbel(token_state(state, index))))
    score, index = warp_largest(score, index)
    if lane == 0:
        warp_words[warp, 2] = score
        warp_words[warp, 3] = index
    cute.arch.sync_threads()
    score, index = Uint32(0), Uint32(0)
    if lane < warps:
        score, index = warp_words[lane, 2], warp_words[lane, 3]
    _, token = warp_largest(score, index)
    return token
