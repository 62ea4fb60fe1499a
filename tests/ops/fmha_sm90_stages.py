"""The ladder on which sm_90a attention was built, from the same device functions: QK, identity softmax, online softmax.

Not a test module. One warpgroup attends 64 queries of one head at a time; a load warp feeds it. What the shipped
kernel adds (overlap, turns, masks, persistence, the epilogue through shared memory) is left out on purpose, so that a
failure here is one of the ring, of an operand layout or of the softmax.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import warpgroup
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import sm90_mask, sm90_ring, sm90_tma, sm90_wgmma, softmax

STAGES = ("qk", "identity", "online")


@cute.kernel
def stage_kernel(
    q_atom,
    q,
    k_atom,
    k,
    v_atom,
    v,
    out: cute.Tensor,
    scale: Float32,
    stage: cutlass.Constexpr,
    head_dim: cutlass.Constexpr,
    tile_n: cutlass.Constexpr,
    slots: cutlass.Constexpr,
):
    thread, _, _ = cute.arch.thread_idx()
    query_tile, head, _ = cute.arch.block_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    keys = k.shape[0]
    tiles = cute.ceil_div(keys, tile_n)
    smem = SmemAllocator()
    layouts = [sm90_wgmma.k_major_smem_layout(rows, head_dim, count) for rows, count in ((64, 1), (tile_n, slots))]
    smem_q = smem.allocate_tensor(BFloat16, layouts[0].outer, 1024, layouts[0].inner)
    smem_k = smem.allocate_tensor(BFloat16, layouts[1].outer, 1024, layouts[1].inner)
    smem_v = smem.allocate_tensor(BFloat16, layouts[1].outer, 1024, layouts[1].inner)
    q_full, q_empty = smem.allocate_array(Int64, 1), smem.allocate_array(Int64, 1)
    k_full, k_empty = smem.allocate_array(Int64, slots), smem.allocate_array(Int64, slots)
    v_full, v_empty = smem.allocate_array(Int64, slots), smem.allocate_array(Int64, slots)
    if warp == 0:
        with cute.arch.elect_one():
            sm90_ring.init_ring(q_full, q_empty, 1, 4)
            sm90_ring.init_ring(k_full, k_empty, slots, 4)
            sm90_ring.init_ring(v_full, v_empty, slots, 4)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    slot, phase = Int32(0), Int32(0)
    if warp == 4:  # the load warp
        q_rows = cute.local_tile(q[None, None, head, 0], (64, head_dim), (None, 0))
        k_rows = cute.local_tile(k[None, None, head, 0], (tile_n, head_dim), (None, 0))
        v_rows = cute.local_tile(v[None, None, head, 0], (tile_n, head_dim), (None, 0))
        _, q_source, q_target = sm90_tma.tile_copy(q_atom, smem_q, q_rows)
        _, k_source, k_target = sm90_tma.tile_copy(k_atom, smem_k, k_rows)
        _, v_source, v_target = sm90_tma.tile_copy(v_atom, smem_v, v_rows)
        sm90_ring.acquire(q_full, q_empty, Int32(0), Int32(0), 64 * head_dim * 2)
        cute.copy(q_atom, q_source[None, query_tile], q_target[None, 0], tma_bar_ptr=q_full)
        for tile in cutlass.range(tiles, unroll=1):
            sm90_ring.acquire(k_full, k_empty, slot, phase, tile_n * head_dim * 2)
            cute.copy(k_atom, k_source[None, tile], k_target[None, slot], tma_bar_ptr=k_full + slot)
            if cutlass.const_expr(stage != "qk"):
                sm90_ring.acquire(v_full, v_empty, slot, phase, tile_n * head_dim * 2)
                cute.copy(v_atom, v_source[None, tile], v_target[None, slot], tma_bar_ptr=v_full + slot)
            slot, phase = sm90_ring.next_position(slot, phase, slots)
    if warp < 4:  # the warpgroup that computes
        qk_mma, pv_mma = sm90_wgmma.tiled_mma_ss(tile_n), sm90_wgmma.tiled_mma_rs(head_dim)
        qk_thread, pv_thread = qk_mma.get_slice(thread), pv_mma.get_slice(thread)
        q_operand = qk_thread.make_fragment_A(qk_thread.partition_A(smem_q))[None, None, None, 0]
        k_operand = qk_thread.make_fragment_B(qk_thread.partition_B(smem_k))
        v_operand = pv_thread.make_fragment_B(pv_thread.partition_B(sm90_wgmma.transposed(smem_v)))
        scores, acc_o = sm90_wgmma.accumulator(tile_n), sm90_wgmma.accumulator(head_dim)
        p = cute.make_rmem_tensor(scores.layout, BFloat16)
        p_operand = sm90_wgmma.as_operand_a(p, pv_thread, tile_n)
        score_rows, o_rows = sm90_wgmma.rows_of(scores), sm90_wgmma.rows_of(acc_o)
        row_max, row_sum, correction, lse = [cute.make_rmem_tensor((2,), Float32) for _ in range(4)]
        acc_o.fill(0.0)
        row_max.fill(-Float32.inf)
        row_sum.fill(0.0)
        sm90_ring.wait_full(q_full, Int32(0), Int32(0))
        for tile in cutlass.range(tiles, unroll=1):
            sm90_ring.wait_full(k_full, slot, phase)
            sm90_wgmma.issue(qk_mma, scores, q_operand, k_operand[None, None, None, slot], False)
            warpgroup.wait_group(0)
            sm90_ring.release(k_empty, slot)
            if cutlass.const_expr(stage == "qk"):
                store_rows(score_rows, out, head, query_tile * 64, tile * tile_n, scale, thread)
            else:
                if cutlass.const_expr(stage == "online"):
                    sm90_mask.mask_scores(score_rows, thread, query_tile * 64, tile * tile_n, q.shape[0], keys, False)
                    softmax.online_softmax(
                        score_rows, row_max, row_sum, correction, scale * softmax.LOG2_E, False, True
                    )
                    softmax.scale_rows(o_rows, correction)
                softmax.to_bf16(scores, p)
                sm90_ring.wait_full(v_full, slot, phase)
                sm90_wgmma.issue(pv_mma, acc_o, p_operand, v_operand[None, None, None, slot], True)
                warpgroup.wait_group(0)
                sm90_ring.release(v_empty, slot)
            slot, phase = sm90_ring.next_position(slot, phase, slots)
        if cutlass.const_expr(stage == "identity"):
            store_rows(o_rows, out, head, query_tile * 64, Int32(0), scale, thread)
        if cutlass.const_expr(stage == "online"):
            softmax.finish(row_max, row_sum, correction, lse, scale * softmax.LOG2_E, None)
            softmax.scale_rows(o_rows, correction)
            store_rows(o_rows, out, head, query_tile * 64, Int32(0), Float32(1.0), thread)


@cute.jit
def store_rows(rows, out, head: Int32, first_row: Int32, first_column: Int32, factor: Float32, thread: Int32):
    """out[head, row, column] ← factor · rows, straight from an accumulator's registers to float32 global memory."""
    for r in cutlass.range_constexpr(2):
        row = first_row + sm90_mask.thread_row(thread) + 8 * r
        for j in cutlass.range_constexpr(cute.size(rows, mode=[1])):
            column = first_column + thread % 4 * 2 + j % 2 + j // 2 * 8
            if row < out.shape[1] and column < out.shape[2]:
                out[head, row, column] = rows[r, j] * factor


