"""The softmax warpgroups of attention on sm_100: S from TMEM, P back into the columns of S, row statistics on the side.

One warpgroup works on one query tile of 128 rows, one thread on one row.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from dsv4.generator.device.sm100_softmax import (
    MINUS_INFINITY,
    exponentials,
    finite_or_zero,
    hide_keys,
    rescale_factor,
    row_maximum,
    scale_to_base_2,
    scaled_scores,
)
from dsv4.generator.device.sm100_tmem import (
    LANES,
    copy_width,
    fence_after_wait,
    fence_before_arrive,
    load_row,
    make_row_fragment,
    rows_view,
    store_row,
    wait_loads,
    wait_stores,
)

BRING_UP_STAGES = ("scores", "identity", "online")
"""How much of the softmax a kernel has: S itself as the output; P = scaled S; all (docs/notes/fmha_sm100.md)."""


@cute.jit
def base_2_scale(softmax_scale: Float32, stage: cutlass.Constexpr[str]) -> Float32:
    """What S is multiplied by. S is made of −Q where the scale is negative, so the factor never is."""
    if cutlass.const_expr(stage == "online"):
        factor = scale_to_base_2(softmax_scale)
    else:
        factor = cutlass.max(softmax_scale, -softmax_scale)
    return factor


@cute.jit
def send_statistics(
    statistics: cute.Tensor,
    stat_full: cute.Pointer,
    stat_empty: cute.Pointer,
    message: Int32,
    first: Float32,
    second: Float32,
    with_second: cutlass.Constexpr[bool],
):
    """Message ``message`` to the correction warpgroup: this thread's row of ``statistics`` (2,) in shared memory."""
    cute.arch.mbarrier_wait(stat_empty, (message & 1) ^ 1)
    statistics[0] = first
    if cutlass.const_expr(with_second):
        statistics[1] = second
    cute.arch.mbarrier_arrive(stat_full)


@cute.jit
def softmax_tile(
    scores_tmem: cute.Pointer,
    weights_tmem: cute.Pointer,
    tile_n: cutlass.Constexpr[int],
    s_full: cute.Pointer,
    p_full: cute.Pointer,
    stat_full: cute.Pointer,
    stat_empty: cute.Pointer,
    statistics: cute.Tensor,
    thread: Int32,
    tile: Int32,
    visible: Int32,
    scale_log2: Float32,
    reference: Float32,
    row_sum: Float32,
    unmasked: Int32,
    stage: cutlass.Constexpr[str],
    emulated: cutlass.Constexpr[int],
):
    """One row of one key tile: read S, write P, tell the correction by how much O has to shrink.

    ``scores_tmem`` and ``weights_tmem``: first columns of this warpgroup's S (tile_n columns) and P (tile_n / 2);
    in the stage "scores" the latter is O's, of tile_n columns.
    ``visible``: keys that the row sees, counted from key 0. Returns the row's new ``(reference, row_sum)``.
    """
    cute.arch.mbarrier_wait(s_full, tile & 1)
    fence_after_wait()
    scores = make_row_fragment(tile_n)
    load_row(rows_view(scores_tmem, tile_n), scores, thread)
    wait_loads()
    if tile >= unmasked:
        hide_keys(scores, visible - tile * tile_n)

    factor = Float32(1.0)
    subtracted = Float32(0.0)
    if cutlass.const_expr(stage == "online"):
        new_reference = cute.arch.fmax(reference, row_maximum(scores) * scale_log2)
        subtracted = finite_or_zero(new_reference)
        factor = rescale_factor(reference, subtracted)
        reference = new_reference
    if tile > 0:
        send_statistics(statistics, stat_full, stat_empty, tile - 1, factor, factor, False)
    row_sum = row_sum * factor

    width = cutlass.const_expr(copy_width(tile_n))
    packed = make_row_fragment(tile_n // 2)
    for piece in cutlass.range_constexpr(tile_n // width):
        part = cute.make_tensor(scores.iterator + piece * width, cute.make_layout(width))
        cells = cute.make_tensor(packed.iterator + piece * (width // 2), cute.make_layout(width // 2))
        if cutlass.const_expr(stage == "scores"):
            # The output is this tile's S itself; the last tile's is the one that stays.
            store_row(part, rows_view(weights_tmem + piece * width, width), thread)
        if cutlass.const_expr(stage == "online"):
            row_sum = exponentials(part, cells, scale_log2, subtracted, row_sum, emulated)
        else:
            row_sum = scaled_scores(part, cells, scale_log2, row_sum)
        if cutlass.const_expr(stage != "scores"):
            store_row(cells, rows_view(weights_tmem + piece * (width // 2), width // 2), thread)
    wait_stores()
    fence_before_arrive()
    cute.arch.mbarrier_arrive(p_full)
    return reference, row_sum


@cute.jit
def softmax_rows(
    scores_tmem: cute.Pointer,
    weights_tmem: cute.Pointer,
    tile_n: cutlass.Constexpr[int],
    s_full: cute.Pointer,
    p_full: cute.Pointer,
    stat_full: cute.Pointer,
    stat_empty: cute.Pointer,
    statistics: cute.Tensor,
    thread: Int32,
    visible: Int32,
    unmasked: Int32,
    tiles: Int32,
    scale_log2: Float32,
    stage: cutlass.Constexpr[str],
    emulated: cutlass.Constexpr[int] = 0,
):
    """One row over key tiles 0 … tiles − 1, of which the first ``unmasked`` need no mask. See :func:`softmax_tile`.

    The barriers are those of this warpgroup. The last message carries the row's sum and reference. ``emulated``: see
    ``sm100_softmax.exponentials``.
    """
    assert stage in BRING_UP_STAGES, f"stage: found {stage}; valid: {', '.join(BRING_UP_STAGES)}"
    reference = Float32(MINUS_INFINITY)
    row_sum = Float32(0.0)
    for tile in cutlass.range(tiles, unroll=1):
        reference, row_sum = softmax_tile(
            scores_tmem, weights_tmem, tile_n, s_full, p_full, stat_full, stat_empty, statistics, thread,
            tile, visible, scale_log2, reference, row_sum, unmasked, stage, emulated,
        )  # fmt: skip
    send_statistics(statistics, stat_full, stat_empty, tiles - 1, row_sum, reference, True)


def statistics_row(base: cute.Pointer, group: int | Int32, thread: Int32) -> cute.Tensor:
    """The two float32 of row ``thread`` of query tile ``group``: (2,), with a stride that avoids bank conflicts."""
    return cute.make_tensor(base + group * 2 * LANES + thread, cute.make_layout(2, stride=LANES))
