# Emitted from generator/templates/attention/fmha_sm100.py.j2 for op fmha on sm_100a. Do not edit.
# dims: D=128
# config: tile_m=128, tile_n=128, kv_stage=2, pv_n_tile=128, q_tiles=2, column_split=1, exp2_emulated=0, softmax_registers=184, opt_level=2
# spec sha256: 68ccd6bdf0b421b5ea63a9f7d18c4b205ecbd7c90dc09ba8b4aa525b7113eaab
"""Dense attention on sm_100: TMA and tcgen05, with S, P and O in tensor memory.

A CTA works on 256 queries of one head, over all the keys that they see. Its warps have one job each:

    load        Q once; K and V through two rings of shared memory
    mma         S = Q·Kᵀ, then O += P·V with P read from TMEM
    softmax     one warpgroup for each query tile: S to P, one row to a thread
    correction  keeps O relative to each row's maximum, ends the rows, writes the log-sum-exp
    store       finished tiles to global memory

The schedule and its barriers are derived in docs/notes/fmha_sm100.md.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute import nvgpu
from cutlass.cute.nvgpu import cpasync, tcgen05
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator
from cutlass.utils import blackwell_helpers as sm100

from dsv4.generator.device.sm100_attention_correction import (
    correct_outputs,
    finish_rows,
    publish_staged,
    stage_zeros,
)
from dsv4.generator.device.sm100_attention_load import (
    key_tiles,
    load_keys_and_values,
    load_queries,
    query_tiles,
    store_outputs,
    value_tiles,
)
from dsv4.generator.device.sm100_attention_mma import multiply_tiles
from dsv4.generator.device.sm100_attention_softmax import base_2_scale, softmax_rows, statistics_row
from dsv4.generator.device.sm100_attention_tiles import (
    key_tile_count,
    keys_in_sight,
    query_tile,
    unmasked_tile_count,
)
from dsv4.generator.device.sm100_barriers import init_barriers
from dsv4.generator.device.sm100_tmem import column_of

# Tiles. A CTA holds Q_TILES tiles of TILE_M queries and O_COLUMNS columns of their outputs.
HEAD_DIM = 128
TILE_M = 128
TILE_N = 128
EXP2_EMULATED = 0  # of 32 exponentials those by a polynomial
Q_TILES = 2
CTA_ROWS = 256
KV_STAGES = 2
PV_N_TILE = 128
O_COLUMNS = 128
PV_PASSES = 1
COLUMN_SPLIT = 1

# How much of the softmax there is: "scores" and "identity" bring a kernel up step by step.
STAGE = "online"

# TMEM: first columns by query tile. P lies on the S that it is made of.
TMEM_COLUMNS = 512
S_COLUMNS = (0, 128)
P_COLUMNS = (0, 128)
O_FIRST_COLUMNS = (256, 384)

# Warps and their registers.
SOFTMAX_REGISTERS = 184
CORRECTION_WARP, CORRECTION_REGISTERS = 8, 96
MMA_WARP, LOAD_WARP, STORE_WARP = 12, 13, 14
OTHER_REGISTERS = 48
THREADS = 512
ROW_THREADS = 128  # of one softmax warpgroup, and of the correction: one for each row
CORRECTION_BARRIER = 1

# Bytes that one tile brings to its barrier, rows beyond the end of a tensor included (they arrive as zeros).
Q_BYTES = 32768
K_BYTES = 32768
V_BYTES = 32768

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


@cute.struct
class SharedStorage:
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 1024]
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 1024]
    sV: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 1024]
    row_statistics: cute.struct.Align[cute.struct.MemRange[Float32, 512], 16]
    q_full: cute.struct.MemRange[Int64, 2]
    k_full: cute.struct.MemRange[Int64, 2]
    k_empty: cute.struct.MemRange[Int64, 2]
    v_full: cute.struct.MemRange[Int64, 2]
    v_empty: cute.struct.MemRange[Int64, 2]
    s_full: cute.struct.MemRange[Int64, 2]
    p_full: cute.struct.MemRange[Int64, 2]
    o_ready: cute.struct.MemRange[Int64, 2]
    o_final: cute.struct.MemRange[Int64, 2]
    o_staged: cute.struct.MemRange[Int64, 2]
    stat_full: cute.struct.MemRange[Int64, 2]
    stat_empty: cute.struct.MemRange[Int64, 2]
    tmem_address: cute.struct.Align[cute.struct.MemRange[Int32, 1], 4]


@cute.jit
def cta_work(q: cute.Tensor, k: cute.Tensor, causal: cutlass.Constexpr[bool]):
    """``(query tile, column slice, batch, head, key tiles)`` of this CTA.

    Every role works it out for itself, after its registers are set: values that live across the roles would be spilled.
    """
    work, column_slice = cute.arch.block_idx()[0], Int32(0)
    queries, heads = q.shape[0], q.shape[2]
    cta_tile, batch_head = query_tile(work, cute.ceil_div(queries, CTA_ROWS))
    tiles = key_tile_count(cta_tile * CTA_ROWS, queries, k.shape[0], CTA_ROWS, TILE_N, causal)
    return cta_tile, column_slice, batch_head // heads, batch_head % heads, tiles


@cute.kernel
def kernel(
    qk_mma: cute.TiledMma,
    pv_mma: cute.TiledMma,
    tma_q: cute.CopyAtom,
    q: cute.Tensor,
    tma_k: cute.CopyAtom,
    k: cute.Tensor,
    tma_v: cute.CopyAtom,
    v: cute.Tensor,
    tma_o: cute.CopyAtom,
    o: cute.Tensor,
    lse: cute.Tensor,
    sink: cute.Tensor | None,
    softmax_scale: Float32,
    q_layout: cute.ComposedLayout,
    k_layout: cute.ComposedLayout,
    v_layout: cute.ComposedLayout,
    p_layout: cute.ComposedLayout,
    o_layout: cute.ComposedLayout,
    causal: cutlass.Constexpr[bool],
    has_sink: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    thread = cute.arch.thread_idx()[0] % ROW_THREADS
    storage = SmemAllocator().allocate(SharedStorage)
    q_full, s_full, p_full = (
        storage.q_full.data_ptr(),
        storage.s_full.data_ptr(),
        storage.p_full.data_ptr(),
    )
    k_full, k_empty = storage.k_full.data_ptr(), storage.k_empty.data_ptr()
    v_full, v_empty = storage.v_full.data_ptr(), storage.v_empty.data_ptr()
    o_ready, o_final = storage.o_ready.data_ptr(), storage.o_final.data_ptr()
    o_staged = storage.o_staged.data_ptr()
    stat_full, stat_empty = storage.stat_full.data_ptr(), storage.stat_empty.data_ptr()
    statistics = storage.row_statistics.data_ptr()

    # Barriers and tensor memory, before anybody uses either.
    if warp == MMA_WARP:
        with cute.arch.elect_one():
            init_barriers(q_full, Q_TILES, 1)  # the load's announcement, and its bytes
            init_barriers(k_full, KV_STAGES, 1)
            init_barriers(v_full, KV_STAGES, 1)
            init_barriers(k_empty, KV_STAGES, 1)  # a commit of the MMA warp
            init_barriers(v_empty, KV_STAGES, 1)
            init_barriers(s_full, Q_TILES, 1)
            init_barriers(o_final, Q_TILES, 1)
            init_barriers(p_full, Q_TILES, ROW_THREADS)  # every row
            init_barriers(stat_full, Q_TILES, ROW_THREADS)
            init_barriers(stat_empty, Q_TILES, ROW_THREADS)
            init_barriers(o_ready, Q_TILES, ROW_THREADS)
            init_barriers(o_staged, Q_TILES, ROW_THREADS)
            cute.arch.mbarrier_init_fence()
    if warp == CORRECTION_WARP:
        cute.arch.alloc_tmem(TMEM_COLUMNS, storage.tmem_address.data_ptr())
        cute.arch.relinquish_tmem_alloc_permit()
    cute.arch.sync_threads()
    tmem = cute.arch.retrieve_tmem_ptr(Float32, 16, storage.tmem_address.data_ptr())

    sQ = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)
    sK = storage.sK.get_tensor(k_layout.outer, swizzle=k_layout.inner)
    sV = storage.sV.get_tensor(v_layout.outer, swizzle=v_layout.inner)
    # O is staged on the bytes of Q, which no product reads any more by then.
    sO = storage.sQ.get_tensor(o_layout.outer, swizzle=o_layout.inner)

    # Softmax: thread t of a warpgroup has row t of the warpgroup's query tile.
    if warp < CORRECTION_WARP:
        cute.arch.setmaxregister_increase(SOFTMAX_REGISTERS)
        cta_tile, _, _, _, tiles = cta_work(q, k, causal)
        queries, keys, tile = q.shape[0], k.shape[0], warp // 4
        tile_query = cta_tile * CTA_ROWS + tile * TILE_M
        if tiles > 0:
            softmax_rows(
                tmem + column_of(S_COLUMNS, tile),
                tmem + column_of(P_COLUMNS, tile),
                TILE_N,
                s_full + tile,
                p_full + tile,
                stat_full + tile,
                stat_empty + tile,
                statistics_row(statistics, tile, thread),
                thread,
                keys_in_sight(tile_query + thread, queries, keys, causal),
                unmasked_tile_count(tile_query, queries, keys, TILE_N, causal),
                tiles,
                base_2_scale(softmax_scale, STAGE),
                STAGE,
                EXP2_EMULATED,
            )

    # Correction: thread t has row t of every query tile.
    elif warp < MMA_WARP:
        cute.arch.setmaxregister_decrease(CORRECTION_REGISTERS)
        cta_tile, column_slice, batch_index, head, tiles = cta_work(q, k, causal)
        if cutlass.const_expr(pdl):
            cute.arch.griddepcontrol_wait()
        sink_logit = None
        if cutlass.const_expr(has_sink):
            sink_logit = sink[head]
        rows = tuple(statistics_row(statistics, tile, thread) for tile in range(Q_TILES))
        if tiles > 0:
            correct_outputs(
                tmem,
                O_FIRST_COLUMNS,
                O_COLUMNS,
                rows,
                stat_full,
                stat_empty,
                o_ready,
                thread,
                tiles,
            )
        for tile in cutlass.range_constexpr(Q_TILES):
            staged = storage.sQ.data_ptr() + tile * TILE_M * HEAD_DIM
            row_lse = Float32(-Float32.inf)
            if tiles > 0:
                row_lse = finish_rows(
                    tmem,
                    O_FIRST_COLUMNS[tile],
                    O_COLUMNS,
                    rows[tile],
                    stat_full + tile,
                    o_final + tile,
                    staged,
                    o_staged + tile,
                    thread,
                    tiles,
                    sink_logit,
                    softmax_scale,
                    STAGE,
                )
            else:
                stage_zeros(O_COLUMNS, staged, thread)
                publish_staged(o_staged + tile)
            query = cta_tile * CTA_ROWS + tile * TILE_M + thread
            if query < q.shape[0] and column_slice == 0:
                lse[batch_index, head, query] = row_lse
        cute.arch.barrier(barrier_id=CORRECTION_BARRIER, number_of_threads=ROW_THREADS)
        if warp == CORRECTION_WARP:
            cute.arch.dealloc_tmem(tmem, TMEM_COLUMNS)

    else:
        cute.arch.setmaxregister_decrease(OTHER_REGISTERS)
        cta_tile, column_slice, batch_index, head, tiles = cta_work(q, k, causal)

        # Products. A negative scale is carried by −Q, so that a row's largest logit is its largest S.
        if warp == MMA_WARP:
            if tiles > 0:
                s_layout = qk_mma.make_fragment_C(qk_mma.partition_shape_C((TILE_M, TILE_N))).layout
                o_fragment = pv_mma.make_fragment_C(
                    pv_mma.partition_shape_C((TILE_M, PV_N_TILE))
                ).layout
                p_fragment = pv_mma.make_fragment_A(cute.make_tensor(tmem, p_layout.outer)).layout
                qk_mma.set(tcgen05.Field.NEGATE_A, softmax_scale < 0.0)
                multiply_tiles(
                    qk_mma,
                    pv_mma,
                    qk_mma.make_fragment_A(sQ),
                    qk_mma.make_fragment_B(sK),
                    pv_mma.make_fragment_B(sV),
                    tuple(cute.make_tensor(tmem + column, s_layout) for column in S_COLUMNS),
                    tuple(
                        cute.make_tensor(
                            cute.recast_ptr(tmem + column, dtype=BFloat16), p_fragment
                        )[None, None, None, 0]
                        for column in P_COLUMNS
                    ),
                    tuple(
                        tuple(
                            cute.make_tensor(tmem + column + piece * PV_N_TILE, o_fragment)
                            for piece in range(PV_PASSES)
                        )
                        for column in O_FIRST_COLUMNS
                    ),
                    q_full,
                    k_full,
                    k_empty,
                    v_full,
                    v_empty,
                    s_full,
                    p_full,
                    o_ready,
                    o_final,
                    tiles,
                    KV_STAGES,
                    STAGE != "scores",
                )

        # Loads.
        elif warp == LOAD_WARP:
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_wait()
            if tiles > 0:
                kv_head = head // (q.shape[2] // k.shape[2])
                q_slots, q_source = query_tiles(
                    tma_q, q[None, None, head, batch_index], sQ, qk_mma, TILE_M, HEAD_DIM
                )
                k_ring, k_source = key_tiles(
                    tma_k, k[None, None, kv_head, batch_index], sK, qk_mma, TILE_N, HEAD_DIM
                )
                v_ring, v_source = value_tiles(
                    tma_v, v[None, None, kv_head, batch_index], sV, pv_mma, PV_N_TILE, TILE_N
                )
                load_queries(tma_q, q_source, q_slots, q_full, cta_tile * Q_TILES, Q_TILES, Q_BYTES)
                load_keys_and_values(
                    tma_k,
                    k_source,
                    k_ring,
                    k_full,
                    k_empty,
                    K_BYTES,
                    tma_v,
                    v_source,
                    v_ring,
                    v_full,
                    v_empty,
                    V_BYTES,
                    column_slice * PV_PASSES,
                    PV_PASSES,
                    tiles,
                    KV_STAGES,
                )
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_launch_dependents()

        # Stores.
        elif warp == STORE_WARP:
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_wait()
            store_outputs(
                tma_o,
                o[None, None, head, batch_index],
                sO,
                o_staged,
                cta_tile * Q_TILES,
                column_slice,
                Q_TILES,
                TILE_M,
                O_COLUMNS,
            )


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
    has_sink: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    """q, o [B, Sq, Hq, D], k, v [B, Sk, Hkv, D] bf16; sink [Hq] f32 or None; lse [B, Hq, Sq] f32, natural log."""
    # (length, D, heads, batch); V as (D, length, heads, batch): the columns of V are the N mode of P·V.
    q = cute.make_tensor(q.iterator, cute.select(q.layout, mode=[1, 3, 2, 0]))
    k = cute.make_tensor(k.iterator, cute.select(k.layout, mode=[1, 3, 2, 0]))
    v = cute.make_tensor(v.iterator, cute.select(v.layout, mode=[3, 1, 2, 0]))
    o = cute.make_tensor(o.iterator, cute.select(o.layout, mode=[1, 3, 2, 0]))

    k_major, mn_major = nvgpu.OperandMajorMode.K, nvgpu.OperandMajorMode.MN
    one_cta = tcgen05.CtaGroup.ONE
    qk_mma = sm100.make_trivial_tiled_mma(
        BFloat16, BFloat16, k_major, k_major, Float32, one_cta, (TILE_M, TILE_N)
    )
    pv_mma = sm100.make_trivial_tiled_mma(
        BFloat16,
        BFloat16,
        k_major,
        mn_major,
        Float32,
        one_cta,
        (TILE_M, PV_N_TILE),
        tcgen05.OperandSource.TMEM,
    )
    qk_tile, pv_tile = (TILE_M, TILE_N, HEAD_DIM), (TILE_M, PV_N_TILE, TILE_N)
    q_layout = sm100.make_smem_layout_a(qk_mma, qk_tile, BFloat16, Q_TILES)
    k_layout = sm100.make_smem_layout_b(qk_mma, qk_tile, BFloat16, KV_STAGES)
    v_layout = sm100.make_smem_layout_b(pv_mma, pv_tile, BFloat16, KV_STAGES)
    p_layout = sm100.make_smem_layout_a(pv_mma, pv_tile, BFloat16, 1)
    o_block = tcgen05.make_smem_layout_atom(tcgen05.SmemLayoutAtomKind.K_SW128, BFloat16)
    o_layout = cute.tile_to_shape(o_block, (TILE_M, O_COLUMNS, Q_TILES), order=(0, 1, 2))

    load, one = cpasync.CopyBulkTensorTileG2SOp(one_cta), (1, 1, 1, 1)
    tma_q, q_tma = nvgpu.make_tiled_tma_atom_A(
        load, q, cute.select(q_layout, mode=[0, 1, 2]), qk_tile, qk_mma, one
    )
    tma_k, k_tma = nvgpu.make_tiled_tma_atom_B(
        load, k, cute.select(k_layout, mode=[0, 1, 2]), qk_tile, qk_mma, one
    )
    tma_v, v_tma = nvgpu.make_tiled_tma_atom_B(
        load, v, cute.select(v_layout, mode=[0, 1, 2]), pv_tile, pv_mma, one
    )
    tma_o, o_tma = cpasync.make_tiled_tma_atom(
        cpasync.CopyBulkTensorTileS2GOp(),
        o,
        cute.select(o_layout, mode=[0, 1]),
        (TILE_M, O_COLUMNS),
    )

    ctas = cute.ceil_div(q.shape[0], CTA_ROWS) * q.shape[2] * q.shape[3] * COLUMN_SPLIT
    if ctas > 0:
        kernel(
            qk_mma,
            pv_mma,
            tma_q,
            q_tma,
            tma_k,
            k_tma,
            tma_v,
            v_tma,
            tma_o,
            o_tma,
            lse,
            sink,
            softmax_scale,
            q_layout,
            k_layout,
            v_layout,
            p_layout,
            o_layout,
            causal,
            has_sink,
            pdl,
        ).launch(
            grid=(ctas, 1, 1),
            block=(THREADS, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,  # tells ptxas the registers at launch, without which it ignores setmaxnreg
        )


def arguments(variant: dict) -> tuple:
    """Fake arguments of ``launch`` for one of VARIANTS: free outer strides, multiples of 8 elements."""
    batch, queries, keys, heads, kv_heads = (cute.sym_int() for _ in range(5))

    def rows(length, head_count):
        strides = (*(cute.sym_int64(divisibility=8) for _ in range(3)), 1)
        return make_fake_tensor(
            BFloat16, (batch, length, head_count, HEAD_DIM), strides, assumed_align=16
        )

    sink = (
        make_fake_tensor(Float32, (heads,), (1,), assumed_align=4) if variant["has_sink"] else None
    )
    lse = make_fake_tensor(
        Float32, (batch, heads, queries), (cute.sym_int64(), cute.sym_int64(), 1), assumed_align=4
    )
    return (
        rows(queries, heads),
        rows(keys, kv_heads),
        rows(keys, kv_heads),
        sink,
        rows(queries, heads),
        lse,
        Float32(1.0),
        variant["causal"],
        variant["has_sink"],
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
