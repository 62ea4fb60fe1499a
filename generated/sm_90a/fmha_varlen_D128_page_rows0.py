# Emitted from generator/templates/attention/fmha_varlen_sm90.py.j2 for op fmha_varlen on sm_90a. Do not edit.
# dims: D=128
# config: tile_m=128, tile_n=128, kv_stage=2, pv_n_tile=128, consumer_warpgroups=2, ping_pong=True, rescale_under_qk=True, persistent_ctas=132, opt_level=3
# spec sha256: 6d1451098e649e319197ee835f64e23f83608deebcd0a3c9f4a4b5b4e745b4e4
"""Attention forward for Hopper over sequences of any lengths, head dimension 128.

As fmha: a load warp brings Q and a ring of 2 K and V tiles by TMA, 2 warpgroups own 64 queries each and
compute S = Q·Kᵀ, the online softmax in registers, and O += P·V. The CTAs find their sequences on the device.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    attention_tiles,
    sequence_rows,
    sequence_tiles,
    sm90_attention,
    sm90_ring,
    sm90_sequences,
    sm90_tma,
    sm90_wgmma,
    softmax,
)

VARIANTS = (
    {"page_rows": 0, "causal": False, "has_sink": False, "pdl": False},
    {"page_rows": 0, "causal": False, "has_sink": False, "pdl": True},
    {"page_rows": 0, "causal": False, "has_sink": True, "pdl": False},
    {"page_rows": 0, "causal": False, "has_sink": True, "pdl": True},
    {"page_rows": 0, "causal": True, "has_sink": False, "pdl": False},
    {"page_rows": 0, "causal": True, "has_sink": False, "pdl": True},
    {"page_rows": 0, "causal": True, "has_sink": True, "pdl": False},
    {"page_rows": 0, "causal": True, "has_sink": True, "pdl": True},
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
LOAD_REGISTERS = 40
CONSUMER_REGISTERS = 232
TILING = sm90_attention.Tiling(
    head_dim=HEAD_DIM,
    tile_n=TILE_N,
    pv_columns=PV_COLUMNS,
    warpgroups=WARPGROUPS,
    slots=KV_SLOTS,
    ping_pong=True,
    rescale_under_qk=True,
    o_apart=False,
)
Q_PARTS, COLUMN_PARTS = TILING.row_parts, TILING.column_parts
assert TILE_M == Q_PARTS * sm90_wgmma.WARPGROUP_ROWS and WARPGROUPS == Q_PARTS * COLUMN_PARTS


@cute.kernel
def fmha_varlen_kernel(
    q_atom: cute.CopyAtom,
    q: cute.Tensor,
    k_atom: cute.CopyAtom,
    k: cute.Tensor,
    v_atom: cute.CopyAtom,
    v: cute.Tensor,
    cu_seqlens_q: cute.Tensor,
    cu_seqlens_k: cute.Tensor | None,
    seqlens_k: cute.Tensor | None,
    block_table: cute.Tensor | None,
    sink: cute.Tensor | None,
    o: cute.Tensor,
    lse: cute.Tensor,
    softmax_scale: Float32,
    causal: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    """q: TMA coordinate tensor (query, HEAD_DIM, head); k, v: (row, HEAD_DIM, head, page).

    seqlens_k and block_table are None.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    sequences, all_queries, heads = cu_seqlens_q.shape[0] - 1, q.shape[0], q.shape[2]
    heads_per_kv = heads // cutlass.max(k.shape[2], 1)
    paired = sequence_tiles.are_paired(all_queries, heads, ctas, TILE_M, causal)
    work = attention_tiles.first_work(cta, paired)

    # Shared memory: Q (later O, in the same place), the K and V rings, their mbarriers.
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
    smem_o = cute.make_tensor(smem_q.iterator, o_layout.outer)
    q_barriers = smem.allocate_array(Int64, 4)
    k_barriers = smem.allocate_array(Int64, 4)
    v_barriers = smem.allocate_array(Int64, 5)
    barriers = sm90_attention.Barriers(
        q_full=q_barriers,
        q_empty=q_barriers + Q_PARTS,
        k_full=k_barriers,
        k_empty=k_barriers + KV_SLOTS,
        v_full=v_barriers,
        v_empty=v_barriers + KV_SLOTS,
    )
    if warp == 0:
        for atom in (q_atom, k_atom, v_atom):
            cpasync.prefetch_descriptor(atom)
        with cute.arch.elect_one():
            sm90_sequences.init_barriers(barriers, TILING)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
    sequence, first_unit = sequence_tiles.find(
        work, Int32(0), Int32(0), cu_seqlens_q, sequences, all_queries, heads, TILE_M, paired
    )

    slot, phase, q_phase, cut_phase = Int32(0), Int32(0), Int32(0), Int32(0)
    if warp < FIRST_CONSUMER_WARP:
        # Load role: warp 0; the other three warps of its warpgroup only give up their registers.
        cute.arch.setmaxregister_decrease(LOAD_REGISTERS)
        if warp == 0:
            while sequence < sequences:
                q_start, queries = sequence_tiles.span(cu_seqlens_q, sequence, all_queries)
                query_tiles = cute.ceil_div(queries, TILE_M)
                tile, q_head, has_partner = sequence_tiles.query_tile(
                    work, first_unit, query_tiles, paired
                )
                kv_head = q_head // heads_per_kv
                q_rows = cute.domain_offset((q_start, 0), q[None, None, q_head])
                q_tiles = cute.local_tile(q_rows, (64, HEAD_DIM), (None, 0))
                k_start, keys = sequence_tiles.span(cu_seqlens_k, sequence, k.shape[0])
                k_rows = cute.domain_offset((k_start, 0), k[None, None, kv_head, 0])
                v_rows = cute.domain_offset((k_start, 0), v[None, None, kv_head, 0])
                k_tiles = cute.local_tile(k_rows, (TILE_N, HEAD_DIM), (None, None))
                v_tiles = cute.local_tile(v_rows, (TILE_N, PV_COLUMNS), (None, None))
                k_slots, v_slots, pages = smem_k, smem_v, None
                key_tiles, _ = attention_tiles.key_tile_range(
                    tile * TILE_M, queries, keys, TILE_M, TILE_N, causal
                )
                slot, phase, cut_phase = sm90_sequences.load_tiles(
                    tile * Q_PARTS,
                    key_tiles,
                    keys,
                    slot,
                    phase,
                    q_phase,
                    cut_phase,
                    sm90_tma.tile_copy(q_atom, smem_q, q_tiles),
                    sequence_rows.Source(*sm90_tma.tile_copy(k_atom, k_slots, k_tiles), pages),
                    sequence_rows.Source(*sm90_tma.tile_copy(v_atom, v_slots, v_tiles), pages),
                    smem_v.iterator.toint(),
                    thread % 32,
                    barriers,
                    TILING,
                )
                q_phase ^= 1
                work = sequence_tiles.next_work(work, has_partner, ctas, paired)
                sequence, first_unit = sequence_tiles.find(
                    work,
                    sequence,
                    first_unit,
                    cu_seqlens_q,
                    sequences,
                    all_queries,
                    heads,
                    TILE_M,
                    paired,
                )
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
        while sequence < sequences:
            q_start, queries = sequence_tiles.span(cu_seqlens_q, sequence, all_queries)
            query_tiles = cute.ceil_div(queries, TILE_M)
            tile, q_head, has_partner = sequence_tiles.query_tile(
                work, first_unit, query_tiles, paired
            )
            _, keys = sequence_tiles.span(cu_seqlens_k, sequence, k.shape[0])
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
            # Epilogue: normalise; O goes through the place of Q, which is then free for the next tile's.
            head_sink = None if cutlass.const_expr(sink is None) else sink[q_head]
            softmax.finish(row_max, row_sum, normaliser, row_lse, scale_log2, head_sink)
            softmax.scale_rows(sm90_wgmma.rows_of(acc_o), normaliser)
            first_row = q_start + first_query
            o_rows = cute.domain_offset(
                (first_row, column_part * PV_COLUMNS), o[None, q_head, None]
            )
            sm90_sequences.store_rows(
                acc_o,
                row_lse,
                cute.domain_offset((first_row,), lse[q_head, None]),
                o_rows.iterator.toint(),
                Int64(o.stride[0]) * 2,
                queries - first_query,
                group,
                thread,
                pv_mma,
                smem_o[None, None, group],
                barriers,
                TILING,
            )
            q_phase ^= 1
            work = sequence_tiles.next_work(work, has_partner, ctas, paired)
            sequence, first_unit = sequence_tiles.find(
                work,
                sequence,
                first_unit,
                cu_seqlens_q,
                sequences,
                all_queries,
                heads,
                TILE_M,
                paired,
            )
        sm90_attention.last_turn(group, TILING)


