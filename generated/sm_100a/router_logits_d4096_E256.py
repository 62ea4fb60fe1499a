# Emitted from generator/templates/moe/router_logits.py.j2 for op router_logits on sm_100a. Do not edit.
# dims: d=4096, E=256
# config: tile_n=128, stages=4, opt_level=3
# spec sha256: 7d31acfe44a8302168167a0f328140b1f953d1a5a33df8e56c13b4d5f2ee8737
"""The router's logits for many tokens: tiles of 64 tokens by 128 experts, columns in slices of 64.

Slices travel to shared memory by cp.async, 4 in flight. The grid may share the columns between CTAs:
then each writes its part of the logits, and who reads them adds up.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.row_products import add_products, make_sums
from dsv4.generator.device.row_slices import fetch_slice, lane_vector, make_slices

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
EXPERTS = 256
SLICE = 64  # columns
TILE_TOKENS = 64
TILE_EXPERTS = 128
STAGES = 4
TOKEN_WARPS = 2  # 32 tokens each
EXPERT_WARPS = 4
TOKEN_STEPS = TILE_TOKENS // (16 * TOKEN_WARPS)  # tensor-core tiles of a warp
EXPERT_STEPS = TILE_EXPERTS // (8 * EXPERT_WARPS)
THREADS = 256


@cute.struct
class SharedStorage:
    tokens: cute.struct.Align[cute.struct.MemRange[BFloat16, 16384], 128]
    experts: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 128]


@cute.kernel
def router_logits_kernel(
    y: cute.Tensor, gate: cute.Tensor, logits: cute.Tensor, pdl: cutlass.Constexpr[bool]
):
    thread, _, _ = cute.arch.thread_idx()
    expert_tile, token_tile, split = cute.arch.block_idx()
    warp, lane = thread // 32, thread % 32
    token_warp, expert_warp = warp % TOKEN_WARPS, warp // TOKEN_WARPS
    total_tokens, splits = y.shape[0], logits.shape[0]
    first = split * (COLUMNS // SLICE) // splits
    count = (split + 1) * (COLUMNS // SLICE) // splits - first

    storage = SmemAllocator().allocate(SharedStorage)
    token_slices = make_slices(storage.tokens, TILE_TOKENS, STAGES)
    expert_slices = make_slices(storage.experts, TILE_EXPERTS, STAGES)
    first_token, first_expert = token_tile * TILE_TOKENS, expert_tile * TILE_EXPERTS

    # Fill the stages but one. The gate first: with pdl it is read while the launch before still runs.
    for stage in cutlass.range_constexpr(STAGES - 1):
        if stage < count:
            fetch_slice(
                gate,
                first_expert,
                EXPERTS,
                first + stage,
                expert_slices[None, None, None, stage],
                thread,
                THREADS,
            )
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    for stage in cutlass.range_constexpr(STAGES - 1):
        if stage < count:
            fetch_slice(
                y,
                first_token,
                total_tokens,
                first + stage,
                token_slices[None, None, None, stage],
                thread,
                THREADS,
            )
        cute.arch.cp_async_commit_group()

    sums = [[make_sums() for _ in range(EXPERT_STEPS)] for _ in range(TOKEN_STEPS)]
    for i in cutlass.range(count, unroll=1):
        cute.arch.cp_async_wait_group(STAGES - 2)
        cute.arch.sync_threads()  # everyone's part of slice i is there, and slice i - 1 is used up
        ahead = i + STAGES - 1
        if ahead < count:
            stage = ahead % STAGES
            fetch_slice(
                gate,
                first_expert,
                EXPERTS,
                first + ahead,
                expert_slices[None, None, None, stage],
                thread,
                THREADS,
            )
            fetch_slice(
                y,
                first_token,
                total_tokens,
                first + ahead,
                token_slices[None, None, None, stage],
                thread,
                THREADS,
            )
        cute.arch.cp_async_commit_group()
        stage = i % STAGES
        for half in cutlass.range_constexpr(SLICE // 32):
            others = [
                lane_vector(
                    expert_slices[None, None, None, stage],
                    (expert_warp * EXPERT_STEPS + n) * 8,
                    half,
                    lane,
                )
                for n in range(EXPERT_STEPS)
            ]
            for m in cutlass.range_constexpr(TOKEN_STEPS):
                row = (token_warp * TOKEN_STEPS + m) * 16
                low = lane_vector(token_slices[None, None, None, stage], row, half, lane)
                high = lane_vector(token_slices[None, None, None, stage], row + 8, half, lane)
                for n in cutlass.range_constexpr(EXPERT_STEPS):
                    add_products(sums[m][n], low, high, others[n])

    # A lane has two neighbouring experts of two tokens in each tensor-core tile.
    pairs = cute.make_tensor(
        logits.iterator,
        cute.make_layout(
            (2, EXPERTS // 2, total_tokens, splits), stride=(1, 2, EXPERTS, logits.stride[0])
        ),
    )
    pair_store = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), Float32, num_bits_per_copy=64)
    for m in cutlass.range_constexpr(TOKEN_STEPS):
        for half in cutlass.range_constexpr(2):
            token = first_token + (token_warp * TOKEN_STEPS + m) * 16 + half * 8 + lane // 4
            if token < total_tokens:
                for n in cutlass.range_constexpr(EXPERT_STEPS):
                    pair = first_expert // 2 + (expert_warp * EXPERT_STEPS + n) * 4 + lane % 4
                    found = cute.make_rmem_tensor((2,), Float32)
                    found[0], found[1] = sums[m][n][2 * half], sums[m][n][2 * half + 1]
                    cute.copy(pair_store, found, pairs[None, pair, token, split])


@cute.jit
def launch(
    y: cute.Tensor, gate: cute.Tensor, logits: cute.Tensor, pdl: cutlass.Constexpr[bool], stream
):
    token_tiles = cute.ceil_div(y.shape[0], TILE_TOKENS)
    if token_tiles > 0:
        router_logits_kernel(y, gate, logits, pdl).launch(
            grid=[EXPERTS // TILE_EXPERTS, token_tiles, logits.shape[0]],
            block=[THREADS, 1, 1],
            stream=stream,
            use_pdl=pdl,
        )


def arguments(variant):
    rows = cute.sym_int()
    y = make_fake_tensor(
        BFloat16, (rows, COLUMNS), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    gate = make_fake_tensor(BFloat16, (EXPERTS, COLUMNS), (COLUMNS, 1), assumed_align=16)
    part_stride = cute.sym_int64(divisibility=8)
    logits = make_fake_tensor(
        Float32, (cute.sym_int(), rows, EXPERTS), (part_stride, EXPERTS, 1), assumed_align=16
    )
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return y, gate, logits, variant["pdl"], stream
