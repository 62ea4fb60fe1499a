"""The MMA warp of attention on sm_100: S = Q·Kᵀ into TMEM, O += P·V with P read from TMEM.

P lies in the columns of the S that it came from. That is safe because the MMAs of a warp run in the order of issue and
S of the next key tile is issued after P·V of this one, and because P·V waits until the softmax has read all of S.

Order for W query tiles (shown for W = 2; S0(j) is the product of query tile 0 and key tile j):

    S0(0) S1(0) | PV0(0) S0(1) PV1(0) S1(1) | PV0(1) S0(2) PV1(1) S1(2) | … | PV0(n−1) PV1(n−1)

so that the softmax of one query tile runs under the products of the other.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, pipeline
from cutlass.cute.nvgpu import tcgen05

from dsv4.generator.device.sm100_tmem import commit, fence_after_wait


@cute.jit
def multiply(mma: cute.TiledMma, result: cute.Tensor, a: cute.Tensor, b: cute.Tensor, accumulate: Boolean):
    """``result`` (+)= a·bᵀ over all K blocks of the fragments; the first block overwrites unless ``accumulate``."""
    blocks = cute.size(a, mode=[2])
    assert blocks == cute.size(b, mode=[2]), f"K blocks of A and B differ: {a.layout} and {b.layout}"
    mma = cutlass.new_from_mlir_values(mma, cutlass.extract_mlir_values(mma))  # set() below stays inside this call
    for block in cutlass.range_constexpr(blocks):
        mma.set(tcgen05.Field.ACCUMULATE, accumulate if block == 0 else True)
        cute.gemm(mma, result, a[None, None, block], b[None, None, block], result)


@cute.jit
def issue_scores(
    mma: cute.TiledMma,
    query: cute.Tensor,
    keys: cute.Tensor,
    scores: cutlass.Constexpr,
    group: cutlass.Constexpr[int],
    slot: Int32,
    s_full: cute.Pointer,
):
    """S of query tile ``group`` and the key tile in ``slot``; ``s_full`` fires when it, and all before it, is done."""
    multiply(mma, scores[group], query[None, None, None, group], keys[None, None, None, slot], False)
    commit(s_full + group)


@cute.jit
def multiply_tiles(
    qk_mma: cute.TiledMma,
    pv_mma: cute.TiledMma,
    query: cute.Tensor,
    keys: cute.Tensor,
    values: cute.Tensor,
    scores: cutlass.Constexpr,
    weights: cutlass.Constexpr,
    outputs: cutlass.Constexpr,
    q_full: cute.Pointer,
    k_full: cute.Pointer,
    k_empty: cute.Pointer,
    v_full: cute.Pointer,
    v_empty: cute.Pointer,
    s_full: cute.Pointer,
    p_full: cute.Pointer,
    o_ready: cute.Pointer,
    o_final: cute.Pointer,
    tiles: Int32,
    stages: cutlass.Constexpr[int],
    with_values: cutlass.Constexpr[bool],
):
    """All products of one CTA over key tiles 0 … tiles − 1 (tiles ≥ 1).

    ``query`` (MMA, M, K, W), ``keys`` and ``values`` (MMA, N, K, slot): shared-memory fragments. ``scores[w]``,
    ``weights[w]`` and ``outputs[w][piece]``: TMEM fragments of query tile w; a piece is one pass over the columns of V.
    Phases: product j of S, of P and of O is phase j of its barrier, so its parity is j & 1.
    """
    groups = cutlass.const_expr(len(scores))
    key_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, stages)
    value_state = pipeline.make_pipeline_state(pipeline.PipelineUserType.Consumer, stages)

    cute.arch.mbarrier_wait(k_full + key_state.index, key_state.phase)
    for group in cutlass.range_constexpr(groups):
        cute.arch.mbarrier_wait(q_full + group, 0)
        issue_scores(qk_mma, query, keys, scores, group, key_state.index, s_full)
    commit(k_empty + key_state.index)
    key_state.advance()

    for tile in cutlass.range(1, tiles, unroll=1):
        for group in cutlass.range_constexpr(groups):
            issue_outputs(
                pv_mma, weights, values, outputs, group, value_state, v_full, v_empty, p_full, o_ready,
                tile - 1, with_values,
            )  # fmt: skip
            if cutlass.const_expr(group == 0):
                # Not before: the load brings this K after V, whose slots the products above have to give back.
                cute.arch.mbarrier_wait(k_full + key_state.index, key_state.phase)
            issue_scores(qk_mma, query, keys, scores, group, key_state.index, s_full)
        commit(k_empty + key_state.index)
        key_state.advance()
        for _ in cutlass.range_constexpr(len(outputs[0])):
            value_state.advance()

    for group in cutlass.range_constexpr(groups):
        issue_outputs(
            pv_mma, weights, values, outputs, group, value_state, v_full, v_empty, p_full, o_ready,
            tiles - 1, with_values,
        )  # fmt: skip
        commit(o_final + group)


@cute.jit
def issue_outputs(
    mma: cute.TiledMma,
    weights: cutlass.Constexpr,
    values: cute.Tensor,
    outputs: cutlass.Constexpr,
    group: cutlass.Constexpr[int],
    value_state: pipeline.PipelineState,
    v_full: cute.Pointer,
    v_empty: cute.Pointer,
    p_full: cute.Pointer,
    o_ready: cute.Pointer,
    tile: Int32,
    with_values: cutlass.Constexpr[bool],
):
    """O (+)= P·V of query tile ``group`` and key tile ``tile``, in one pass for each piece of V's columns.

    The first key tile overwrites O: the columns hold whatever the CTA before left there. Each slot of V is given back
    by the last query tile that reads it. ``value_state`` stands at the tile's first piece and is not moved.
    """
    last_group = cutlass.const_expr(group == len(weights) - 1)
    cute.arch.mbarrier_wait(p_full + group, tile & 1)
    if cutlass.const_expr(with_values):
        cute.arch.mbarrier_wait(o_ready + group, tile & 1)
    fence_after_wait()
    state = value_state.clone()
    for piece in cutlass.range_constexpr(len(outputs[group])):
        cute.arch.mbarrier_wait(v_full + state.index, state.phase)
        if cutlass.const_expr(with_values):
            multiply(mma, outputs[group][piece], weights[group], values[None, None, None, state.index], tile > 0)
        if cutlass.const_expr(last_group):
            commit(v_empty + state.index)
        state.advance()