@cute.jit
def launch(
    q: cute.Tensor,
    k: cute.Tensor,
    v: cute.Tensor,
    out: cute.Tensor,
    scale: Float32,
    stage: cutlass.Constexpr,
    head_dim: cutlass.Constexpr,
    tile_n: cutlass.Constexpr,
    slots: cutlass.Constexpr,
    stream,
):
    q_atom, q_tiled = sm90_tma.load_atom(q, 64, head_dim)
    k_atom, k_tiled = sm90_tma.load_atom(k, tile_n, head_dim)
    v_atom, v_tiled = sm90_tma.load_atom(v, tile_n, head_dim)
    stage_kernel(
        q_atom, q_tiled, k_atom, k_tiled, v_atom, v_tiled, out, scale, stage, head_dim, tile_n, slots
    ).launch(grid=(cute.ceil_div(q.shape[1], 64), q.shape[2], 1), block=(160, 1, 1), stream=stream)  # fmt: skip


def compile_stage(stage: str, head_dim: int, tile_n: int, slots: int, dump_dir: str):
    """The compiled stage, called with q, k, v ``[1, S, heads, head_dim]`` bf16, out f32 and the scale.

    ``out`` is ``[heads, queries, keys]`` for ``qk`` (scale · QKᵀ), else ``[heads, queries, head_dim]``:
    scale · bf16(QKᵀ)·V for ``identity``, attention without a mask for ``online``.
    """
    queries, keys, heads = (cute.sym_int() for _ in range(3))

    def rows(length):
        strides = (*(cute.sym_int64(divisibility=8) for _ in range(3)), 1)
        return make_fake_tensor(BFloat16, (1, length, heads, head_dim), strides, assumed_align=16)

    width = keys if stage == "qk" else head_dim
    out = make_fake_tensor(Float32, (heads, queries, width), (cute.sym_int64(), cute.sym_int64(), 1), assumed_align=4)
    return cute.compile(
        launch, rows(queries), rows(keys), rows(keys), out, Float32(1.0), stage, head_dim, tile_n, slots,
        make_fake_stream(use_tvm_ffi_env_stream=True),
        options=f"--gpu-arch sm_90a --enable-tvm-ffi --opt-level 3 --keep-ptx --keep-cubin --dump-dir {dump_dir}",
    )  # fmt: skip
