# Emitted from generator/templates/attention/sparse_attention_decode_sm100.py.j2 for op sparse_attention_decode on sm_100a. Do not edit.
# dims: H=64
# config: splits=0, split_ctas=148, cta_group=1, operand_order=heads_as_rows, q_tmem_columns=384, pv_n_tile=256, load=bulk_row, k_operand=smem, opt_level=3
# spec sha256: a7fe07931c11acd17ee4bb07fea343c3a6d428c6b1dd46b58cf296dee6e3c368
"""Decoding attention for sm_100 over gathered rows of packed pages: a cluster of 1 to 8 CTAs for each query and 64 heads.

    gather      four warps: tiles of 64 keys into a ring of shared memory, dequantised
    softmax     a warpgroup: S from tensor memory, P to shared memory
    correction  a warpgroup: keeps O in tensor memory relative to each row's maximum, ends the rows
    score       a warp that issues S = Q·Kᵀ
    value       a warp that issues O += P·V, V being the tile that K was

The CTAs of a cluster share the tiles; at the end each adds up and stores a part of the columns. The roles and what they
wait for are described in dsv4.generator.device.sm100_sparse_decode.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint8, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    kv_feed,
    kv_rows,
    sm90_decode_output,
    sm100_sparse_decode,
    sm100_sparse_mma,
    sm100_sparse_output,
    sm100_sparse_softmax,
    softmax,
)

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
PART_NUMBERS = 64 * HEAD_DIM + 2 * 64
SPLIT_CTAS = 148  # up to which the keys of a query are split among CTAs
SLOTS = 2  # tiles of keys in shared memory
Q_TMEM_COLUMNS = 384
PV_N_TILE = 256
THREADS = 448
SOFTMAX_WARP = 4
CORRECTION_WARP = 8
SCORE_WARP = 12

# Tensor memory: first columns. Each is of two matrices of 64 rows, one in either half of the lanes.
TMEM_COLUMNS = 512
O_COLUMN = 0
Q_COLUMN = 256
S_COLUMN = 448


@cute.struct
class SharedStorage:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 8192], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 8192], 1024]
    raw: cute.struct.Align[cute.struct.MemRange[Uint8, 36864], 128]
    statistics: cute.struct.Align[cute.struct.MemRange[Float32, 1024], 16]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 128], 16]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 8], 16]
    raw_full: cute.struct.Align[cute.struct.MemRange[Int64, 8], 8]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    scores_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    factors_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    weights_full: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 2], 8]
    q_full: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    output_ready: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    tmem_address: cute.struct.Align[cute.struct.MemRange[Uint32, 1], 4]


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
    request, query = token // q.shape[1], token % q.shape[1]
    first_head = head_block * 64
    heads = Int32(64)

    # Shared memory: the ring of tiles, the rest of Q, P, raw rows, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage)
    ring = sm100_sparse_decode.Ring(
        keys=storage.sK.get_tensor(cute.make_layout(65536)),
        p=storage.sP.get_tensor(cute.make_layout(8192)),
        factors=storage.factors.get_tensor(cute.make_layout((64, SLOTS))),
        is_key=storage.is_key.get_tensor(cute.make_layout((4, SLOTS))),
    )
    statistics = storage.statistics.get_tensor(
        cute.make_layout((64, 2, sm90_decode_output.SPLITS_MAX))
    )
    barriers = sm100_sparse_decode.Barriers(
        raw_full=storage.raw_full.data_ptr(),
        keys_full=storage.keys_full.data_ptr(),
        scores_full=storage.scores_full.data_ptr(),
        factors_full=storage.factors_full.data_ptr(),
        weights_full=storage.weights_full.data_ptr(),
        empty=storage.empty.data_ptr(),
        q_full=storage.q_full.data_ptr(),
        output_ready=storage.output_ready.data_ptr(),
    )
    if warp == 0:
        with cute.arch.elect_one():
            sm100_sparse_decode.init_all_barriers(barriers, SLOTS)
            cute.arch.mbarrier_init_fence()
    if warp == CORRECTION_WARP:
        cute.arch.alloc_tmem(TMEM_COLUMNS, storage.tmem_address.data_ptr())
        cute.arch.relinquish_tmem_alloc_permit()
    cute.arch.sync_threads()
    columns = cute.arch.retrieve_tmem_ptr(Float32, 16, storage.tmem_address.data_ptr())
    output = columns + O_COLUMN
    tmem = sm100_sparse_decode.Tmem(
        o=(columns + O_COLUMN).toint(),
        q=(columns + Q_COLUMN).toint(),
        s=(columns + S_COLUMN).toint(),
        scores=columns + S_COLUMN,
    )
    if splits > 1:
        cute.arch.cluster_arrive_relaxed()  # waited for before the first store to another CTA, which must have begun
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    segments = []
    for pool, index, length, page in zip(pools, indices, lengths, pages, strict=True):
        rows = Int64(pool.shape[0]) * Int64(page)
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
    if warp < SOFTMAX_WARP:
        # Gathering warps.
        raw = storage.raw.data_ptr() + warp * 9216
        kv_feed.feed(4, segments, first_tile, last_tile, raw, ring, barriers, warp, lane, SLOTS)
        if splits > 1:
            exchange_statistics()
            meet()
    elif warp < CORRECTION_WARP:
        # Softmax: thread t has half of row 16·(t / 32) + t mod 16.
        own_thread = thread - 32 * SOFTMAX_WARP
        own_q = heads_of(q, request, query, first_head)
        sm100_sparse_softmax.q_to_tmem(
            own_q, heads, columns + Q_COLUMN, Q_TMEM_COLUMNS, barriers.q_full, own_thread
        )
        row_max, row_sum = sm100_sparse_softmax.softmax_rows(
            tiles, scale_log2, tmem, ring, barriers, own_thread, SLOTS
        )
        if splits > 1:
            cute.arch.cluster_wait()
        sm100_sparse_output.tell_statistics(row_max, row_sum, statistics, rank, own_thread, splits)
        if splits > 1:
            meet()
            cute.arch.cluster_arrive()
        else:
            cute.arch.barrier(
                barrier_id=sm100_sparse_decode.STATISTICS_BARRIER, number_of_threads=256
            )
        if rank == 0 and own_thread < 64:
            own_lse = numbers_of(lse, request, query, first_head)
            own_max = None
            sm90_decode_output.store_lse(
                own_lse, own_max, statistics, own_thread, heads, scale_log2, empty_lse, splits
            )
        if splits > 1:
            cute.arch.cluster_wait()
    elif warp < SCORE_WARP:
        # Correction: thread t has row 16·(t / 32) + t mod 16, columns 256·(t / 16 mod 2) … of O.
        own_thread = thread - 32 * CORRECTION_WARP
        own_q = heads_of(q, request, query, first_head)
        sm100_sparse_softmax.q_to_shared(
            own_q, heads, storage.sQ.data_ptr().toint(), Q_TMEM_COLUMNS, barriers.q_full, own_thread
        )
        sm100_sparse_output.correct_output(tiles, output, ring, barriers, own_thread, SLOTS)
        own_sink = sink_of(sink, first_head)
        if splits > 1:
            exchange_statistics()
        else:
            cute.arch.barrier(
                barrier_id=sm100_sparse_decode.STATISTICS_BARRIER, number_of_threads=256
            )
        factor = sm100_sparse_output.own_share(
            statistics, own_sink, heads, scale_log2, rank, own_thread, splits
        )
        keys = storage.sK.data_ptr().toint()  # no product reads them any more
        if splits > 1:
            sm100_sparse_output.send_columns(output, factor, tiles, keys, rank, own_thread, splits)
        else:
            own_out = heads_of(out, request, query, first_head)
            sm100_sparse_output.store_alone(output, factor, tiles, keys, own_out, heads, own_thread)
        cute.arch.barrier(barrier_id=sm100_sparse_decode.CORRECTION_BARRIER, number_of_threads=128)
        if warp == CORRECTION_WARP:
            cute.arch.dealloc_tmem(columns, TMEM_COLUMNS)
        if splits > 1:
            meet()
    else:
        # Products.
        if warp == SCORE_WARP:
            sm100_sparse_mma.issue_scores(
                tiles, tmem, storage.sQ.data_ptr().toint(), ring, barriers, Q_TMEM_COLUMNS, SLOTS
            )
        else:
            sm100_sparse_mma.issue_values(tiles, tmem, ring, barriers, PV_N_TILE, SLOTS)
        if splits > 1:
            exchange_statistics()
            meet()
    if splits > 1:
        own_out = heads_of(out, request, query, first_head)
        sm90_decode_output.add_up(
            own_out, storage.sK.data_ptr().toint(), heads, rank, thread, THREADS, splits
        )


@cute.jit
def meet():
    """All threads of the cluster have come this far, and what they stored is there."""
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def exchange_statistics():
    """Those that have none to tell: the CTAs have begun; then all m and l are here, and no ring is in use any more."""
    cute.arch.cluster_wait()
    meet()


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
    ctas = q.shape[0] * q.shape[1] * HEAD_BLOCKS
    splits = Int32(1)
    for _ in range(3):
        if 2 * splits * ctas <= SPLIT_CTAS and splits < tiles:
            splits = 2 * splits
    sparse_attention_decode_kernel(
        *(
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
            splits,
            pdl,
        )
    ).launch(
        grid=(q.shape[0] * q.shape[1] * splits, HEAD_BLOCKS, 1),
        block=(THREADS, 1, 1),
        cluster=(splits, 1, 1),
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
