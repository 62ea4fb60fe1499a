# Emitted from generator/templates/compressor/compressor.py.j2 for op compressor on sm_90a. Do not edit.
# dims: m=4, D=512
# config: cluster=1, slots_per_thread=4, entries_per_cta=1, state_ctas=528, opt_level=3
# spec sha256: 7b121aababcf76ff7e48f15b76fded2732f9a0bc2ced1a9c734a797551038f19
"""Compressed entries of 512 channels from 8 tokens each, and the partial state that a step leaves.

A CTA makes an entry: 64 threads share its channels, eight each, and 2 such groups its slots. Their parts meet
in shared memory.
The first CTAs write rows of state.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint8
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.channel_softmax import (
    mean_of,
    merge_published,
    pool_members,
    publish,
)
from dsv4.generator.device.compressor_members import load_ape, load_members, load_rows
from dsv4.generator.device.compressor_state import (
    TOKENS_OF_CTA,
    keep_tokens,
    keep_tokens_after,
    load_plan,
)
from dsv4.generator.device.page_rows import store_kv_fp8
from dsv4.generator.device.rms_scale import inverse_rms
from dsv4.generator.device.rope import load_cos_sin, rotate_row
from dsv4.generator.device.row_reduce import sum_over_lanes, tree_sum
from dsv4.generator.device.vector_io import lane_of_row, load_vectors, make_fragment, to_float32

VARIANTS = (
    {"format": "kv_fp8", "hadamard": False, "inputs": "f32", "pdl": False},
    {"format": "kv_fp8", "hadamard": False, "inputs": "f32", "pdl": True},
)

TOKENS = 4  # of an entry that are its own
SLOTS = 8  # tokens that it is made of
WIDTH = 512
CHANNELS = 1024  # of a token: those for its own entry are the second half

VECTORS = WIDTH // 8  # of an entry: eight channels each
LANES = 64  # threads that share the channels
SLOTS_PER_THREAD = 4
PARTS = 2  # of the slots: maximum, sum of weights and weighted sum of every channel
PART_NUMBERS = 1536  # from one part to the next
FINISHING_THREADS = 64  # the first of the CTA: they write the entry
THREADS = 128
STATE_CTAS = 528  # that write rows of state, at most; more where they had over 32 tokens each


@cute.struct
class SharedStorage:
    partials: cute.struct.Align[cute.struct.MemRange[Float32, 3072], 16]
    square_sums: cute.struct.Align[cute.struct.MemRange[Float32, 4], 16]


@cute.kernel
def compressor_kernel(
    products: tuple,
    ape: cute.Tensor,
    norm: cute.Tensor,
    cos_sin: cute.Tensor,
    state: cute.Tensor,
    pool: cute.Tensor,
    plan: tuple,
    page: Int32,
    eps: Float32,
    first_cta: Int32,
    state_ctas: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """``products``: kv and score. ``plan``: phase, fresh, stored, entry_rows, state_rows.

    CTAs count from ``first_cta`` on. ``state_ctas`` keep up to 32 tokens each, the others make entries.
    """
    phase, fresh, stored, entry_rows, state_rows = plan
    if cutlass.const_expr(not pdl):
        cute.arch.griddepcontrol_launch_dependents()  # state_kernel, which waits for this launch to end
    cta, _, _ = cute.arch.block_idx()
    cta += first_cta
    if cta < state_ctas:
        row, ape_row = load_plan(state_rows, phase, cta, state_ctas)
        if cutlass.const_expr(pdl):
            wait_for_launch_before()
        keep_tokens(*products, ape, state, row, ape_row, cta, state_ctas, THREADS)
    else:
        cta -= state_ctas
        entry = cta
        row = Int32(entry_rows[entry])
        thread, _, _ = cute.arch.thread_idx()
        group = thread // LANES
        fresh_rows = load_rows(fresh[entry, None], group * SLOTS_PER_THREAD, SLOTS_PER_THREAD)
        stored_rows = load_rows(stored[entry, None], group * SLOTS_PER_THREAD, SLOTS_PER_THREAD)
        if row >= 0:
            slots = (fresh_rows, stored_rows)
            complete_entry(
                products, ape, norm, cos_sin, state, pool, slots, entry, row, page, eps, pdl
            )
        elif cutlass.const_expr(pdl):
            wait_for_launch_before()


@cute.kernel
def state_kernel(
    products: tuple,
    ape: cute.Tensor,
    state: cute.Tensor,
    plan: tuple,
    state_ctas: Int32,
    pdl: cutlass.Constexpr[bool],
):
    """Rows of state after the entries of the launch before, which is waited for with or without ``pdl``."""
    phase, _, _, _, state_rows = plan
    cta, _, _ = cute.arch.block_idx()
    row, ape_row = load_plan(state_rows, phase, cta, state_ctas)
    keep_tokens_after(*products, ape, state, row, ape_row, cta, state_ctas, THREADS, pdl)


@cute.jit
def complete_entry(
    products: tuple,
    ape: cute.Tensor,
    norm: cute.Tensor,
    cos_sin: cute.Tensor,
    state: cute.Tensor,
    pool: cute.Tensor,
    slots: tuple,
    entry: Int32,
    row: Int32,
    page: Int32,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
):
    """Make entry number ``entry`` of the step and write it to ``row`` of the pool.

    ``slots``: rows of the step and rows of the state that hold the thread's slots, −1 for none.
    """
    thread, _, _ = cute.arch.thread_idx()
    lane, group = thread % LANES, thread // LANES
    vector = lane
    channel, first_slot = 8 * vector, group * SLOTS_PER_THREAD

    # What this launch is given from long before it: with pdl it is read while the launch before still runs.
    added = load_ape(ape, first_slot, SLOTS_PER_THREAD, channel, WIDTH)
    weight = make_fragment(WIDTH, VECTORS, BFloat16)
    load_vectors(lane_of_row(norm, WIDTH, VECTORS, vector), weight, WIDTH, VECTORS, vector)
    turns = load_cos_sin(cos_sin[entry, None], VECTORS, vector)
    if cutlass.const_expr(pdl):
        wait_for_launch_before()

    # Pool: each thread its slots, then the groups.
    values, scores = load_members(*products, state, ape, added, *slots, channel, first_slot, WIDTH)
    part = pool_members(values, scores)
    storage = SmemAllocator().allocate(SharedStorage)
    # Eight channels of a lane lie together.
    partials = storage.partials.get_tensor(
        cute.make_layout((PARTS, LANES, (8, 3)), stride=(PART_NUMBERS, 8, (1, 8 * LANES)))
    )
    publish(part, partials[group, lane, (None, None)])
    cute.arch.sync_threads()
    if thread < FINISHING_THREADS:
        for p in cutlass.range_constexpr(1, PARTS):
            merge_published(part, partials[p, lane, (None, None)])
    mean = mean_of(part)

    # Norm.
    squares = sum_over_lanes(tree_sum([mean[i] * mean[i] for i in range(8)]), 32)
    square_sums = storage.square_sums.get_tensor(cute.make_layout(4))
    if thread < FINISHING_THREADS and thread % 32 == 0:
        square_sums[thread // 32] = squares
    cute.arch.sync_threads()
    squares = tree_sum([square_sums[i] for i in range(2)])
    entry_values = cute.make_rmem_tensor((8, 1), Float32)
    entry_values.store(mean.load() * inverse_rms(squares, WIDTH, eps) * to_float32(weight).load())

    # Rotate, quantise and write: the first threads. The others of the CTA hold the same.
    target = row if group == 0 else Int32(-1)
    if thread < FINISHING_THREADS:
        finish(entry_values, turns, pool, target, page, vector)


@cute.jit
def finish(
    values: cute.Tensor,
    turns: cute.Tensor,
    pool: cute.Tensor,
    row: Int32,
    page: Int32,
    vector: Int32,
):
    """Write an entry that is normalised, this thread's eight channels of it (8, 1), to ``row``; −1 writes nothing."""
    rotate_row(values, turns, VECTORS, vector)
    store_kv_fp8(values, pool, Int64(row), page, VECTORS, vector)


