# Emitted from generator/templates/attention/fmha_sm90.py.j2 for op fmha on sm_90a. Do not edit.
# dims: D=128
# config: tile_m=128, tile_n=128, kv_stage=2, pv_n_tile=128, consumer_warpgroups=2, ping_pong=True, rescale_under_qk=True, persistent_ctas=132, o_apart=True, opt_level=3
# spec sha256: 2f5aa5bf3d8e7d5f950d360d636549e9956e232870eb76d1e675d23bb58961c0
"""Attention forward for Hopper, head dimension 128: a load warp and 2 warpgroups that own 64 queries each.

The load warp brings Q and a ring of 2 K and V tiles by TMA. The warpgroups compute S = Q·Kᵀ and O += P·V by wgmma
and the online softmax in registers, the softmax of one tile under the P·V of the tile before it.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    attention_tiles,
    sm90_attention,
    sm90_ring,
    sm90_tma,
    sm90_wgmma,
    softmax,
)

VARIANTS = (
    {"causal": False, "has_sink": False, "pdl": False},
    {"causal": False, "has_sink": False, "pdl": True},
    {"causal": False, "has_sink": True, "pdl": False},
    {"causal": False, "has_sink": True, "pdl": True},
    {"causal": True, "has_sink": False, "pdl": False},
    {"causal": True, "has_sink": False, "pdl": True},
    {"causal": True, "has_sink": True, "pdl": False},
    {"causal": True, "has_sink": True, "pdl": True},
)

HEAD_DIM = 128
TILE_M = 128  # queries of a CTA
TILE_N = 128  # keys of a tile
PV_COLUMNS = 128  # columns of O of one warpgroup
KV_SLOTS = 2
WARPGROUPS = 2  # without the load warp's
PERSISTENT_CTAS = 132  # 0: a CTA for every query tile
THREADS = 384
FIRST_CONSUMER_WARP = 4
LOAD_REGISTERS = 24
CONSUMER_REGISTERS = 240
TILING = sm90_attention.Tiling(
    head_dim=HEAD_DIM,
    tile_n=TILE_N,
    pv_columns=PV_COLUMNS,
    warpgroups=WARPGROUPS,
    slots=KV_SLOTS,
    ping_pong=True,
    rescale_under_qk=True,
    o_apart=True,
)
Q_PARTS, COLUMN_PARTS = TILING.row_parts, TILING.column_parts
assert TILE_M == Q_PARTS * sm90_wgmma.WARPGROUP_ROWS and WARPGROUPS == Q_PARTS * COLUMN_PARTS


@cute.kernel
def fmha_kernel(
    q_atom: cute.CopyAtom,
    q: cute.Tensor,
    k_atom: cute.CopyAtom,
    k: cute.Tensor,
    v_atom: cute.CopyAtom,
    v: cute.Tensor,
    o_atom: cute.CopyAtom,
    o: cute.Tensor,
    lse: cute.Tensor,
    sink: cute.Tensor | None,
    softmax_scale: Float32,
    causal: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    """q, k, v, o: TMA coordinate tensors (sequence, HEAD_DIM, head, batch)."""
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    queries, keys, heads = q.shape[0], k.shape[0], q.shape[2]
    heads_per_kv = heads // cutlass.max(k.shape[2], 1)
    query_tiles = cute.ceil_div(queries, TILE_M)
    all_heads = heads * q.shape[3]
    paired = attention_tiles.is_paired(query_tiles, all_heads, ctas, causal)
    work_count = attention_tiles.work_count(query_tiles, all_heads, paired)
    work = attention_tiles.first_work(cta, paired)

    # Shared memory: Q, the K and V rings, O, their mbarriers.
    smem = SmemAllocator()
    q_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, Q_PARTS)
    k_layout = sm90_wgmma.k_major_smem_layout(TILE_N, HEAD_DIM, KV_SLOTS)
    v_layout = sm90_wgmma.k_major_smem_layout(TILE_N, PV_COLUMNS, KV_SLOTS * COLUMN_PARTS)
    o_layout = sm90_wgmma.k_major_smem_layout(64, PV_COLUMNS, WARPGROUPS)
    assert cute.cosize(q_layout) == 16384 == cute.cosize(o_layout)
    assert (cute.cosize(k_layout), cute.cosize(v_layout)) == (32768, 32768)
    smem_q = smem.allocate_tensor(BFloat16, q_layout.outer, 1024, q_layout.inner)
    smem_k = smem.allocate_tensor(BFloat16, k_layout.outer, 1024, k_layout.inner)
    smem_v = smem.allocate_tensor(BFloat16, v_layout.outer, 1024, v_layout.inner)
    smem_o = smem.allocate_tensor(BFloat16, o_layout.outer, 1024, o_layout.inner)
    q_barriers = smem.allocate_array(Int64, 4)
    k_barriers = smem.allocate_array(Int64, 4)
    v_barriers = smem.allocate_array(Int64, 4)
    barriers = sm90_attention.Barriers(
        q_full=q_barriers,
        q_empty=q_barriers + Q_PARTS,
        k_full=k_barriers,
        k_empty=k_barriers + KV_SLOTS,
        v_full=v_barriers,
        v_empty=v_barriers + KV_SLOTS,
    )
    if warp == 0:
        for atom in (q_atom, k_atom, v_atom, o_atom):
            cpasync.prefetch_descriptor(atom)
        with cute.arch.elect_one():
            sm90_attention.init_barriers(barriers, TILING)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()

    slot, phase, q_phase = Int32(0), Int32(0), Int32(0)
    if warp < FIRST_CONSUMER_WARP:
        # Load role: warp 0; the other three warps of its warpgroup only give up their registers.
        cute.arch.setmaxregister_decrease(LOAD_REGISTERS)
        if warp == 0:
            while work < work_count:
                tile, head = attention_tiles.query_tile(work, query_tiles, all_heads, paired)
                batch, q_head = head // heads, head % heads
                kv_head = q_head // heads_per_kv
                key_tiles, _ = attention_tiles.key_tile_range(
                    tile * TILE_M, queries, keys, TILE_M, TILE_N, causal
                )
                q_tiles = cute.local_tile(q[None, None, q_head, batch], (64, HEAD_DIM), (None, 0))
                k_tiles = cute.local_tile(
                    k[None, None, kv_head, batch], (TILE_N, HEAD_DIM), (None, 0)
                )
                v_tiles = cute.local_tile(
                    v[None, None, kv_head, batch], (TILE_N, PV_COLUMNS), (None, None)
                )
                slot, phase = sm90_attention.load_tiles(
                    tile * Q_PARTS,
                    key_tiles,
                    slot,
                    phase,
                    q_phase,
                    sm90_tma.tile_copy(q_atom, smem_q, q_tiles),
                    sm90_tma.tile_copy(k_atom, smem_k, k_tiles),
                    sm90_tma.tile_copy(v_atom, smem_v, v_tiles),
                    barriers,
                    TILING,
                )
                q_phase ^= 1
                work = attention_tiles.next_work(work, query_tiles, all_heads, ctas, paired)
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_launch_dependents()
    else:
        # Consumer role: each warpgroup has 64 queries of the tile, and PV_COLUMNS columns of their O.
        cute.arch.setmaxregister_increase(CONSUMER_REGISTERS)
        group, thread = (warp - FIRST_CONSUMER_WARP) // 4, thread % sm90_wgmma.WARPGROUP_THREADS
        q_part, column_part = group // COLUMN_PARTS, group % COLUMN_PARTS
        qk_mma = sm90_wgmma.tiled_mma_ss(TILE_N)
        pv_mma = sm90_wgmma.tiled_mma_rs(PV_COLUMNS)
        v_of_group = sm90_wgmma.column_part(
            sm90_wgmma.transposed(smem_v), column_part, COLUMN_PARTS
        )
        qk_thread, pv_thread = qk_mma.get_slice(thread), pv_mma.get_slice(thread)
        operands = (
            qk_mma,
            pv_mma,
            qk_thread.make_fragment_A(qk_thread.partition_A(smem_q))[None, None, None, q_part],
            qk_thread.make_fragment_B(qk_thread.partition_B(smem_k)),
            pv_thread.make_fragment_B(pv_thread.partition_B(v_of_group)),
        )
        acc_o = sm90_wgmma.accumulator(PV_COLUMNS)
        row_max, row_sum, normaliser, row_lse = [
            cute.make_rmem_tensor((2,), Float32) for _ in range(4)
        ]
        scale_log2 = softmax_scale * softmax.LOG2_E
        sm90_attention.first_turn(group, TILING)
        while work < work_count:
            tile, head = attention_tiles.query_tile(work, query_tiles, all_heads, paired)
            batch, q_head = head // heads, head % heads
            key_tiles, unmasked = attention_tiles.key_tile_range(
                tile * TILE_M, queries, keys, TILE_M, TILE_N, causal
            )
            first_query = tile * TILE_M + q_part * 64
            acc_o.fill(0.0)
            row_max.fill(-Float32.inf)
            row_sum.fill(0.0)
            sm90_ring.wait_full(barriers.q_full, q_part, q_phase)
            if key_tiles > 0:
                slot, phase = sm90_attention.attend(
                    key_tiles,
                    unmasked,
                    slot,
                    phase,
                    first_query,
                    queries,
                    keys,
                    scale_log2,
                    group,
                    thread,
                    operands,
                    barriers,
                    acc_o,
                    row_max,
                    row_sum,
                    TILING,
                    causal,
                )
            else:
                sm90_attention.release_q(group, barriers, TILING)
            # Epilogue: normalise; the load warp brings the next tile's Q meanwhile.
            head_sink = None if cutlass.const_expr(sink is None) else sink[q_head]
            softmax.finish(row_max, row_sum, normaliser, row_lse, scale_log2, head_sink)
            softmax.scale_rows(sm90_wgmma.rows_of(acc_o), normaliser)
            o_tile = cute.local_tile(
                o[None, None, q_head, batch],
                (64, PV_COLUMNS),
                (tile * Q_PARTS + q_part, column_part),
            )
            o_smem = smem_o[None, None, group]
            sm90_attention.store_tile(
                acc_o,
                row_lse,
                lse[batch, q_head, None],
                first_query,
                queries,
                group,
                thread,
                pv_mma,
                o_smem,
                sm90_tma.tile_copy(o_atom, o_smem, o_tile),
                barriers,
                TILING,
            )
            q_phase ^= 1
            work = attention_tiles.next_work(work, query_tiles, all_heads, ctas, paired)
        sm90_attention.last_turn(group, TILING)
        sm90_attention.await_store(thread, TILING)


@cute.jit
def launch(
    q: cute.Tensor,
    k: cute.Tensor,
    v: cute.Tensor,
    sink: cute.Tensor | None,
    o: cute.Tensor,
    lse: cute.Tensor,
    softmax_scale: Float32,
    causal: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    q_atom, q_tiled = sm90_tma.load_atom(q, 64, HEAD_DIM)
    k_atom, k_tiled = sm90_tma.load_atom(k, TILE_N, HEAD_DIM)
    v_atom, v_tiled = sm90_tma.load_atom(v, TILE_N, PV_COLUMNS)
    o_atom, o_tiled = sm90_tma.store_atom(o, 64, PV_COLUMNS)
    ctas = cutlass.max(cute.ceil_div(q.shape[1], TILE_M) * q.shape[0] * q.shape[2], 1)
    if cutlass.const_expr(PERSISTENT_CTAS > 0):
        ctas = cutlass.min(ctas, PERSISTENT_CTAS)
    fmha_kernel(
        q_atom,
        q_tiled,
        k_atom,
        k_tiled,
        v_atom,
        v_tiled,
        o_atom,
        o_tiled,
        lse,
        sink,
        softmax_scale,
        causal,
        pdl,
    ).launch(
        grid=(ctas, 1, 1), block=(THREADS, 1, 1), stream=stream, use_pdl=pdl, min_blocks_per_mp=1
    )


def arguments(variant):
    batch, queries, keys, heads, kv_heads = [cute.sym_int() for _ in range(5)]

    def rows(length, head_count):
        strides = [cute.sym_int64(divisibility=8) for _ in range(3)]
        return make_fake_tensor(
            BFloat16, (batch, length, head_count, HEAD_DIM), (*strides, 1), assumed_align=16
        )

    sink = (
        make_fake_tensor(Float32, (heads,), (1,), assumed_align=4) if variant["has_sink"] else None
    )
    lse_strides = (cute.sym_int64(), cute.sym_int64(), 1)
    return (
        rows(queries, heads),
        rows(keys, kv_heads),
        rows(keys, kv_heads),
        sink,
        rows(queries, heads),
        make_fake_tensor(Float32, (batch, heads, queries), lse_strides, assumed_align=4),
        Float32(1.0),
        variant["causal"],
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