@cute.jit
def launch(
    q: cute.Tensor,
    k: cute.Tensor,
    v: cute.Tensor,
    cu_seqlens_q: cute.Tensor,
    cu_seqlens_k: cute.Tensor | None,
    seqlens_k: cute.Tensor | None,
    block_table: cute.Tensor | None,
    sink: cute.Tensor | None,
    o: cute.Tensor,
    lse: cute.Tensor,
    softmax_scale: Float32,
    causal: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    q_atom, q_tiled = sequence_rows.rows_atom(cpasync.CopyBulkTensorTileG2SOp(), q, 64, HEAD_DIM)
    k_atom, k_tiled = sm90_tma.load_atom(k, TILE_N, HEAD_DIM)
    v_atom, v_tiled = sm90_tma.load_atom(v, TILE_N, PV_COLUMNS)
    # At most so many query tiles: each sequence has one that is cut short.
    tiles = cute.ceil_div(q.shape[0], TILE_M) + cu_seqlens_q.shape[0] - 1
    ctas = cutlass.max(tiles * q.shape[1], 1)
    if cutlass.const_expr(PERSISTENT_CTAS > 0):
        ctas = cutlass.min(ctas, PERSISTENT_CTAS)
    fmha_varlen_kernel(
        q_atom,
        q_tiled,
        k_atom,
        k_tiled,
        v_atom,
        v_tiled,
        cu_seqlens_q,
        cu_seqlens_k,
        seqlens_k,
        block_table,
        sink,
        o,
        lse,
        softmax_scale,
        causal,
        pdl,
    ).launch(
        grid=(ctas, 1, 1), block=(THREADS, 1, 1), stream=stream, use_pdl=pdl, min_blocks_per_mp=1
    )


def arguments(variant):
    starts, queries, pages, page, heads, kv_heads = [cute.sym_int() for _ in range(6)]

    def strides(count):
        return [cute.sym_int64(divisibility=8) for _ in range(count)]

    def queries_of_heads():
        return make_fake_tensor(
            BFloat16, (queries, heads, HEAD_DIM), (*strides(2), 1), assumed_align=16
        )

    def keys_of_heads():
        return make_fake_tensor(
            BFloat16, (pages, page, kv_heads, HEAD_DIM), (*strides(3), 1), assumed_align=16
        )

    def integers(length):
        return make_fake_tensor(Int32, (length,), (1,), assumed_align=4)

    sink = (
        make_fake_tensor(Float32, (heads,), (1,), assumed_align=4) if variant["has_sink"] else None
    )
    return (
        queries_of_heads(),
        keys_of_heads(),
        keys_of_heads(),
        integers(starts),
        integers(starts),
        None,
        None,
        sink,
        queries_of_heads(),
        make_fake_tensor(Float32, (heads, queries), (cute.sym_int64(), 1), assumed_align=4),
        Float32(1.0),
        variant["causal"],
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
