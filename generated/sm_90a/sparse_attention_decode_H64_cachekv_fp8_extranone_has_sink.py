# Emitted from generator/templates/attention/sparse_attention_decode_sm90.py.j2 for op sparse_attention_decode on sm_90a. Do not edit.
# dims: H=64
# config: splits=0, split_ctas=132, pair=0, gather_warps=4, operand_order=heads_as_rows, small_batch=few_heads, raw_slots=4, q_register_columns=128, opt_level=3
# spec sha256: ef35a92df4a6240fa79a40f6502cb35fa665e85de1df754771ef47aa4cf8dccc
"""Decoding attention for Hopper over gathered rows of packed pages: a cluster of 1 to 8 CTAs for each query and 64 heads.

Four warps gather and dequantise tiles of 64 keys. One warpgroup makes their scores and the softmax, two add P·V, 256
columns each. The CTAs of a cluster share the tiles; at the end each adds up and stores a part of the columns.

Of few queries CTAs of fewer heads, more of them, take less time: for each call the host code chooses the kernel that
is expected to take the least. Of more than there are SMs, CTAs without a cluster take one after another; those that
would be left for a last round with few CTAs are shared: each by several CTAs of that round, whose parts a second launch
puts together, or as few queries are.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint8, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    kv_groups,
    kv_halves,
    kv_rounds,
    kv_rows,
    sm90_decode_output,
    sm90_few_heads,
    sm90_few_merge,
    sm90_few_output,
    sm90_prefill_score,
    sm90_prefill_value,
    sm90_rest_parts,
    sm90_ring,
    sm90_sparse_decode,
    sm90_wgmma,
    softmax,
)
from dsv4.generator.device.inline_asm import not_hoisted

VARIANTS = (
    {
        "cache": "kv_fp8",
        "extra": "none",
        "has_length0": False,
        "has_length1": False,
        "has_sink": True,
        "has_max": False,
        "pdl": False,
    },
    {
        "cache": "kv_fp8",
        "extra": "none",
        "has_length0": False,
        "has_length1": False,
        "has_sink": True,
        "has_max": False,
        "pdl": True,
    },
)

HEADS = 64
HEAD_BLOCKS = 1  # of 64 heads or what is left, a cluster each
HEAD_DIM = 512
PART_NUMBERS = (
    64 * HEAD_DIM + 2 * 64
)  # of 64 heads: O, m and l of a part of the keys, in the workspace
SPLIT_CTAS = 132  # up to which the keys of a query are split among CTAs
# The same for clusters of four and eight: on an H100 whose clusters find room on 120 of 132 SMs, 128 CTAs are two waves.
LARGE_CLUSTER_CTAS = 112
SLOTS = 2  # tiles of keys in shared memory
Q_REGISTER_COLUMNS = 128
THREADS = 512
THREADS_APART = 512
ROUND_ITEMS = 132  # queries and blocks of 64 heads that CTAs take by turns
BLOCKS_OF_8 = 8  # heads, or what is left, a cluster each
BLOCKS_OF_16 = 4  # heads, or what is left, a cluster each
BLOCKS_OF_32 = 2  # heads, or what is left, a cluster each
# CTAs that may share a query's keys, one aside.
SPLITS_8 = (2, 3, 4, 5, 8)
SPLITS_16 = (2, 3, 4, 8)  # for the parts of five there is no room
SPLITS_32 = (2, 3, 4, 6, 8)
SPLITS_64 = (2, 4, 8)
# Nanoseconds of an H100 with 1, 2, 4 and 8 splits, without the tiles, and of each tile of a CTA: the least is chosen.
WHOLE_NS = (9900, 10500, 12800, 18300, 2300)
HEADS_8_NS = (3750, 5050, 5200, 5150, 1580)
HEADS_16_NS = (4700, 6250, 6100, 6000, 1700)
HEADS_32_NS = (5600, 7700, 8000, 9200, 2040)
AFTER_ROUNDS_NS = 1500  # of a launch more
# After full rounds, of items that CTAs share in one more: without the rest; of each tile of a CTA, each part, each item.
PARTS_NS = (8500, 1700, 20, 160)
# Of one more round with an item a CTA: without the rest, of each tile, and tenths of each tile and item; the least counts.
ROUND_NS = ((5000, 2100, 0), (15000, 900, 43))
SMALL_NS = 55  # of each item, beside the small batch that the items are then
RESCALE_ABOVE = 8  # powers of two by which a maximum has to grow before O is scaled
SCORE_WARP = 4
VALUE_WARP = 8


@cute.struct
class SharedStorage:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 24576], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 4096], 1024]
    raw: cute.struct.Align[cute.struct.MemRange[Uint8, 36864], 128]
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 1024], 16]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 128], 16]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 16], 16]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    scores_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 4], 8]
    normalisers: cute.struct.Align[cute.struct.MemRange[Float32, 256], 16]
    last_full: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    last_empty: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]


@cute.kernel
def sparse_attention_decode_kernel(
    q: cute.Tensor,
    pools: tuple,
    indices: tuple,
    lengths: tuple,
    pages: tuple,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    first_token: Int32,
    splits: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``pools``, ``indices``, ``lengths`` (or None) and ``pages``: of each segment of a query's keys.

    ``splits`` CTAs, a cluster, share them: 1, 2, 4 or 8.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    token, head_block, _ = cute.arch.cluster_idx()
    rank = cute.arch.block_idx_in_cluster()
    token += first_token
    request, query = token // q.shape[1], token % q.shape[1]
    first_head = head_block * 64
    heads = Int32(64)

    # Shared memory: the ring of tiles, the rest of Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, SLOTS)
    p_layout = sm90_wgmma.k_major_smem_layout(64, 64, 1)
    assert cute.cosize(key_layout) == 65536 and cute.cosize(p_layout) == 4096
    ring = sm90_sparse_decode.Ring(
        keys=storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner),
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner),
        factors=storage.factors.get_tensor(cute.make_layout((64, SLOTS))),
        is_key=storage.is_key.get_tensor(cute.make_layout((8, SLOTS))),
    )
    statistics = storage.statistics.get_tensor(
        cute.make_layout((64, 2, sm90_decode_output.SPLITS_MAX))
    )
    barriers = sm90_sparse_decode.Barriers(
        raw_full=None,
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        empty=storage.empty.data_ptr(),
    )
    if warp == 0:
        with cute.arch.elect_one():
            sm90_sparse_decode.init_barriers(barriers, SLOTS, 4)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if splits > 1:
        cute.arch.cluster_arrive_relaxed()  # waited for before the first store to another CTA, which must have begun
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    segments = []
    for pool, index, length, page in zip(pools, indices, lengths, pages, strict=True):
        rows = Int64(pool.shape[0]) * Int64(kv_rows.rows_of_page(page))
        is_table = len(index.shape) == 2
        if cutlass.const_expr(is_table):
            own, keys = index[request, None], length[request, query]
        else:
            own = index[request, query, None]
            keys = Int32(own.shape[0])
            if cutlass.const_expr(length is not None):
                keys = cutlass.min(length[request], keys)
        segments.append(kv_rows.Segment(pool, page, own, keys, rows, is_table))
    all_tiles = kv_rows.tiles_of(segments[0].keys)
    splits_log2 = sm90_decode_output.log2_of(splits)
    first_tile, last_tile = (
        (all_tiles * rank) >> splits_log2,
        (all_tiles * (rank + 1)) >> splits_log2,
    )
    tiles = last_tile - first_tile
    scale_log2 = softmax_scale * softmax.LOG2_E
    if warp < SCORE_WARP:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(80)
        raw = storage.raw.data_ptr() + warp * 9216
        kv_halves.feed(segments, first_tile, last_tile, raw, ring, barriers, warp, lane, SLOTS)
        if splits > 1:
            exchange_statistics()
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
    elif warp < VALUE_WARP:
        # Scores and softmax.
        cute.arch.setmaxregister_decrease(96)
        own_thread = thread - 32 * SCORE_WARP
        q_registers = cute.make_rmem_tensor(((2, 2, 2), 1, Q_REGISTER_COLUMNS // 16), BFloat16)
        q_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM - Q_REGISTER_COLUMNS, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        own_q = heads_of(q, request, query, first_head)
        sm90_sparse_decode.load_q(own_q, heads, smem_q, q_registers, own_thread, Q_REGISTER_COLUMNS)
        row_max, row_sum = (
            cute.make_rmem_tensor((2,), Float32),
            cute.make_rmem_tensor((2,), Float32),
        )
        sm90_sparse_decode.score(
            *(tiles, scale_log2, smem_q, q_registers, ring, barriers, row_max, row_sum, own_thread),
            *(Q_REGISTER_COLUMNS, SLOTS, RESCALE_ABOVE, Int32(0), Int32(0), True),
        )
        sm90_decode_output.whole_sums(row_sum)
        if splits > 1:
            cute.arch.cluster_wait()
        sm90_decode_output.tell_statistics(row_max, row_sum, statistics, rank, own_thread, splits)
        if splits > 1:
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(
                barrier_id=sm90_sparse_decode.STATISTICS_BARRIER, number_of_threads=384
            )
        if rank == 0 and own_thread < 64:
            own_lse = numbers_of(lse, request, query, first_head)
            own_max = None
            sm90_decode_output.store_lse(
                own_lse, own_max, statistics, own_thread, heads, scale_log2, empty_lse, splits
            )
        if splits > 1:
            cute.arch.cluster_wait()
    else:
        # Values: each warpgroup 256 columns of O.
        cute.arch.setmaxregister_increase(168)
        part, own_thread = (warp - VALUE_WARP) // 4, (thread - 32 * VALUE_WARP) % 128
        accs_o = [sm90_wgmma.accumulator(sm90_sparse_decode.PRODUCT_COLUMNS) for _ in range(2)]
        sm90_sparse_decode.add_values(
            tiles, part, ring, barriers, accs_o, own_thread, SLOTS, Int32(0), Int32(0), None, True
        )
        own_sink = sink_of(sink, first_head)
        if splits > 1:
            exchange_statistics()
        else:
            cute.arch.barrier(
                barrier_id=sm90_sparse_decode.STATISTICS_BARRIER, number_of_threads=384
            )
        sm90_decode_output.normalise(
            accs_o, statistics, own_sink, heads, scale_log2, rank, own_thread, splits
        )
        if splits > 1:
            sm90_decode_output.send_columns(
                accs_o, storage.sK.data_ptr().toint(), rank, part, own_thread, splits
            )
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        else:
            own_out = heads_of(out, request, query, first_head)
            sm90_decode_output.store_alone(accs_o, ring.keys, own_out, heads, part, own_thread)
    if splits > 1:
        own_out = heads_of(out, request, query, first_head)
        sm90_decode_output.add_up(
            own_out, storage.sK.data_ptr().toint(), heads, rank, thread, THREADS, splits
        )


@cute.jit
def exchange_statistics():
    """Those that have none to tell: the CTAs have begun; then all m and l are here, and no ring is in use any more."""
    cute.arch.cluster_wait()
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.struct
class SharedStorage8:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    parts_o: cute.struct.Align[cute.struct.MemRange[Float32, 5120], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 4096], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 1024], 1024]
    raw: cute.struct.Align[cute.struct.MemRange[Uint8, 36864], 128]
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 128], 16]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 16], 16]
    maxima: cute.struct.Align[cute.struct.MemRange[Float32, 64], 16]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 16], 16]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    scores_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]


@cute.kernel
def sparse_attention_decode_8_heads_kernel(
    q: cute.Tensor,
    pools: tuple,
    indices: tuple,
    lengths: tuple,
    pages: tuple,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    first_token: Int32,
    splits: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``pools``, ``indices``, ``lengths`` (or None) and ``pages``: of each segment of a query's keys.

    ``splits`` CTAs, a cluster, share them: 1 to 8.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    token, head_block, _ = cute.arch.cluster_idx()
    rank = cute.arch.block_idx_in_cluster()
    token += first_token
    request, query = token // q.shape[1], token % q.shape[1]
    first_head = head_block * 8
    heads = Int32(8)

    # Shared memory: the ring of tiles, Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage8)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, 2)
    p_layout = sm90_wgmma.k_major_smem_layout(8, 64, 2)
    assert cute.cosize(key_layout) == 65536 and cute.cosize(p_layout) == 1024
    ring = sm90_few_heads.Ring(
        keys=storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner),
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner),
        factors=storage.factors.get_tensor(cute.make_layout((8, 2))),
        is_key=storage.is_key.get_tensor(cute.make_layout((kv_groups.WARPS, 2))),
    )
    maxima = storage.maxima.get_tensor(cute.make_layout((8, 4, 2)))
    statistics = storage.statistics.get_tensor(
        cute.make_layout((8, 2, sm90_decode_output.SPLITS_MAX))
    )
    barriers = sm90_few_heads.Barriers(
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        empty=storage.empty.data_ptr(),
    )
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    segments = []
    for pool, index, length, page in zip(pools, indices, lengths, pages, strict=True):
        rows = Int64(pool.shape[0]) * Int64(kv_rows.rows_of_page(page))
        is_table = len(index.shape) == 2
        if cutlass.const_expr(is_table):
            own, keys = index[request, None], length[request, query]
        else:
            own = index[request, query, None]
            keys = Int32(own.shape[0])
            if cutlass.const_expr(length is not None):
                keys = cutlass.min(length[request], keys)
        segments.append(kv_rows.Segment(pool, page, own, keys, rows, is_table))
    all_tiles = kv_rows.tiles_of(segments[0].keys)
    first_tile = sm90_few_output.share_of(all_tiles, rank, splits)
    last_tile = sm90_few_output.share_of(all_tiles, rank + 1, splits)
    tiles = last_tile - first_tile
    scale_log2 = softmax_scale * softmax.LOG2_E
    # Keys are what is waited for longest: their numbers are on their way before anything else is prepared.
    keys, entry = kv_groups.Keys(segments, last_tile), Int32(-1)
    if warp < 8:
        entry = kv_groups.load_entries(keys, first_tile, warp, lane)
    if warp == 0:
        with cute.arch.elect_one():
            sm90_few_heads.init_barriers(barriers, 2)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if splits > 1:
        cute.arch.cluster_arrive_relaxed()  # waited for before the first store to another CTA, which must have begun
    if warp < 8:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(104)
        raw = storage.raw.data_ptr() + warp * (2 * kv_groups.SLOT_BYTES)
        kv_groups.feed(
            *(kv_groups.load_entries, kv_groups.locate, keys, entry, first_tile, last_tile),
            *(raw, ring, barriers, warp, lane, 2, 2),
        )
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
            cute.arch.cluster_arrive()
    elif warp < 12:
        # Scores and softmax.
        own_thread = thread - 32 * 8
        q_layout = sm90_wgmma.k_major_smem_layout(8, HEAD_DIM, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        sm90_few_heads.load_q(heads_of(q, request, query, first_head), heads, smem_q, own_thread)
        head_max, head_sum = (cute.make_rmem_tensor((8 // 4,), Float32) for _ in range(2))
        sm90_few_heads.score(
            *(tiles, scale_log2, smem_q, ring, barriers, maxima, head_max, head_sum, own_thread),
            *(2, Int32(0), Int32(0)),
        )
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
        sums = maxima[None, None, tiles & 1]
        sm90_few_output.tell_statistics(
            head_max, head_sum, sums, statistics, rank, own_thread, splits
        )
        if splits > 1:
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
    else:
        # Values.
        cute.arch.setmaxregister_increase(168)
        own_thread = thread - 32 * 12
        accs_o = [sm90_wgmma.accumulator(8) for _ in range(sm90_few_heads.BLOCKS)]
        own_sink = sink[first_head + cutlass.min(own_thread, heads - 1)]
        sm90_few_heads.add_values(tiles, ring, barriers, accs_o, own_thread, 2, Int32(0), Int32(0))
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
            sm90_few_merge.send_columns(
                accs_o, storage.parts_o.data_ptr().toint(), rank, own_thread, splits
            )
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
            normalisers = ring.factors[None, 0]  # of no use to anybody else any more
            if own_thread < 8:
                normalisers[own_thread] = sm90_few_output.normaliser_of(
                    statistics, own_thread, scale_log2, own_sink
                )
            cute.arch.barrier(barrier_id=sm90_few_heads.VALUE_BARRIER, number_of_threads=128)
            sm90_few_output.normalise(accs_o, normalisers, own_thread)
            own_out = heads_of(out, request, query, first_head)
            sm90_few_output.store_alone(
                accs_o, storage.sK.data_ptr().toint(), own_out, heads, own_thread
            )
    if splits > 1:
        own_out = heads_of(out, request, query, first_head)
        sinks = sm90_few_merge.load_sinks(sink_of(sink, first_head), heads, thread, 8)
        cute.arch.cluster_wait()  # all parts of O, m and l are here
        sm90_few_merge.merge(
            *(
                own_out,
                storage.parts_o.data_ptr().toint(),
                statistics,
                sinks,
                heads,
                scale_log2,
                rank,
                thread,
            ),
            *(512, splits),
        )
    own_head = thread - 32 * 8
    if rank == 0 and own_head >= 0 and own_head < 8:
        own_lse = numbers_of(lse, request, query, first_head)
        own_max = None
        sm90_decode_output.store_lse(
            own_lse, own_max, statistics, own_head, heads, scale_log2, empty_lse, splits
        )


@cute.struct
class SharedStorage16:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    parts_o: cute.struct.Align[cute.struct.MemRange[Float32, 9216], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 8192], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 2048], 1024]
    raw: cute.struct.Align[cute.struct.MemRange[Uint8, 36864], 128]
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 256], 16]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 32], 16]
    maxima: cute.struct.Align[cute.struct.MemRange[Float32, 128], 16]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 16], 16]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    scores_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]


@cute.kernel
def sparse_attention_decode_16_heads_kernel(
    q: cute.Tensor,
    pools: tuple,
    indices: tuple,
    lengths: tuple,
    pages: tuple,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    first_token: Int32,
    splits: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``pools``, ``indices``, ``lengths`` (or None) and ``pages``: of each segment of a query's keys.

    ``splits`` CTAs, a cluster, share them: 1 to 8.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    token, head_block, _ = cute.arch.cluster_idx()
    rank = cute.arch.block_idx_in_cluster()
    token += first_token
    request, query = token // q.shape[1], token % q.shape[1]
    first_head = head_block * 16
    heads = Int32(16)

    # Shared memory: the ring of tiles, Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage16)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, 2)
    p_layout = sm90_wgmma.k_major_smem_layout(16, 64, 2)
    assert cute.cosize(key_layout) == 65536 and cute.cosize(p_layout) == 2048
    ring = sm90_few_heads.Ring(
        keys=storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner),
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner),
        factors=storage.factors.get_tensor(cute.make_layout((16, 2))),
        is_key=storage.is_key.get_tensor(cute.make_layout((kv_groups.WARPS, 2))),
    )
    maxima = storage.maxima.get_tensor(cute.make_layout((16, 4, 2)))
    statistics = storage.statistics.get_tensor(
        cute.make_layout((16, 2, sm90_decode_output.SPLITS_MAX))
    )
    barriers = sm90_few_heads.Barriers(
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        empty=storage.empty.data_ptr(),
    )
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    segments = []
    for pool, index, length, page in zip(pools, indices, lengths, pages, strict=True):
        rows = Int64(pool.shape[0]) * Int64(kv_rows.rows_of_page(page))
        is_table = len(index.shape) == 2
        if cutlass.const_expr(is_table):
            own, keys = index[request, None], length[request, query]
        else:
            own = index[request, query, None]
            keys = Int32(own.shape[0])
            if cutlass.const_expr(length is not None):
                keys = cutlass.min(length[request], keys)
        segments.append(kv_rows.Segment(pool, page, own, keys, rows, is_table))
    all_tiles = kv_rows.tiles_of(segments[0].keys)
    first_tile = sm90_few_output.share_of(all_tiles, rank, splits)
    last_tile = sm90_few_output.share_of(all_tiles, rank + 1, splits)
    tiles = last_tile - first_tile
    scale_log2 = softmax_scale * softmax.LOG2_E
    # Keys are what is waited for longest: their numbers are on their way before anything else is prepared.
    keys, entry = kv_groups.Keys(segments, last_tile), Int32(-1)
    if warp < 8:
        entry = kv_groups.load_entries(keys, first_tile, warp, lane)
    if warp == 0:
        with cute.arch.elect_one():
            sm90_few_heads.init_barriers(barriers, 2)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if splits > 1:
        cute.arch.cluster_arrive_relaxed()  # waited for before the first store to another CTA, which must have begun
    if warp < 8:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(104)
        raw = storage.raw.data_ptr() + warp * (2 * kv_groups.SLOT_BYTES)
        kv_groups.feed(
            *(kv_groups.load_entries, kv_groups.locate, keys, entry, first_tile, last_tile),
            *(raw, ring, barriers, warp, lane, 2, 2),
        )
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
            cute.arch.cluster_arrive()
    elif warp < 12:
        # Scores and softmax.
        own_thread = thread - 32 * 8
        q_layout = sm90_wgmma.k_major_smem_layout(16, HEAD_DIM, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        sm90_few_heads.load_q(heads_of(q, request, query, first_head), heads, smem_q, own_thread)
        head_max, head_sum = (cute.make_rmem_tensor((16 // 4,), Float32) for _ in range(2))
        sm90_few_heads.score(
            *(tiles, scale_log2, smem_q, ring, barriers, maxima, head_max, head_sum, own_thread),
            *(2, Int32(0), Int32(0)),
        )
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
        sums = maxima[None, None, tiles & 1]
        sm90_few_output.tell_statistics(
            head_max, head_sum, sums, statistics, rank, own_thread, splits
        )
        if splits > 1:
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
    else:
        # Values.
        cute.arch.setmaxregister_increase(168)
        own_thread = thread - 32 * 12
        accs_o = [sm90_wgmma.accumulator(16) for _ in range(sm90_few_heads.BLOCKS)]
        own_sink = sink[first_head + cutlass.min(own_thread, heads - 1)]
        sm90_few_heads.add_values(tiles, ring, barriers, accs_o, own_thread, 2, Int32(0), Int32(0))
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
            sm90_few_merge.send_columns(
                accs_o, storage.parts_o.data_ptr().toint(), rank, own_thread, splits
            )
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
            normalisers = ring.factors[None, 0]  # of no use to anybody else any more
            if own_thread < 16:
                normalisers[own_thread] = sm90_few_output.normaliser_of(
                    statistics, own_thread, scale_log2, own_sink
                )
            cute.arch.barrier(barrier_id=sm90_few_heads.VALUE_BARRIER, number_of_threads=128)
            sm90_few_output.normalise(accs_o, normalisers, own_thread)
            own_out = heads_of(out, request, query, first_head)
            sm90_few_output.store_alone(
                accs_o, storage.sK.data_ptr().toint(), own_out, heads, own_thread
            )
    if splits > 1:
        own_out = heads_of(out, request, query, first_head)
        sinks = sm90_few_merge.load_sinks(sink_of(sink, first_head), heads, thread, 16)
        cute.arch.cluster_wait()  # all parts of O, m and l are here
        sm90_few_merge.merge(
            *(
                own_out,
                storage.parts_o.data_ptr().toint(),
                statistics,
                sinks,
                heads,
                scale_log2,
                rank,
                thread,
            ),
            *(512, splits),
        )
    own_head = thread - 32 * 8
    if rank == 0 and own_head >= 0 and own_head < 16:
        own_lse = numbers_of(lse, request, query, first_head)
        own_max = None
        sm90_decode_output.store_lse(
            own_lse, own_max, statistics, own_head, heads, scale_log2, empty_lse, splits
        )


@cute.struct
class SharedStorage32:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 16384], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 4096], 1024]
    raw: cute.struct.Align[cute.struct.MemRange[Uint8, 36864], 128]
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 512], 16]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 64], 16]
    maxima: cute.struct.Align[cute.struct.MemRange[Float32, 256], 16]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 16], 16]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    scores_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]


@cute.kernel
def sparse_attention_decode_32_heads_kernel(
    q: cute.Tensor,
    pools: tuple,
    indices: tuple,
    lengths: tuple,
    pages: tuple,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    first_token: Int32,
    splits: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``pools``, ``indices``, ``lengths`` (or None) and ``pages``: of each segment of a query's keys.

    ``splits`` CTAs, a cluster, share them: 1 to 8.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    token, head_block, _ = cute.arch.cluster_idx()
    rank = cute.arch.block_idx_in_cluster()
    token += first_token
    request, query = token // q.shape[1], token % q.shape[1]
    first_head = head_block * 32
    heads = Int32(32)

    # Shared memory: the ring of tiles, Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage32)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, 2)
    p_layout = sm90_wgmma.k_major_smem_layout(32, 64, 2)
    assert cute.cosize(key_layout) == 65536 and cute.cosize(p_layout) == 4096
    ring = sm90_few_heads.Ring(
        keys=storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner),
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner),
        factors=storage.factors.get_tensor(cute.make_layout((32, 2))),
        is_key=storage.is_key.get_tensor(cute.make_layout((kv_groups.WARPS, 2))),
    )
    maxima = storage.maxima.get_tensor(cute.make_layout((32, 4, 2)))
    statistics = storage.statistics.get_tensor(
        cute.make_layout((32, 2, sm90_decode_output.SPLITS_MAX))
    )
    barriers = sm90_few_heads.Barriers(
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        empty=storage.empty.data_ptr(),
    )
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    segments = []
    for pool, index, length, page in zip(pools, indices, lengths, pages, strict=True):
        rows = Int64(pool.shape[0]) * Int64(kv_rows.rows_of_page(page))
        is_table = len(index.shape) == 2
        if cutlass.const_expr(is_table):
            own, keys = index[request, None], length[request, query]
        else:
            own = index[request, query, None]
            keys = Int32(own.shape[0])
            if cutlass.const_expr(length is not None):
                keys = cutlass.min(length[request], keys)
        segments.append(kv_rows.Segment(pool, page, own, keys, rows, is_table))
    all_tiles = kv_rows.tiles_of(segments[0].keys)
    first_tile = sm90_few_output.share_of(all_tiles, rank, splits)
    last_tile = sm90_few_output.share_of(all_tiles, rank + 1, splits)
    tiles = last_tile - first_tile
    scale_log2 = softmax_scale * softmax.LOG2_E
    # Keys are what is waited for longest: their numbers are on their way before anything else is prepared.
    keys, entry = kv_groups.Keys(segments, last_tile), Int32(-1)
    if warp < 8:
        entry = kv_groups.load_entries(keys, first_tile, warp, lane)
    if warp == 0:
        with cute.arch.elect_one():
            sm90_few_heads.init_barriers(barriers, 2)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    if splits > 1:
        cute.arch.cluster_arrive_relaxed()  # waited for before the first store to another CTA, which must have begun
    if warp < 8:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(104)
        raw = storage.raw.data_ptr() + warp * (2 * kv_groups.SLOT_BYTES)
        kv_groups.feed(
            *(kv_groups.load_entries, kv_groups.locate, keys, entry, first_tile, last_tile),
            *(raw, ring, barriers, warp, lane, 2, 2),
        )
        if splits > 1:
            exchange_statistics()
            cute.arch.cluster_arrive()
    elif warp < 12:
        # Scores and softmax.
        own_thread = thread - 32 * 8
        q_layout = sm90_wgmma.k_major_smem_layout(32, HEAD_DIM, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        sm90_few_heads.load_q(heads_of(q, request, query, first_head), heads, smem_q, own_thread)
        head_max, head_sum = (cute.make_rmem_tensor((32 // 4,), Float32) for _ in range(2))
        sm90_few_heads.score(
            *(tiles, scale_log2, smem_q, ring, barriers, maxima, head_max, head_sum, own_thread),
            *(2, Int32(0), Int32(0)),
        )
        if splits > 1:
            cute.arch.cluster_wait()  # the CTAs have begun
        sums = maxima[None, None, tiles & 1]
        sm90_few_output.tell_statistics(
            head_max, head_sum, sums, statistics, rank, own_thread, splits
        )
        if splits > 1:
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()  # no ring is in use any more
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
    else:
        # Values.
        cute.arch.setmaxregister_increase(176)
        own_thread = thread - 32 * 12
        accs_o = [sm90_wgmma.accumulator(32) for _ in range(sm90_few_heads.BLOCKS)]
        own_sink = sink[first_head + cutlass.min(own_thread, heads - 1)]
        sm90_few_heads.add_values(tiles, ring, barriers, accs_o, own_thread, 2, Int32(0), Int32(0))
        if splits > 1:
            exchange_statistics()
            sm90_few_merge.send_columns(
                accs_o, storage.sK.data_ptr().toint(), rank, own_thread, splits
            )
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(barrier_id=sm90_few_heads.STATISTICS_BARRIER, number_of_threads=256)
            normalisers = ring.factors[None, 0]  # of no use to anybody else any more
            if own_thread < 32:
                normalisers[own_thread] = sm90_few_output.normaliser_of(
                    statistics, own_thread, scale_log2, own_sink
                )
            cute.arch.barrier(barrier_id=sm90_few_heads.VALUE_BARRIER, number_of_threads=128)
            sm90_few_output.normalise(accs_o, normalisers, own_thread)
            own_out = heads_of(out, request, query, first_head)
            sm90_few_output.store_alone(
                accs_o, storage.sK.data_ptr().toint(), own_out, heads, own_thread
            )
    if splits > 1:
        own_out = heads_of(out, request, query, first_head)
        sinks = sm90_few_merge.load_sinks(sink_of(sink, first_head), heads, thread, 32)
        cute.arch.cluster_wait()  # all parts of O, m and l are here
        sm90_few_merge.merge(
            *(
                own_out,
                storage.sK.data_ptr().toint(),
                statistics,
                sinks,
                heads,
                scale_log2,
                rank,
                thread,
            ),
            *(512, splits),
        )
    own_head = thread - 32 * 8
    if rank == 0 and own_head >= 0 and own_head < 32:
        own_lse = numbers_of(lse, request, query, first_head)
        own_max = None
        sm90_decode_output.store_lse(
            own_lse, own_max, statistics, own_head, heads, scale_log2, empty_lse, splits
        )


@cute.kernel
def sparse_attention_decode_rounds_kernel(
    q: cute.Tensor,
    pools: tuple,
    indices: tuple,
    lengths: tuple,
    pages: tuple,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    items: Int32,
    parts: cute.Tensor,
    rounds: Int32,
    part_count: Int32,
    part_tiles: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``pools``, ``indices``, ``lengths`` (or None) and ``pages``: of each segment of a query's keys.

    The CTAs take the first ``items`` queries and blocks of heads by turns. After ``rounds`` rounds ``part_count`` CTAs share
    each, ``part_tiles`` tiles or what is left a CTA; if those are several, what they make goes to ``parts``.
    """
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()

    # Shared memory: the ring of tiles, the rest of Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, SLOTS)
    p_layout = sm90_wgmma.k_major_smem_layout(64, 64, 1)
    assert cute.cosize(key_layout) == 65536 and cute.cosize(p_layout) == 4096
    ring = sm90_sparse_decode.Ring(
        keys=storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner),
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner),
        factors=storage.factors.get_tensor(cute.make_layout((64, SLOTS))),
        is_key=storage.is_key.get_tensor(cute.make_layout((8, SLOTS))),
    )
    barriers = sm90_sparse_decode.Barriers(
        raw_full=None,
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        empty=storage.empty.data_ptr(),
    )
    normalisers = storage.normalisers.get_tensor(cute.make_layout((2, 128)))
    last_full, last_empty = storage.last_full.data_ptr(), storage.last_empty.data_ptr()
    if warp == 0:
        with cute.arch.elect_one():
            sm90_sparse_decode.init_barriers(barriers, SLOTS, 4)
            cute.arch.mbarrier_init(last_full, 4)
            cute.arch.mbarrier_init(last_empty, sm90_sparse_decode.EMPTY_ARRIVALS)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
    # The next launch may be the one that puts the parts together. Not before the wait: it relies on all before this.
    cute.arch.griddepcontrol_launch_dependents()

    work = kv_rounds.Work(
        *(cta, ctas, items, HEAD_BLOCKS, q.shape[1], pools, indices, lengths, pages),
        *(
            Int32(q.shape[0]),
            None,
            kv_rounds.Rest(rounds, part_count, part_tiles, cta // part_count, cta % part_count),
        ),
    )
    slot, phase, last = Int32(0), Int32(0), Int32(0)
    if warp < SCORE_WARP:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(80)
        raw = storage.raw.data_ptr() + warp * 9216
        kv_rounds.feed(work, raw, ring, barriers, warp, lane, SLOTS)
    elif warp < VALUE_WARP:
        # Scores and softmax.
        cute.arch.setmaxregister_decrease(96)
        own_thread = thread - 32 * SCORE_WARP
        scale_log2 = softmax_scale * softmax.LOG2_E
        q_registers = cute.make_rmem_tensor(((2, 2, 2), 1, Q_REGISTER_COLUMNS // 16), BFloat16)
        q_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM - Q_REGISTER_COLUMNS, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        row_max, row_sum = (
            cute.make_rmem_tensor((2,), Float32),
            cute.make_rmem_tensor((2,), Float32),
        )
        normaliser = cute.make_rmem_tensor((2,), Float32)
        for turn in cutlass.range(kv_rounds.rounds_of(work), unroll=1):
            item = kv_rounds.item_of(work, turn)
            request, query, block = kv_rounds.place_of(work, item)
            first_head, heads = heads_from(block)
            tiles = kv_rounds.tiles_in(work, turn, *kv_rounds.keys_of(work, item))
            own_q = heads_of(q, request, query, first_head)
            # All warps are done with the last item's Q.
            cute.arch.barrier(barrier_id=sm90_sparse_decode.SCORE_BARRIER, number_of_threads=128)
            sm90_sparse_decode.load_q(
                own_q, heads, smem_q, q_registers, own_thread, Q_REGISTER_COLUMNS
            )
            slot, phase = sm90_sparse_decode.score(
                *(
                    tiles,
                    scale_log2,
                    smem_q,
                    q_registers,
                    ring,
                    barriers,
                    row_max,
                    row_sum,
                    own_thread,
                ),
                *(Q_REGISTER_COLUMNS, SLOTS, RESCALE_ABOVE, slot, phase, True),
            )
            if kv_rounds.is_part(work, turn):
                sm90_rest_parts.store_statistics(parts, cta, row_max, row_sum, own_thread)
            else:
                # Worked out anew, instead of in registers over all tiles.
                request, query, block = kv_rounds.place_of(
                    work, kv_rounds.item_of(work, not_hoisted(turn))
                )
                first_head, heads = heads_from(block)
                own_lse = numbers_of(lse, request, query, first_head)
                own_max = None
                own_sink = sink_of(sink, first_head)
                sm90_prefill_score.finish(
                    *(row_max, row_sum, row_max, normaliser, own_sink, own_lse, own_max),
                    *(heads, scale_log2, empty_lse, own_thread),
                )
                cute.arch.mbarrier_wait(last_empty, last ^ 1)
                sm90_prefill_score.tell(normaliser, normalisers, last_full, own_thread)
                last ^= 1
    else:
        # Values: each warpgroup 256 columns of O.
        cute.arch.setmaxregister_increase(168)
        part, own_thread = (warp - VALUE_WARP) // 4, (thread - 32 * VALUE_WARP) % 128
        accs_o = [sm90_wgmma.accumulator(sm90_sparse_decode.PRODUCT_COLUMNS) for _ in range(2)]
        factor = cute.make_rmem_tensor((2,), Float32)
        next_first, next_second = kv_rounds.keys_of(work, kv_rounds.item_of(work, Int32(0)))
        for turn in cutlass.range(kv_rounds.rounds_of(work), unroll=1):
            tiles = kv_rounds.tiles_in(work, turn, next_first, next_second)
            next_first, next_second = kv_rounds.keys_of(work, kv_rounds.item_of(work, turn + 1))
            slot, phase = sm90_sparse_decode.add_values(
                tiles, part, ring, barriers, accs_o, own_thread, SLOTS, slot, phase, None, True
            )
            if kv_rounds.is_part(work, turn):
                sm90_rest_parts.store_columns(parts, cta, accs_o, part, own_thread)
            else:
                cute.arch.mbarrier_wait(last_full, last)
                sm90_prefill_value.hear_factors(factor, normalisers, own_thread)
                cute.arch.sync_warp()
                sm90_ring.release(last_empty, 0)
                last ^= 1
                request, query, block = kv_rounds.place_of(work, kv_rounds.item_of(work, turn))
                first_head, heads = heads_from(block)
                own_out = heads_of(out, request, query, first_head)
                sm90_prefill_value.store(accs_o, factor, own_out, heads, part, own_thread)


@cute.struct
class PartsStorage:
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 1024], 16]


@cute.kernel
def sparse_attention_decode_parts_kernel(
    q: cute.Tensor,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    softmax_scale: Float32,
    empty_lse: Float32,
    parts: cute.Tensor,
    first_item: Int32,
    part_count: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """Puts the parts of what the rounds left together: a CTA 16 columns of a query's 64 heads or what is left of them."""
    thread, _, _ = cute.arch.thread_idx()
    group, number, _ = cute.arch.block_idx()
    item = first_item + number
    token, block = item // HEAD_BLOCKS, item % HEAD_BLOCKS
    request, query = token // q.shape[1], token % q.shape[1]
    first_head, heads = heads_from(block)
    storage = SmemAllocator().allocate(PartsStorage)
    statistics = storage.statistics.get_tensor(cute.make_layout((2 * 64, sm90_rest_parts.MOST)))
    # Not of the launch before, which has begun when all before it have ended.
    sinks = sm90_rest_parts.sinks_of(sink_of(sink, first_head), heads, thread)
    own_max = None
    cute.arch.griddepcontrol_wait()  # for the rounds, with or without pdl
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_launch_dependents()
    sm90_rest_parts.add_up(
        *(
            parts,
            number * part_count,
            part_count,
            group,
            sinks,
            heads_of(out, request, query, first_head),
        ),
        *(
            numbers_of(lse, request, query, first_head),
            own_max,
            heads,
            softmax_scale * softmax.LOG2_E,
            empty_lse,
        ),
        *(statistics, thread),
    )


@cute.jit
def heads_from(block: Int32) -> tuple[Int32, Int32]:
    """The first head of a block, and how many heads it has."""
    first_head = block * 64
    return first_head, Int32(64)


@cute.jit
def heads_of(tensor: cute.Tensor, request: Int32, query: Int32, first_head: Int32) -> cute.Tensor:
    """The (64, HEAD_DIM) rows of a query's heads from ``first_head`` on, in q or out."""
    start = tensor.iterator + tensor.layout((request, query, first_head, 0))
    return cute.make_tensor(start, cute.make_layout((64, HEAD_DIM), stride=(tensor.stride[2], 1)))


@cute.jit
def numbers_of(tensor: cute.Tensor, request: Int32, query: Int32, first_head: Int32) -> cute.Tensor:
    """The (64,) numbers of a query's heads from ``first_head`` on, in lse or max_logits."""
    start = tensor.iterator + tensor.layout((request, first_head, query))
    return cute.make_tensor(start, cute.make_layout(64, stride=tensor.stride[1]))


@cute.jit
def sink_of(sink: cute.Tensor, first_head: Int32) -> cute.Tensor:
    return cute.make_tensor(sink.iterator + first_head, cute.make_layout(64))


@cute.jit
def time_of(costs: cutlass.Constexpr, ctas: Int32, tiles: Int32, splits: Int32) -> Int32:
    """About how many nanoseconds ``ctas`` clusters of ``splits`` CTAs take that share ``tiles`` tiles; in one wave."""
    alone, by_two, by_four, by_eight, of_tile = costs
    fixed = Int32(by_eight)
    if splits == 1:
        fixed = Int32(alone)
    elif splits == 2:
        fixed = Int32(by_two)
    elif splits <= 4:
        fixed = Int32(by_four)
    time = fixed + (cutlass.min(tiles, 65536) + splits - 1) // splits * of_tile
    return time if ctas <= SPLIT_CTAS else Int32(0x7FFFFFFF)


@cute.jit
def least_splits_of(
    costs: cutlass.Constexpr, choice: cutlass.Constexpr, ctas: Int32, tiles: Int32
) -> Int32:
    """As many CTAs a query as take the least time: one, or one of the ``choice``."""
    splits, least = Int32(1), time_of(costs, ctas, tiles, Int32(1))
    for parts in choice:
        room = SPLIT_CTAS if parts == 2 else LARGE_CLUSTER_CTAS
        time = time_of(costs, ctas, tiles, Int32(parts))
        if parts * ctas <= room and parts <= tiles and time <= least:
            splits, least = Int32(parts), time
    return splits


@cute.jit
def parts_of(rest: Int32, tiles: Int32, room: Int32) -> tuple[Int32, Int32]:
    """How many CTAs share each of ``rest`` items, for whose parts there is ``room``, and tiles of a CTA; (1, all) if none."""
    tiles = cutlass.max(tiles, 1)
    most = cutlass.min(
        cutlass.min(room, ROUND_ITEMS) // cutlass.max(rest, 1),
        cutlass.min(tiles, sm90_rest_parts.MOST),
    )
    most = cutlass.max(most, 1) if rest > 0 else Int32(1)
    part_tiles = (tiles + most - 1) // most
    return (tiles + part_tiles - 1) // part_tiles, part_tiles


@cute.jit
def time_of_parts(rest: Int32, part_count: Int32, part_tiles: Int32) -> Int32:
    """About how many nanoseconds a round of ``rest`` shared items takes after the others; endless where none is shared."""
    alone, of_tile, of_part, of_item = PARTS_NS
    time = (
        alone + of_tile * cutlass.min(part_tiles, 65536) + (of_part * part_count + of_item) * rest
    )
    return time if part_count > 1 else Int32(0x7FFFFFFF)


@cute.jit
def time_of_round(rest: Int32, tiles: Int32) -> Int32:
    """About how many nanoseconds one more round of ``rest`` items of ``tiles`` tiles takes after the others."""
    tiles = cutlass.min(tiles, 65536)
    times = [
        alone + tiles * (of_tile + rest * of_both // 10) for alone, of_tile, of_both in ROUND_NS
    ]
    return cutlass.min(times[0], times[1])


@cute.jit
def least_time_of(tokens: Int32, tiles: Int32) -> Int32:
    """About how many nanoseconds ``tokens`` queries of ``tiles`` tiles take after full rounds, by the kernel that takes
    least, in one wave."""
    ctas = tokens * HEAD_BLOCKS
    time = time_of(WHOLE_NS, ctas, tiles, least_splits_of(WHOLE_NS, SPLITS_64, ctas, tiles))
    ctas = tokens * BLOCKS_OF_8
    time = cutlass.min(
        time, time_of(HEADS_8_NS, ctas, tiles, least_splits_of(HEADS_8_NS, SPLITS_8, ctas, tiles))
    )
    ctas = tokens * BLOCKS_OF_16
    time = cutlass.min(
        time,
        time_of(HEADS_16_NS, ctas, tiles, least_splits_of(HEADS_16_NS, SPLITS_16, ctas, tiles)),
    )
    ctas = tokens * BLOCKS_OF_32
    time = cutlass.min(
        time,
        time_of(HEADS_32_NS, ctas, tiles, least_splits_of(HEADS_32_NS, SPLITS_32, ctas, tiles)),
    )
    return time + AFTER_ROUNDS_NS


@cute.jit
def launch(
    q: cute.Tensor,
    pool0: cute.Tensor | None,
    kv0: cute.Tensor | None,
    index0: cute.Tensor,
    length0: cute.Tensor | None,
    pool1: cute.Tensor | None,
    kv1: cute.Tensor | None,
    index1: cute.Tensor | None,
    length1: cute.Tensor | None,
    table1: cute.Tensor | None,
    count1: cute.Tensor | None,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor | None,
    parts: cute.Tensor | None,
    page0: Int32,
    page1: Int32,
    softmax_scale: Float32,
    empty_lse: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    pools, indices, lengths, pages = (pool0,), (index0,), (length0,), (page0,)
    # As many as there is room for on the chip's SMs at once, and no more than leave each CTA a tile or two.
    tiles = Int32(0)
    for keys in [index.shape[2] for index in indices]:
        tiles += kv_rows.tiles_of(Int32(keys))
    tokens = q.shape[0] * q.shape[1]
    # The host prepares the divisions by the pages, which would be waited for in each tile.
    pages = tuple(cute.fast_divmod_create_divisor_v2(page) for page in pages)
    operands = (
        q,
        pools,
        indices,
        lengths,
        pages,
        sink,
        out,
        lse,
        max_logits,
        softmax_scale,
        empty_lse,
    )
    first_token = Int32(0)
    # Of more items than fit at once, those of full rounds first; then what is left: shared among the same CTAs, if the
    # workspace has room for their parts; as a small batch; or in one more round, whichever takes least.
    if tokens * HEAD_BLOCKS > ROUND_ITEMS:
        rounds = tokens * HEAD_BLOCKS // ROUND_ITEMS
        first_token = rounds * (ROUND_ITEMS // HEAD_BLOCKS)
        rest = tokens * HEAD_BLOCKS - rounds * ROUND_ITEMS
        part_count, part_tiles = parts_of(rest, tiles, Int32(parts.shape[0]))
        whole, small = (
            time_of_round(rest, tiles),
            least_time_of(tokens - first_token, tiles) + SMALL_NS * rest,
        )
        least = cutlass.min(time_of_parts(rest, part_count, part_tiles), cutlass.min(whole, small))
        if least == small:
            part_count = Int32(1)
        else:
            first_token = tokens
        if least == whole:
            part_count = Int32(1)
        if part_count == 1:
            part_tiles = cutlass.max(tiles, 1)
        sparse_attention_decode_rounds_kernel(
            *operands, first_token * HEAD_BLOCKS, parts, rounds, part_count, part_tiles, pdl
        ).launch(
            grid=(ROUND_ITEMS, 1, 1),
            block=(THREADS, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )
        if part_count > 1:
            sparse_attention_decode_parts_kernel(
                *(
                    q,
                    sink,
                    out,
                    lse,
                    max_logits,
                    softmax_scale,
                    empty_lse,
                    parts,
                    rounds * ROUND_ITEMS,
                    part_count,
                    pdl,
                )
            ).launch(
                grid=(sm90_rest_parts.GROUPS, rest, 1),
                block=(128, 1, 1),
                stream=stream,
                use_pdl=True,
                preferred_smem_carveout=-1,  # the driver's choice; left out, the compiler would ask a GPU
            )
        tokens -= first_token
    splits = least_splits_of(WHOLE_NS, SPLITS_64, tokens * HEAD_BLOCKS, tiles)
    splits_8 = least_splits_of(HEADS_8_NS, SPLITS_8, tokens * BLOCKS_OF_8, tiles)
    splits_16 = least_splits_of(HEADS_16_NS, SPLITS_16, tokens * BLOCKS_OF_16, tiles)
    splits_32 = least_splits_of(HEADS_32_NS, SPLITS_32, tokens * BLOCKS_OF_32, tiles)
    time = time_of(WHOLE_NS, tokens * HEAD_BLOCKS, tiles, splits)
    time_8 = time_of(HEADS_8_NS, tokens * BLOCKS_OF_8, tiles, splits_8)
    time_16 = time_of(HEADS_16_NS, tokens * BLOCKS_OF_16, tiles, splits_16)
    time_32 = time_of(HEADS_32_NS, tokens * BLOCKS_OF_32, tiles, splits_32)
    least = time
    least = cutlass.min(least, time_8)
    least = cutlass.min(least, time_16)
    least = cutlass.min(least, time_32)
    if tokens == 0:
        pass
    elif time == least:
        sparse_attention_decode_kernel(*operands, first_token, splits, pdl).launch(
            grid=(tokens * splits, HEAD_BLOCKS, 1),
            block=(THREADS, 1, 1),
            cluster=(splits, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )
    elif time_8 == least:
        sparse_attention_decode_8_heads_kernel(*operands, first_token, splits_8, pdl).launch(
            grid=(tokens * splits_8, BLOCKS_OF_8, 1),
            block=(THREADS_APART, 1, 1),
            cluster=(splits_8, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )
    elif time_16 == least:
        sparse_attention_decode_16_heads_kernel(*operands, first_token, splits_16, pdl).launch(
            grid=(tokens * splits_16, BLOCKS_OF_16, 1),
            block=(THREADS_APART, 1, 1),
            cluster=(splits_16, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )
    else:
        sparse_attention_decode_32_heads_kernel(*operands, first_token, splits_32, pdl).launch(
            grid=(tokens * splits_32, BLOCKS_OF_32, 1),
            block=(THREADS_APART, 1, 1),
            cluster=(splits_32, 1, 1),
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )


def arguments(variant):
    requests, queries = cute.sym_int(), cute.sym_int()

    def heads_of_tokens():
        strides = [cute.sym_int64(divisibility=8) for _ in range(3)]
        return make_fake_tensor(
            BFloat16, (requests, queries, HEADS, HEAD_DIM), (*strides, 1), assumed_align=16
        )

    def pool():
        row_stride = cute.sym_int64(divisibility=16)
        return make_fake_tensor(
            Uint8, (cute.sym_int(), cute.sym_int()), (row_stride, 1), assumed_align=16
        )

    def index():
        strides = [cute.sym_int64() for _ in range(2)]
        return make_fake_tensor(
            Int32, (requests, queries, cute.sym_int()), (*strides, 1), assumed_align=4
        )

    def length(flag):
        return (
            make_fake_tensor(Int32, (requests,), (1,), assumed_align=4) if variant[flag] else None
        )

    def table():
        return make_fake_tensor(
            Int32, (requests, cute.sym_int()), (cute.sym_int64(), 1), assumed_align=4
        )

    def counts():
        return make_fake_tensor(Int32, (requests, queries), (queries, 1), assumed_align=4)

    def numbers():
        strides = tuple(cute.sym_int64() for _ in range(3))
        return make_fake_tensor(Float32, (requests, HEADS, queries), strides, assumed_align=4)

    def workspace():
        return make_fake_tensor(
            Float32, (cute.sym_int(), PART_NUMBERS), (PART_NUMBERS, 1), assumed_align=16
        )

    return (
        heads_of_tokens(),
        pool(),
        None,
        index(),
        length("has_length0"),
        pool() if variant["extra"] != "none" else None,
        None,
        index() if variant["extra"] == "rows" else None,
        length("has_length1"),
        table() if variant["extra"] == "pages" else None,
        counts() if variant["extra"] == "pages" else None,
        make_fake_tensor(Float32, (HEADS,), (1,), assumed_align=4) if variant["has_sink"] else None,
        heads_of_tokens(),
        numbers(),
        numbers() if variant["has_max"] else None,
        workspace(),
        Int32(1),
        Int32(1),
        Float32(1.0),
        Float32(0.0),
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
