# Emitted from generator/templates/moe/router.py.j2 for op router on sm_100a. Do not edit.
# dims: d=4096, E=256, k=6
# config: k_splits=2, warps=16, opt_level=2
# spec sha256: 1e63bdcb01d1462cddab37f3ccfbc32a3c4063e58de0477e2cad0fcbe804d6ba
"""The router for a few tokens: gate product of 4096 columns and choice of 6 out of 256 experts in one launch.

The gate is what there is to read, so all SMs read it: a CTA takes 8 experts and 1 / 2 of the columns, for 16
tokens, and writes these logits' part to the workspace. The CTA that finishes last finds all
logits of its 16 tokens there: it chooses, a warp a token. A counter says which one that is; the last one
sets it back to 0.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.expert_choice import choose_largest, make_scores, write_choice
from dsv4.generator.device.expert_run import load_logits, load_run
from dsv4.generator.device.row_products import add_products, make_sums

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
EXPERTS = 256
K = 6  # experts a token
TOKENS = 16  # of a CTA, one tensor-core tile
SPLITS = 2  # CTAs that share the columns
WARPS = 16  # that share a CTA's columns
STEPS = 4  # of 32 columns, for each warp: 16 bytes a thread and row
EXPERT_TILES = EXPERTS // 8
THREADS = 512


@cute.struct
class SharedStorage:
    sums: cute.struct.Align[cute.struct.MemRange[Float32, 2048], 16]
    arrived: cute.struct.Align[cute.struct.MemRange[Int32, 1], 16]


@cute.kernel
def router_kernel(
    y: cute.Tensor,
    gate: cute.Tensor,
    bias: cute.Tensor,
    counters: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    partials: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, group, _ = cute.arch.block_idx()
    expert_tile, split = cta % EXPERT_TILES, cta // EXPERT_TILES
    warp, lane = thread // 32, thread % 32
    row, quarter = lane // 4, lane % 4  # what add_products asks of a lane
    total_tokens = y.shape[0]
    part = split * WARPS + warp  # of the columns: STEPS * 32 neighbouring ones

    # The gate first: with pdl it is read while the launch before this one still runs.
    columns = ((8, STEPS), 4, SPLITS * WARPS)
    column_strides = ((1, 32), 8, 32 * STEPS)
    vector = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), BFloat16, num_bits_per_copy=128)
    gate_parts = cute.make_tensor(
        gate.iterator, cute.make_layout((*columns, EXPERTS), stride=(*column_strides, COLUMNS))
    )
    gate_part = cute.make_rmem_tensor((8, STEPS), BFloat16)
    cute.copy(vector, gate_parts[(None, None), quarter, part, expert_tile * 8 + row], gate_part)
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    else:
        cute.arch.sync_warp()  # keeps the compiler from moving these loads behind the tokens'

    # 16 tokens; rows beyond the last token are zeros.
    y_parts = cute.make_tensor(
        y.iterator,
        cute.make_layout((*columns, total_tokens), stride=(*column_strides, y.stride[0])),
    )
    tokens = [cute.make_rmem_tensor((8, STEPS), BFloat16) for _ in range(2)]
    for half in cutlass.range_constexpr(2):
        token = group * TOKENS + half * 8 + row
        tokens[half].fill(0.0)
        if token < total_tokens:
            cute.copy(vector, y_parts[(None, None), quarter, part, token], tokens[half])
    biases = load_run(bias, lane, EXPERTS)  # of use to who chooses, who then need not wait for it
    cute.arch.sync_warp()  # all loads are under way before the first is waited for
    sums = make_sums()
    for step in cutlass.range_constexpr(STEPS):
        add_products(sums, tokens[0][None, step], tokens[1][None, step], gate_part[None, step])

    # Add the warps' sums, always in the same order; one thread a token and expert.
    storage = SmemAllocator().allocate(SharedStorage)
    shared_sums = storage.sums.get_tensor(
        cute.make_ordered_layout((WARPS, TOKENS, 8), order=(2, 1, 0))
    )
    for half in cutlass.range_constexpr(2):
        for i in cutlass.range_constexpr(2):
            shared_sums[warp, half * 8 + row, 2 * quarter + i] = sums[2 * half + i]
    cute.arch.sync_threads()
    if thread < TOKENS * 8:
        token, expert = group * TOKENS + thread // 8, expert_tile * 8 + thread % 8
        logit = shared_sums[0, thread // 8, thread % 8]
        for i in cutlass.range_constexpr(1, WARPS):
            logit = logit + shared_sums[i, thread // 8, thread % 8]
        if token < total_tokens:
            partials[split, token, expert] = logit

    # Whoever comes last knows that all of the group's logits are there.
    arrived = storage.arrived.get_tensor(cute.make_layout((1,)))
    cute.arch.sync_threads()
    if thread == 0:
        counter = counters.iterator + group
        arrived[0] = cute.arch.atomic_add(counter.llvm_ptr, Int32(1), sem="acq_rel", scope="gpu")
    cute.arch.sync_threads()
    if arrived[0] == EXPERT_TILES * SPLITS - 1:
        if thread == 0:
            counters[group] = 0  # for the next launch
        end = cutlass.min(total_tokens, (group + 1) * TOKENS)
        for token in cutlass.range(group * TOKENS + warp, end, WARPS, unroll=1):
            logits = load_logits(partials, token, lane, EXPERTS, SPLITS)
            scores, affinities = make_scores(logits, biases, lane, EXPERTS)
            chosen, values = choose_largest(scores, affinities, lane, K)
            write_choice(chosen, values, factor, experts[token, None], weights[token, None], lane)


@cute.jit
def launch(
    y: cute.Tensor,
    gate: cute.Tensor,
    bias: cute.Tensor,
    counters: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    partials: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    groups = cute.ceil_div(y.shape[0], TOKENS)
    if groups > 0:
        router_kernel(y, gate, bias, counters, experts, weights, partials, factor, pdl).launch(
            grid=[EXPERT_TILES * SPLITS, groups, 1],
            block=[THREADS, 1, 1],
            stream=stream,
            use_pdl=pdl,
        )


def arguments(variant):
    rows, groups = cute.sym_int(), cute.sym_int()
    y = make_fake_tensor(
        BFloat16, (rows, COLUMNS), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    gate = make_fake_tensor(BFloat16, (EXPERTS, COLUMNS), (COLUMNS, 1), assumed_align=16)
    bias = make_fake_tensor(Float32, (EXPERTS,), (1,), assumed_align=16)
    counters = make_fake_tensor(Int32, (groups,), (1,), assumed_align=4)
    experts = make_fake_tensor(Int32, (rows, K), (K, 1), assumed_align=4)
    weights = make_fake_tensor(Float32, (rows, K), (K, 1), assumed_align=4)
    split_stride = cute.sym_int64(divisibility=8)
    partials = make_fake_tensor(
        Float32, (16, rows, EXPERTS), (split_stride, EXPERTS, 1), assumed_align=16
    )
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return y, gate, bias, counters, experts, weights, partials, Float32(0.0), variant["pdl"], stream
