"""top-k without a sort: which digits the k-th largest logit has, eight bits a round, from the histograms of the CTAs.

A token's place in the order is 56 bits: the 32 of its logit's order, then 24 that are larger for a lower index. A round
counts how many tokens that share the digits found so far have which next digit, the CTAs tell each other their
histograms, and everybody finds the digit at which k is reached. Four rounds find any logit, three more which of equal
ones; most rows need two or three in all, since the search ends where a digit's tokens are all wanted.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from dsv4.generator.device.cluster_words import cluster_sync, send
from dsv4.generator.device.float_order import INFINITY, MINUS_INFINITY, order_of, value_of
from dsv4.generator.device.inline_asm import not_hoisted
from dsv4.generator.device.row_part import Part, chunk_of, first_index, index_of

DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
LOGIT_ROUNDS = 4
INDEX_ROUNDS = 3
LAST_TIE = (1 << (INDEX_ROUNDS * DIGIT_BITS)) - 1
QUADS = DIGITS // 4
LANE_DIGITS = DIGITS // 32


@cute.jit
def last_kept(
    row: cute.Tensor,
    held: cute.Tensor,
    wanted: Int32,
    counts: cute.Tensor,
    exchange: cute.Tensor,
    found: cute.Tensor,
    rank: Int32,
    thread: Int32,
    part: cutlass.Constexpr[Part],
) -> tuple[Float32, Int32]:
    """The logit of the ``wanted``-th largest of the row and the largest index of those equal to it that are kept.

    Equal logits are ordered by index, the lower first; what is behind is dropped by ``row_part.drop_behind``. ``row``,
    ``held``: ``row_part.chunk_of``. The row has ``wanted`` or more, below 2^24, and no NaN. Shared memory, u32:
    ``counts`` [256], ``exchange`` [2, CTAs of the cluster, 256], which nobody reads any more, ``found`` [3].
    """
    # The digits of the wanted-th token and which are known; how many with these are wanted, and how many there are.
    digits, known = Uint32(0), Uint32(0)
    needed, equal = Uint32(wanted), Uint32(LAST_TIE)
    place = Int32(0)
    while place < LOGIT_ROUNDS and equal > needed:
        shift = Uint32(DIGIT_BITS) * Uint32(LOGIT_ROUNDS - 1 - place)
        _clear(counts, thread, part.threads)
        least, most = _number_of(digits), _number_of(digits | ~known)
        for chunk in cutlass.range(part.chunks, unroll=1):
            logits = chunk_of(row, held, chunk, rank, thread, part)
            for i in cutlass.range_constexpr(part.chunk):
                if logits[i] >= least and logits[i] <= most:
                    order = order_of(not_hoisted(logits[i]))
                    if ((order ^ digits) & known) == Uint32(0):  # 0 is between two numbers of order, by its sign
                        _count(counts, order >> shift)
        digit, before, equal = _agree(counts, exchange, found, needed, place, rank, thread, part.threads)
        digits, known, needed = digits | (digit << shift), known | (Uint32(DIGITS - 1) << shift), needed - before
        place = place + 1

    # Digits that were not looked for are 0: all that share the others are kept.
    threshold = _number_of(digits)
    tie_digits, tie_known = Uint32(0), Uint32(0)
    while place < LOGIT_ROUNDS + INDEX_ROUNDS and equal > needed:
        shift = Uint32(DIGIT_BITS) * Uint32(LOGIT_ROUNDS + INDEX_ROUNDS - 1 - place)
        _clear(counts, thread, part.threads)
        for chunk in cutlass.range(part.chunks, unroll=1):
            logits = chunk_of(row, held, chunk, rank, thread, part)
            first = first_index(chunk, rank, thread, part)
            ties = Uint32(0)  # a bit for each logit: whether it has all digits
            for i in cutlass.range_constexpr(part.chunk):
                ties = ties | (Uint32(1 << i) if logits[i] == threshold else Uint32(0))
            while ties != Uint32(0):
                tie = Uint32(LAST_TIE) - Uint32(index_of(first, lowest_bit(ties), part))
                if ((tie ^ tie_digits) & tie_known) == Uint32(0):
                    _count(counts, tie >> shift)
                ties = ties & (ties - Uint32(1))
        digit, before, equal = _agree(counts, exchange, found, needed, place, rank, thread, part.threads)
        tie_digits, needed = tie_digits | (digit << shift), needed - before
        tie_known = tie_known | (Uint32(DIGITS - 1) << shift)
        place = place + 1
    return threshold, Int32(LAST_TIE) - Int32(tie_digits)


@cute.jit
def _number_of(order: Uint32) -> Float32:
    """The number of this order, or the next that is one (not a NaN)."""
    order = order if order > Uint32(MINUS_INFINITY) else Uint32(MINUS_INFINITY)
    return value_of(order if order < Uint32(INFINITY) else Uint32(INFINITY))


@cute.jit
def logit_at(logits: cute.Tensor, place: Int32) -> Float32:
    """``logits[place]``, from registers."""
    logit = logits[0]
    for i in cutlass.range_constexpr(1, cute.size(logits)):
        logit = logits[i] if place == i else logit
    return logit


@cute.jit
def lowest_bit(bits: Uint32) -> Int32:
    """The place of the lowest 1 of ``bits``, which is not 0."""
    return Int32(cute.arch.popc((bits - Uint32(1)) & ~bits))


@cute.jit
def _clear(counts: cute.Tensor, thread: Int32, threads: cutlass.Constexpr[int]) -> None:
    for digit in cutlass.range(thread, DIGITS, threads, unroll=1):
        counts[digit] = Uint32(0)
    cute.arch.sync_threads()


def _count(counts: cute.Tensor, digits: Uint32) -> None:
    digit = Int32(digits & Uint32(DIGITS - 1))
    cute.arch.atomic_add(counts.iterator + digit, Uint32(1), sem="relaxed", scope="cta")


@cute.jit
def _agree(
    counts: cute.Tensor,
    exchange: cute.Tensor,
    found: cute.Tensor,
    needed: Uint32,
    place: Int32,
    rank: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
) -> tuple[Uint32, Uint32, Uint32]:
    """The next digit of the ``needed``-th token of the cluster, how many have a larger one, how many this one."""
    ctas = cute.size(exchange, mode=[1])
    cute.arch.sync_threads()
    merged = cute.make_tensor(counts.iterator, cute.make_layout((DIGITS, 1)))
    if cutlass.const_expr(ctas > 1):
        _tell(counts, exchange[place % 2, rank, None], thread, threads, ctas)
        cluster_sync(ctas)
        everybodys = exchange[place % 2, None, None].iterator
        merged = cute.make_tensor(everybodys, cute.make_layout((DIGITS, ctas)))
    if thread < 32:
        _find(merged, needed, found, thread)
    cute.arch.sync_threads()
    return found[0], found[1], found[2]


@cute.jit
def _tell(
    counts: cute.Tensor,
    own_place: cute.Tensor,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    ctas: cutlass.Constexpr[int],
) -> None:
    """This CTA's histogram to all CTAs, each at ``own_place``; 16 bytes a store."""
    quads = cute.make_tensor(counts.iterator, cute.make_layout((4, QUADS)))
    words = cute.make_rmem_tensor((4,), Uint32)
    for n in cutlass.range(thread, QUADS * ctas, threads, unroll=1):
        cute.autovec_copy(quads[None, n % QUADS], words)
        send([words[i] for i in range(4)], own_place.iterator + n % QUADS * 4, n // QUADS, ctas)


@cute.jit
def _find(merged: cute.Tensor, needed: Uint32, found: cute.Tensor, lane: Int32) -> None:
    """By one warp: the digit whose tokens and those of larger digits are the first to be ``needed`` or more.

    ``merged``: u32 [digits, CTAs]. ``found`` gets the digit, how many have a larger one, and how many have it.
    """
    # Lane 0 has the largest digits.
    quads = cute.make_tensor(merged.iterator, cute.make_layout((4, QUADS, merged.shape[1]), stride=(1, 4, DIGITS)))
    own = cute.make_rmem_tensor((4, LANE_DIGITS // 4), Uint32)
    part = cute.make_rmem_tensor((4,), Uint32)
    own.fill(0)
    first_quad = (31 - lane) * (LANE_DIGITS // 4)
    for cta in cutlass.range(merged.shape[1], unroll=4):  # not all at once: registers are short
        for quad in cutlass.range_constexpr(LANE_DIGITS // 4):
            cute.autovec_copy(quads[None, first_quad + quad, cta], part)
            for i in cutlass.range_constexpr(4):
                own[i, quad] = own[i, quad] + part[i]
    total = Uint32(0)
    for i in cutlass.range_constexpr(LANE_DIGITS):
        total = total + own[i]
    before = lane_sum_upto(total, lane) - total
    for i in cutlass.range_constexpr(LANE_DIGITS - 1, -1, -1):
        if before < needed and needed <= before + own[i]:
            found[0] = Uint32((31 - lane) * LANE_DIGITS + i)
            found[1] = before
            found[2] = own[i]
        before = before + own[i]


@cute.jit
def lane_sum_upto(value: Uint32, lane: Int32) -> Uint32:
    """The sum of the ``value`` of this lane and those before it."""
    for step in cutlass.range_constexpr(5):
        other = cute.arch.shuffle_sync_up(value, 1 << step, mask_and_clamp=0)
        value = value + (other if lane >= 1 << step else Uint32(0))
    return value
