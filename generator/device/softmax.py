"""Online softmax on register fragments: rows of scores come in tiles of columns, a row is shared by four threads.

Formula (Milakov and Gimelshein 2018; Dao 2022), with the scores s not yet scaled and c = softmax_scale · log2(e):

    m' = max(m, max_j s_j)    p_j = 2^(c·s_j − c·m')    l' = l · 2^(c·(m − m')) + Σ_j p_j    O' = O · 2^(c·(m − m'))

``row_max`` holds m (unscaled), ``row_sum`` this thread's part of l: the four parts are added once, in ``finish``.

``scores`` are ``(rows, columns)`` views; all loops are unrolled at trace time. A NaN stays in its row: it passes
through p into l and O. A row without a single key keeps m = −inf and l = 0. ``scale_log2`` has to be positive.

m follows the maximum exactly, unless a caller lets it lag (``rescale_above``): p is then up to 2 to that power, and O
is seldom scaled. With 64 accumulators a thread that was slower by 3 to 7 % on an H100, because the branch costs more
than the products, and rows with one dominant key lose accuracy, because their p is no longer exactly 1.
"""

from __future__ import annotations

import math

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)
CHAINS = 4  # independent partial results per row, to hide the latency of a dependent add or max


@cute.jit
def row_maximum(scores, row: cutlass.Constexpr[int], start: Float32):
    """max(start, max_j scores[row, j]) over the four threads of a row; a NaN among the scores is passed over."""
    return over_threads(own_maximum(scores, row, start))


@cute.jit
def own_maximum(scores, row: cutlass.Constexpr[int], start: Float32):
    """:func:`row_maximum` over the columns of this thread."""
    columns = cute.size(scores, mode=[1])
    partial = [start] * CHAINS
    for j in cutlass.range_constexpr(columns):
        partial[j % CHAINS] = cute.arch.fmax(partial[j % CHAINS], scores[row, j])
    return cute.arch.fmax(cute.arch.fmax(partial[0], partial[1]), cute.arch.fmax(partial[2], partial[3]))


@cute.jit
def over_threads(top: Float32):
    """The largest ``top`` of the four threads of a row."""
    top = cute.arch.fmax(top, cute.arch.shuffle_sync_bfly(top, offset=1))
    return cute.arch.fmax(top, cute.arch.shuffle_sync_bfly(top, offset=2))


@cute.jit
def exponentiate_row(scores, row: cutlass.Constexpr[int], scale_log2: Float32, shift: Float32):
    """scores[row, j] ← 2^(scale_log2·scores[row, j] − shift); returns this thread's sum over j."""
    columns = cute.size(scores, mode=[1])
    partial = [Float32(0.0)] * CHAINS
    for j in cutlass.range_constexpr(columns):
        p = cute.math.exp2(scores[row, j] * scale_log2 - shift, fastmath=True)
        scores[row, j] = p
        partial[j % CHAINS] = partial[j % CHAINS] + p
    return (partial[0] + partial[1]) + (partial[2] + partial[3])


@cute.jit
def online_softmax(
    scores,
    row_max,
    row_sum,
    correction,
    scale_log2: Float32,
    first: cutlass.Constexpr[bool],
    masked: cutlass.Constexpr[bool],
    rescale_above: cutlass.Constexpr[int] = 0,
):
    """One tile of scores: scores ← p, row_max and row_sum updated, ``correction`` ← 2^(c·(m − m')) for the rows of O.

    ``first`` leaves ``correction`` alone (O is still zero). ``masked`` says that a row may consist of −inf only.
    ``rescale_above``: m stays as it is, and ``correction`` 1, until p would be more than 2 to that power.
    """
    rows = cutlass.const_expr(cute.size(scores, mode=[0]))
    maxima = [row_max[row] for row in range(rows)]
    if cutlass.const_expr(rescale_above > 0):
        let_lag(scores, row_max, scale_log2, rescale_above)
    for row in cutlass.range_constexpr(rows):
        before = maxima[row]
        if cutlass.const_expr(rescale_above > 0):
            after = row_max[row]
        else:
            after = row_maximum(scores, row, -Float32.inf if cutlass.const_expr(first) else before)
            row_max[row] = after
        finite = after
        if cutlass.const_expr(masked):
            finite = Float32(0.0) if after == -Float32.inf else after
        shift = finite * scale_log2
        tile_sum = exponentiate_row(scores, row, scale_log2, shift)
        if cutlass.const_expr(first):
            row_sum[row] = tile_sum
        else:
            factor = cute.math.exp2(before * scale_log2 - shift, fastmath=True)
            correction[row] = factor
            row_sum[row] = row_sum[row] * factor + tile_sum


@cute.jit
def let_lag(scores, row_max, scale_log2: Float32, rescale_above: cutlass.Constexpr[int]):
    """``row_max`` of the rows whose maximum has grown by more than ``rescale_above`` powers of two of p.

    Seldom: so the threads of a row ask one another only if one of the warp has seen such a score.
    """
    rows = cutlass.const_expr(cute.size(scores, mode=[0]))
    own = [own_maximum(scores, row, row_max[row]) for row in range(rows)]
    grown = [(own[row] - row_max[row]) * scale_log2 > Float32(rescale_above) for row in range(rows)]
    assert rows == 2, rows
    if cute.arch.vote_any_sync(grown[0] | grown[1]):
        for row in cutlass.range_constexpr(rows):
            top = over_threads(own[row])
            has_grown = (top - row_max[row]) * scale_log2 > Float32(rescale_above)
            row_max[row] = top if has_grown else row_max[row]


@cute.jit
def scale_rows(rows, factor):
    """rows[r, j] ← rows[r, j] · factor[r]."""
    for row in cutlass.range_constexpr(cute.size(rows, mode=[0])):
        for j in cutlass.range_constexpr(cute.size(rows, mode=[1])):
            rows[row, j] = rows[row, j] * factor[row]


@cute.jit
def to_bf16(source, target):
    """target ← bf16(source), compact fragments of one shape.

    In pieces of eight elements: a vector whose length is no power of two would be converted one element at a time.
    """
    pieces = cute.make_layout((8, cute.size(source) // 8))
    assert cute.size(source) == 8 * pieces.shape[1] == cute.size(target), (source.shape, target.shape)
    wide, narrow = cute.make_tensor(source.iterator, pieces), cute.make_tensor(target.iterator, pieces)
    for piece in cutlass.range_constexpr(pieces.shape[1]):
        narrow[None, piece].store(wide[None, piece].load().to(BFloat16))


@cute.jit
def finish(row_max, row_sum, normaliser, lse, scale_log2: Float32, sink):
    """Ends the rows: ``normaliser`` ← 1/(l + 2^(log2(e)·sink − c·m)), ``lse`` ← ln l + softmax_scale·m (natural log).

    ``sink`` is a float32 logit of one more column without a value vector, or None; it never enters ``lse``. A row
    without keys gets normaliser 0 and lse −inf.
    """
    for row in cutlass.range_constexpr(cute.size(row_sum)):
        total = row_sum[row]
        total = total + cute.arch.shuffle_sync_bfly(total, offset=1)
        total = total + cute.arch.shuffle_sync_bfly(total, offset=2)
        shift = row_max[row] * scale_log2
        empty = total == 0.0
        lse[row] = -Float32.inf if empty else (shift + cute.math.log2(total, fastmath=True)) * LN_2
        denominator = total
        if cutlass.const_expr(sink is not None):
            denominator = total + cute.math.exp2(sink * LOG2_E - shift, fastmath=True)
        normaliser[row] = Float32(0.0) if empty else cute.arch.rcp_approx(denominator)
