# Emitted from generator/templates/attention/sparse_attention_prefill_sm90.py.j2 for op sparse_attention_prefill on sm_90a. Do not edit.
# dims: H=64
# config: persistent_ctas=132, rescale_above=8, opt_level=3
# spec sha256: ea53b2f5440fffaf1c0ddc18956df3f132f94df3961399e7c44d24c1b180eadd
"""Prefilling attention for Hopper over gathered rows of bf16: 132 CTAs that work through the queries, 64 heads at a time.

Four warps gather tiles of 64 keys and run ahead, over the ends of queries as well. One warpgroup makes the scores and
the softmax, the scores of the next tile being on their way meanwhile; two add P·V, 256 columns each.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    sm90_prefill_gather,
    sm90_prefill_score,
    sm90_prefill_value,
    sm90_ring,
    sm90_wgmma,
    softmax,
)

VARIANTS = (
    {"has_length": False, "has_sink": True, "pdl": False},
    {"has_length": False, "has_sink": True, "pdl": True},
)

HEADS = 64
HEAD_BLOCKS = 1  # of 64 heads or what is left
HEAD_DIM = 512
PERSISTENT_CTAS = 132
RESCALE_ABOVE = 8  # powers of two that P may have before O is scaled
SLOTS = 3  # tiles of keys in shared memory
Q_REGISTER_COLUMNS = 320  # the others are read again for each tile
THREADS = 512
SCORE_WARP = 4
VALUE_WARP = 8


@cute.struct
class SharedStorage:
    sK: cute.struct.Align[cute.struct.MemRange[BFloat16, 98304], 1024]
    sQ: cute.struct.Align[cute.struct.MemRange[BFloat16, 12288], 1024]
    sP: cute.struct.Align[cute.struct.MemRange[BFloat16, 4096], 1024]
    factors: cute.struct.Align[cute.struct.MemRange[Float32, 256], 8]
    normalisers: cute.struct.Align[cute.struct.MemRange[Float32, 256], 8]
    is_key: cute.struct.Align[cute.struct.MemRange[Uint32, 12], 16]
    keys_full: cute.struct.Align[cute.struct.MemRange[Int64, 3], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 6], 8]
    message_full: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    message_empty: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    last_full: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]
    last_empty: cute.struct.Align[cute.struct.MemRange[Int64, 1], 8]


@cute.kernel
def sparse_attention_prefill_kernel(
    q: cute.Tensor,
    kv: cute.Tensor,
    rows: cute.Tensor,
    length: cute.Tensor | None,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor,
    softmax_scale: Float32,
    empty_lse: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()

    # Shared memory: the ring of tiles, the rest of Q, what the roles tell one another.
    storage = SmemAllocator().allocate(SharedStorage)
    key_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM, SLOTS)
    p_layout = sm90_wgmma.k_major_smem_layout(64, 64, 1)
    assert cute.cosize(key_layout) == 98304
    assert 64 * (HEAD_DIM - Q_REGISTER_COLUMNS) == 12288
    keys = storage.sK.get_tensor(key_layout.outer, swizzle=key_layout.inner)
    is_key = storage.is_key.get_tensor(cute.make_layout((4, SLOTS)))
    keys_full, empty = storage.keys_full.data_ptr(), storage.empty.data_ptr()
    messages = sm90_prefill_score.Messages(
        p=storage.sP.get_tensor(p_layout.outer, swizzle=p_layout.inner)[None, None, 0],
        factors=storage.factors.get_tensor(cute.make_layout((2, 128))),
        normalisers=storage.normalisers.get_tensor(cute.make_layout((2, 128))),
        full=storage.message_full.data_ptr(),
        empty=storage.message_empty.data_ptr(),
        last_full=storage.last_full.data_ptr(),
        last_empty=storage.last_empty.data_ptr(),
    )
    if warp == 0:
        with cute.arch.elect_one():
            for slot in cutlass.range_constexpr(SLOTS):
                cute.arch.mbarrier_init(keys_full + slot, sm90_prefill_gather.KEYS_ARRIVALS)
                for half in cutlass.range_constexpr(2):
                    cute.arch.mbarrier_init(empty + 2 * slot + half, sm90_prefill_value.VALUE_WARPS)
            for full, vacant in (
                (messages.full, messages.empty),
                (messages.last_full, messages.last_empty),
            ):
                cute.arch.mbarrier_init(full, 4)
                cute.arch.mbarrier_init(vacant, sm90_prefill_value.VALUE_WARPS)
        cute.arch.mbarrier_init_fence()
    cute.arch.sync_threads()
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        cute.arch.griddepcontrol_launch_dependents()

    work = sm90_prefill_gather.Work(
        cta, q.shape[0] * HEAD_BLOCKS, ctas, HEADS, HEAD_BLOCKS, q, kv, rows, length
    )
    slot, phase, message, last = Int32(0), Int32(0), Int32(0), Int32(0)
    if warp < SCORE_WARP:
        # Gathering warps.
        cute.arch.setmaxregister_decrease(32)
        sm90_prefill_gather.gather(
            work, keys.iterator.toint(), is_key, keys_full, empty, warp, lane, SLOTS
        )
    elif warp < VALUE_WARP:
        # Scores and softmax.
        cute.arch.setmaxregister_increase(160)
        own_thread = thread - 32 * SCORE_WARP
        scale_log2 = softmax_scale * softmax.LOG2_E
        q_registers = cute.make_rmem_tensor(((2, 2, 2), 1, Q_REGISTER_COLUMNS // 16), BFloat16)
        q_layout = sm90_wgmma.k_major_smem_layout(64, HEAD_DIM - Q_REGISTER_COLUMNS, 1)
        smem_q = storage.sQ.get_tensor(q_layout.outer, swizzle=q_layout.inner)[None, None, 0]
        row_max, row_sum = (
            cute.make_rmem_tensor((2,), Float32),
            cute.make_rmem_tensor((2,), Float32),
        )
        normaliser, top = cute.make_rmem_tensor((2,), Float32), cute.make_rmem_tensor((2,), Float32)
        next_keys = sm90_prefill_gather.keys_of(work, work.first)
        for item in cutlass.range(work.first, work.items, work.step, unroll=1):
            token, first_head, heads = place_of(item)
            tiles = sm90_prefill_gather.tiles_of(next_keys)
            next_keys = sm90_prefill_gather.keys_of(work, item + work.step)
            sm90_ring.wait_full(keys_full, slot, phase)
            sm90_prefill_score.take_q(
                keys[None, None, slot], smem_q, q_registers, own_thread, Q_REGISTER_COLUMNS
            )
            # As many arrivals as of the warps of O, which free the tiles of keys.
            for _ in cutlass.range_constexpr(sm90_prefill_value.VALUE_WARPS // 4):
                for half in cutlass.range_constexpr(2):
                    sm90_ring.release(empty, 2 * slot + half)
            slot, phase = sm90_ring.next_position(slot, phase, SLOTS)
            slot, phase, message = sm90_prefill_score.score(
                *(
                    tiles,
                    slot,
                    phase,
                    message,
                    scale_log2,
                    smem_q,
                    q_registers,
                    keys,
                    is_key,
                    keys_full,
                    messages,
                ),
                *(row_max, row_sum, top, own_thread, SLOTS, RESCALE_ABOVE),
            )
            sm90_prefill_score.finish(
                *(row_max, row_sum, top, normaliser, sink_of(sink, first_head)),
                *(numbers_of(lse, token, first_head), numbers_of(max_logits, token, first_head)),
                *(heads, scale_log2, empty_lse, own_thread),
            )
            cute.arch.mbarrier_wait(messages.last_empty, last ^ 1)
            sm90_prefill_score.tell(
                normaliser, messages.normalisers, messages.last_full, own_thread
            )
            last ^= 1
    else:
        # Values: each warpgroup 256 columns of O.
        cute.arch.setmaxregister_increase(160)
        part, own_thread = (warp - VALUE_WARP) // 4, (thread - 32 * VALUE_WARP) % 128
        accs_o = [
            sm90_wgmma.accumulator(sm90_prefill_value.PRODUCT_COLUMNS)
            for _ in range(sm90_prefill_value.PRODUCTS)
        ]
        factor = cute.make_rmem_tensor((2,), Float32)
        next_keys = sm90_prefill_gather.keys_of(work, work.first)
        for item in cutlass.range(work.first, work.items, work.step, unroll=1):
            token, first_head, heads = place_of(item)
            tiles = sm90_prefill_gather.tiles_of(next_keys)
            next_keys = sm90_prefill_gather.keys_of(work, item + work.step)
            slot, phase = sm90_ring.next_position(slot, phase, SLOTS)  # that of Q
            slot, phase, message = sm90_prefill_value.add_values(
                tiles, slot, phase, message, part, keys, messages, empty, accs_o, own_thread, SLOTS
            )
            cute.arch.mbarrier_wait(messages.last_full, last)
            sm90_prefill_value.hear_factors(factor, messages.normalisers, own_thread)
            cute.arch.sync_warp()
            sm90_ring.release(messages.last_empty, 0)
            last ^= 1
            own_out = heads_of(out, token, first_head)
            sm90_prefill_value.store(accs_o, factor, own_out, heads, part, own_thread)


@cute.jit
def place_of(item: Int32) -> tuple[Int32, Int32, Int32]:
    """The query, the first head and the number of heads of a work item."""
    first_head = item % HEAD_BLOCKS * 64
    return item // HEAD_BLOCKS, first_head, Int32(64)


@cute.jit
def heads_of(tensor: cute.Tensor, token: Int32, first_head: Int32) -> cute.Tensor:
    """The (64, HEAD_DIM) rows of a query's heads from ``first_head`` on, in q or out."""
    start = tensor.iterator + tensor.layout((token, first_head, 0))
    return cute.make_tensor(start, cute.make_layout((64, HEAD_DIM), stride=(tensor.stride[1], 1)))