@cute.jit
def wait_for_launch_before():
    cute.arch.griddepcontrol_wait()
    # Not earlier: what the next launch does before its own wait may rely on all launches before this.
    cute.arch.griddepcontrol_launch_dependents()


@cute.jit
def launch(
    kv: cute.Tensor,
    score: cute.Tensor,
    ape: cute.Tensor,
    norm: cute.Tensor,
    cos_sin: cute.Tensor,
    state: cute.Tensor,
    pool: cute.Tensor,
    plain_pool: None,
    phase: cute.Tensor,
    fresh: cute.Tensor,
    stored: cute.Tensor,
    entry_rows: cute.Tensor,
    state_rows: cute.Tensor,
    page: Int32,
    apart: Int32,
    eps: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    tokens = kv.shape[0]
    entry_ctas = fresh.shape[0]
    state_ctas = cutlass.max(
        cutlass.min(tokens, STATE_CTAS), (tokens + TOKENS_OF_CTA - 1) // TOKENS_OF_CTA
    )
    products, plan = (kv, score), (phase, fresh, stored, entry_rows, state_rows)
    # Where tokens may take rows of state that entries read, the entries are made first.
    first = state_ctas if apart == 0 else Int32(0)
    if first < state_ctas + entry_ctas:
        compressor_kernel(
            products, ape, norm, cos_sin, state, pool, plan, page, eps, first, state_ctas, pdl
        ).launch(
            grid=[state_ctas + entry_ctas - first, 1, 1],
            block=[THREADS, 1, 1],
            stream=stream,
            use_pdl=pdl,
        )
    if first > 0:
        state_kernel(products, ape, state, plan, state_ctas, pdl).launch(
            grid=[state_ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=True
        )


def arguments(variant):
    tokens, entries = cute.sym_int(), cute.sym_int()

    def rows(dtype, count, columns, multiple):
        row_stride = cute.sym_int64(divisibility=multiple)
        return make_fake_tensor(dtype, (count, columns), (row_stride, 1), assumed_align=16)

    def compact(dtype, shape, align=16):
        strides = (shape[1], 1) if len(shape) == 2 else (1,)
        return make_fake_tensor(dtype, shape, strides, assumed_align=align)

    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        rows(Float32, tokens, CHANNELS, 8),
        rows(Float32, tokens, CHANNELS, 8),
        compact(Float32, (TOKENS, CHANNELS)),
        compact(BFloat16, (WIDTH,)),
        compact(Float32, (entries, 64)),
        compact(Float32, (cute.sym_int(), 2 * CHANNELS)),
        rows(Uint8, cute.sym_int(), cute.sym_int(), 16),
        None,
        compact(Int64, (tokens,), 8),
        compact(Int64, (entries, SLOTS)),
        compact(Int64, (entries, SLOTS)),
        compact(Int64, (entries,), 8),
        compact(Int64, (tokens,), 8),
        Int32(1),
        Int32(1),
        Float32(0.0),
        variant["pdl"],
        stream,
    )
