"""Masks on a warpgroup's 64-row tile of scores, as it lies in the registers of a wgmma accumulator."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32


@cute.jit
def thread_row(thread: Int32):
    """The first of the two rows, of 64, that this thread of the warpgroup holds; the other is eight below."""
    return thread // 32 * 16 + thread % 32 // 4


@cute.jit
def mask_scores(
    scores,
    thread: Int32,
    first_query: Int32,
    first_key: Int32,
    queries: Int32,
    keys: Int32,
    causal: cutlass.Constexpr[bool],
):
    """scores[row, j] ← −inf where key j does not exist or, under a causal mask, lies after the row's query.

    ``scores`` is the ``(2, N/4)`` view of the accumulator of ``thread`` (0 … 127), whose rows start at
    ``first_query`` and whose columns start at ``first_key``.
    """
    first_column = first_key + thread % 4 * 2
    for row in cutlass.range_constexpr(2):
        limit = keys - first_column
        if cutlass.const_expr(causal):
            last_seen = first_query + thread_row(thread) + 8 * row + keys - queries
            limit = cutlass.min(limit, last_seen + 1 - first_column)
        for j in cutlass.range_constexpr(cute.size(scores, mode=[1])):
            column = j % 2 + j // 2 * 8
            scores[row, j] = -Float32.inf if column >= limit else scores[row, j]