@cute.jit
def numbers_of(tensor: cute.Tensor, token: Int32, first_head: Int32) -> cute.Tensor:
    """The (64,) numbers of a query's heads from ``first_head`` on, in lse or max_logits."""
    start = tensor.iterator + tensor.layout((token, first_head))
    return cute.make_tensor(start, cute.make_layout(64, stride=tensor.stride[1]))


@cute.jit
def sink_of(sink: cute.Tensor, first_head: Int32) -> cute.Tensor:
    return cute.make_tensor(sink.iterator + first_head, cute.make_layout(64))


@cute.jit
def launch(
    q: cute.Tensor,
    kv: cute.Tensor,
    rows: cute.Tensor,
    length: cute.Tensor | None,
    sink: cute.Tensor | None,
    out: cute.Tensor,
    lse: cute.Tensor,
    max_logits: cute.Tensor,
    softmax_scale: Float32,
    empty_lse: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    sparse_attention_prefill_kernel(
        q, kv, rows, length, sink, out, lse, max_logits, softmax_scale, empty_lse, pdl
    ).launch(
        grid=(cutlass.min(q.shape[0] * HEAD_BLOCKS, PERSISTENT_CTAS), 1, 1),
        block=(THREADS, 1, 1),
        stream=stream,
        use_pdl=pdl,
        min_blocks_per_mp=1,
    )


def arguments(variant):
    queries = cute.sym_int()

    def heads_of_queries():
        strides = [cute.sym_int64(divisibility=8) for _ in range(2)]
        return make_fake_tensor(
            BFloat16, (queries, HEADS, HEAD_DIM), (*strides, 1), assumed_align=16
        )

    def numbers():
        strides = tuple(cute.sym_int64() for _ in range(2))
        return make_fake_tensor(Float32, (queries, HEADS), strides, assumed_align=4)

    kv_stride = cute.sym_int64(divisibility=8)
    return (
        heads_of_queries(),
        make_fake_tensor(BFloat16, (cute.sym_int(), HEAD_DIM), (kv_stride, 1), assumed_align=16),
        make_fake_tensor(Int32, (queries, cute.sym_int()), (cute.sym_int64(), 1), assumed_align=4),
        make_fake_tensor(Int32, (queries,), (1,), assumed_align=4)
        if variant["has_length"]
        else None,
        make_fake_tensor(Float32, (HEADS,), (1,), assumed_align=4) if variant["has_sink"] else None,
        heads_of_queries(),
        numbers(),
        numbers(),
        Float32(1.0),
        Float32(0.0),
        variant["pdl"],
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
