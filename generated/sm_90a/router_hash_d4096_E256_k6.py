# Emitted from generator/templates/moe/router_hash.py.j2 for op router_hash on sm_90a. Do not edit.
# dims: d=4096, E=256, k=6
# config: route_warps=4, opt_level=3
# spec sha256: 2ca974367ad18bbab24c41ec0b092ed348dcc2c7ef7a65f0cac2216257b66789
"""The router of a hash layer for a few tokens: a table names the 6 experts of a token, the gate weighs them.

A CTA takes a token. Only the rows of the chosen experts are read of the gate, each by 4 warps.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.expert_choice import affinity
from dsv4.generator.device.row_dot import dot
from dsv4.generator.device.row_reduce import sum_over_lanes

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
EXPERTS = 256
K = 6  # experts a token
ROUTE_WARPS = 4  # that share the row of one expert
STEPS = 4  # of 256 columns, for each warp: 16 bytes a thread
THREADS = 768


@cute.struct
class SharedStorage:
    dots: cute.struct.Align[cute.struct.MemRange[Float32, 24], 16]


@cute.kernel
def router_kernel(
    y: cute.Tensor,
    gate: cute.Tensor,
    tid2eid: cute.Tensor,
    tokens: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    token, _, _ = cute.arch.block_idx()
    warp, lane = thread // 32, thread % 32
    route, part = warp // ROUTE_WARPS, warp % ROUTE_WARPS
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    # The token's row is on its way while the table is asked for the expert.
    vector = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), BFloat16, num_bits_per_copy=128)
    columns = ((8, STEPS), 32, ROUTE_WARPS)
    column_strides = ((1, 256), 8, 256 * STEPS)
    y_parts = cute.make_tensor(
        y.iterator, cute.make_layout((*columns, y.shape[0]), stride=(*column_strides, y.stride[0]))
    )
    gate_parts = cute.make_tensor(
        gate.iterator, cute.make_layout((*columns, EXPERTS), stride=(*column_strides, COLUMNS))
    )
    row = cute.make_rmem_tensor((8, STEPS), BFloat16)
    cute.copy(vector, y_parts[(None, None), lane, part, token], row)
    token_id = tokens[token]
    expert = tid2eid[token_id, route]
    gate_row = cute.make_rmem_tensor((8, STEPS), BFloat16)
    cute.copy(vector, gate_parts[(None, None), lane, part, expert], gate_row)

    # One logit a warp, of a part of the columns; the first lanes of the first warp put the row together.
    storage = SmemAllocator().allocate(SharedStorage)
    dots = storage.dots.get_tensor(cute.make_ordered_layout((K, ROUTE_WARPS), order=(1, 0)))
    found = sum_over_lanes(dot(row, gate_row), 32)
    if lane == 0:
        dots[route, part] = found
    cute.arch.sync_threads()
    if warp == 0:
        place = cutlass.min(lane, K - 1)
        logit = dots[place, 0]
        for i in cutlass.range_constexpr(1, ROUTE_WARPS):
            logit = logit + dots[place, i]
        own = affinity(logit)
        total = cute.arch.shuffle_sync(own, 0)
        for n in cutlass.range_constexpr(1, K):
            total = total + cute.arch.shuffle_sync(own, n)
        if lane < K:
            experts[token, lane] = tid2eid[token_id, lane]
            weights[token, lane] = own * cute.arch.rcp_approx(total) * factor


@cute.jit
def launch(
    y: cute.Tensor,
    gate: cute.Tensor,
    tid2eid: cute.Tensor,
    tokens: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = y.shape[0]
    if ctas > 0:
        router_kernel(y, gate, tid2eid, tokens, experts, weights, factor, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


def arguments(variant):
    rows, entries = cute.sym_int(), cute.sym_int()
    y = make_fake_tensor(
        BFloat16, (rows, COLUMNS), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    gate = make_fake_tensor(BFloat16, (EXPERTS, COLUMNS), (COLUMNS, 1), assumed_align=16)
    tid2eid = make_fake_tensor(
        Int32, (entries, K), (cute.sym_int64(), cute.sym_int64()), assumed_align=4
    )
    tokens = make_fake_tensor(Int32, (rows,), (cute.sym_int64(),), assumed_align=4)
    experts = make_fake_tensor(Int32, (rows, K), (K, 1), assumed_align=4)
    weights = make_fake_tensor(Float32, (rows, K), (K, 1), assumed_align=4)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return y, gate, tid2eid, tokens, experts, weights, Float32(0.0), variant["pdl"], stream
