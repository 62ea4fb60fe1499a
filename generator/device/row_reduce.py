"""Sums over rows that are spread over a group of threads ("lanes"): within a warp, then over the warps of the row."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute

from dsv4.generator.device.vector_io import to_float32

WARP_LANES = 32


def warps_per_row(lanes: int) -> int:
    """Warps that share one row; 1 where a warp or a part of one owns it. ``lanes``: threads per row.

    Raises ``ValueError`` where ``lanes`` is neither a power of two up to 32 nor a multiple of 32.
    """
    part_of_warp = 0 < lanes < WARP_LANES and lanes & (lanes - 1) == 0
    if not part_of_warp and (lanes <= 0 or lanes % WARP_LANES):
        raise ValueError(f"threads_per_row: found {lanes}; valid: a power of two up to 32, or a multiple of 32")
    return max(1, lanes // WARP_LANES)


def partials_stride(lanes: int, shuffle_lanes: int) -> int:
    """Floats from one row's partial sums (one for ``shuffle_lanes`` lanes) to the next row's: whole 16-byte reads."""
    return -(-lanes // shuffle_lanes // 4) * 4


def tree_sum(terms: list[cutlass.Float32]) -> cutlass.Float32:
    """The sum of ``terms`` by halves: the longest chain of additions is log2 of their number."""
    while len(terms) > 1:
        pairs = [terms[i] + terms[i + 1] for i in range(0, len(terms) - 1, 2)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]


@cute.jit
def sum_of_squares(fragment: cute.Tensor) -> cutlass.Float32:
    """Σ v² over this thread's elements, in float32.

    Four running sums, so that the chain of dependent additions is a quarter as long. ``fragment``: at least 4 elements.
    """
    values = to_float32(fragment).load()
    squares = values * values
    sums = [squares[i] for i in range(4)]
    for i in cutlass.range_constexpr(4, cute.size(fragment)):
        sums[i % 4] = sums[i % 4] + squares[i]
    return tree_sum(sums)


@cute.jit
def sum_over_lanes(value: cutlass.Float32, lanes: cutlass.Constexpr[int]) -> cutlass.Float32:
    """The sum over the aligned group of ``lanes`` (1 … 32) lanes that this thread belongs to, in every one of them."""
    return cute.arch.warp_reduction_sum(value, threads_in_group=lanes)


@cute.jit
def sum_over_row(
    values: list[cutlass.Float32],
    partials: cute.Tensor,
    lanes: cutlass.Constexpr[int],
    shuffle_lanes: cutlass.Constexpr[int],
    group: cutlass.Int32,
    lane: cutlass.Int32,
) -> list[cutlass.Float32]:
    """The row's sum of every thread's value, in each thread of the row; for several rows of one thread at once.

    ``values``: this thread's value for each of its rows. ``partials``: shared memory, float32, shape (rows of a thread,
    groups of the CTA, :func:`partials_stride`), not in use. Shuffles add ``shuffle_lanes`` lanes; then, after one
    barrier of the whole CTA, each thread adds the row's partial sums itself, in the same order, from broadcast 16-byte
    reads: shorter than a second round of shuffles, and no second barrier. Fewer ``shuffle_lanes`` mean fewer shuffles
    and more reads.
    """
    sums = [sum_over_lanes(value, shuffle_lanes) for value in values]
    if lane % shuffle_lanes == 0:
        for i in cutlass.range_constexpr(len(sums)):
            partials[i, group, lane // shuffle_lanes] = sums[i]
    cute.arch.sync_threads()
    totals = []
    for i in cutlass.range_constexpr(len(sums)):
        published = cute.make_rmem_tensor((partials_stride(lanes, shuffle_lanes),), cutlass.Float32)
        cute.autovec_copy(partials[i, group, None], published)
        totals.append(tree_sum([published[k] for k in range(lanes // shuffle_lanes)]))
    return totals
