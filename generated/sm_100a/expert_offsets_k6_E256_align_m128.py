# Emitted from generator/templates/moe/expert_offsets.py.j2 for op expert_offsets on sm_100a. Do not edit.
# dims: k=6, E=256, align_m=128
# config: warps=32, opt_level=3
# spec sha256: 6c14a37fafdffa38b30611ab7232991fcc4d902fb143d7cf8df9b80deef858b4
"""Routes sorted by expert, 256 experts, each one's rows padded to a multiple of 128; the order is stable.

Up to 4096 routes, one launch does all. Every CTA of it counts all routes, so that none has to wait for another; they
share what there is to write, the padding above all. Beyond, a CTA takes 4096 routes: a launch before counts every
CTA's, and each CTA adds up what the CTAs before it have. Warps own neighbouring routes, so that sums over warps in
order give ranks.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.route_ranks import load_routes, place_routes, rank_routes, sum_before

VARIANTS = ({"pdl": False}, {"pdl": True})

EXPERTS = 256
K = 6  # experts a token
ALIGN = 128  # rows
ROUTES = 4096  # of a CTA
WARPS = 32
THREADS = 1024
STEPS = ROUTES // THREADS  # routes of a thread at most
PADDING_CTAS = 32  # of the one launch, a thread a row of padding
EXPERT_WARPS = 8


@cute.struct
class SharedStorage:
    warp_counts: cute.struct.Align[cute.struct.MemRange[Int32, 8192], 16]
    warp_sums: cute.struct.Align[cute.struct.MemRange[Int32, 32], 16]
    starts: cute.struct.Align[cute.struct.MemRange[Int32, 256], 16]
    ends: cute.struct.Align[cute.struct.MemRange[Int32, 512], 16]


@cute.jit
def flat(tensor: cute.Tensor) -> cute.Tensor:
    """A compact tensor as one row."""
    return cute.make_tensor(tensor.iterator, cute.make_layout((cute.size(tensor),)))


@cute.jit
def rank_by_warp(
    routes: cute.Tensor, warp_counts: cute.Tensor, cta: Int32, steps: Int32, thread: Int32
):
    """Set ``warp_counts`` [WARPS, EXPERTS] for the routes from cta · ROUTES on, ``steps`` of a thread.

    Only the rows of the warps that may have routes are set. Returns this lane's routes and their ranks in the warp, the
    warp's first route and their end, and how many warps may have routes.
    """
    warp, lane = thread // 32, thread % 32
    total = cute.size(routes)
    first = cutlass.min(cta * ROUTES + warp * steps * 32, total)
    end = cutlass.min(first + steps * 32, total)
    held = load_routes(routes, first, end, lane, STEPS)
    busy = cutlass.min((total - cta * ROUTES + 31) // 32, WARPS)
    if warp < busy:
        for expert in cutlass.range(lane, EXPERTS, 32, unroll=1):
            warp_counts[warp, expert] = 0
    cute.arch.sync_warp()
    ranks = rank_routes(held, first, end, warp_counts[warp, None], lane)
    cute.arch.sync_threads()
    return held, ranks, first, end, busy


@cute.kernel
def count_kernel(experts: cute.Tensor, cta_counts: cute.Tensor, pdl: cutlass.Constexpr[bool]):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    storage = SmemAllocator().allocate(SharedStorage)
    warp_counts = storage.warp_counts.get_tensor(
        cute.make_ordered_layout((WARPS, EXPERTS), order=(1, 0))
    )
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    _, _, _, _, busy = rank_by_warp(flat(experts), warp_counts, cta, Int32(STEPS), thread)
    if thread < EXPERTS:
        count = Int32(0)
        for warp in cutlass.range(busy, unroll=8):
            count = count + warp_counts[warp, thread]
        cta_counts[cta, thread] = count


@cute.kernel
def offsets_kernel(
    experts: cute.Tensor,
    counts: cute.Tensor,
    offsets: cute.Tensor,
    route_row: cute.Tensor,
    row_token: cute.Tensor,
    cta_counts: cute.Tensor,
    several: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas = cute.arch.grid_dim()[0] if cutlass.const_expr(several) else PADDING_CTAS
    warp, lane = thread // 32, thread % 32
    storage = SmemAllocator().allocate(SharedStorage)
    warp_counts = storage.warp_counts.get_tensor(
        cute.make_ordered_layout((WARPS, EXPERTS), order=(1, 0))
    )
    warp_sums = storage.warp_sums.get_tensor(cute.make_layout((WARPS,)))
    starts = storage.starts.get_tensor(cute.make_layout((EXPERTS,)))
    ends = storage.ends.get_tensor(cute.make_ordered_layout((2, EXPERTS), order=(1, 0)))
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    routes = flat(experts)
    steps = (
        Int32(STEPS)
        if cutlass.const_expr(several)
        else (cute.size(routes) + (THREADS - 1)) // THREADS
    )
    counted = cta if cutlass.const_expr(several) else Int32(0)
    held, ranks, first, end, busy = rank_by_warp(routes, warp_counts, counted, steps, thread)

    # A thread an expert: its routes before each warp, before this CTA and in all.
    before, count = Int32(0), Int32(0)
    if thread < EXPERTS:
        in_cta = Int32(0)
        for i in cutlass.range(busy, unroll=4):
            more = warp_counts[i, thread]
            warp_counts[i, thread] = in_cta
            in_cta = in_cta + more
        if cutlass.const_expr(several):
            for other in cutlass.range(ctas, unroll=8):
                part = cta_counts[other, thread]
                before = before + (part if other < cta else Int32(0))
                count = count + part
        else:
            count = in_cta
    padded = (count + (ALIGN - 1)) // ALIGN * ALIGN
    offset, total = sum_before(padded, warp_sums, thread, EXPERT_WARPS)
    if thread < EXPERTS:
        starts[thread] = offset + before
        ends[0, thread], ends[1, thread] = offset + count, offset + padded
        if cta == 0:
            counts[thread] = count
            offsets[thread] = offset
    if thread == 0 and cta == 0:
        offsets[EXPERTS] = total
    # Padding: behind all experts' rows, then behind each one's.
    for row in cutlass.range(
        total + cta * THREADS + thread, row_token.shape[0], ctas * THREADS, unroll=1
    ):
        row_token[row] = -1
    cute.arch.sync_threads()
    if cutlass.const_expr(several):
        place_routes(
            held,
            ranks,
            first,
            end,
            warp_counts[warp, None],
            starts,
            flat(route_row),
            row_token,
            lane,
            K,
        )
    elif warp % ctas == cta:  # the warps of the CTAs have the same routes
        place_routes(
            held,
            ranks,
            first,
            end,
            warp_counts[warp, None],
            starts,
            flat(route_row),
            row_token,
            lane,
            K,
        )
    for expert in cutlass.range(cta + warp * ctas, EXPERTS, ctas * WARPS, unroll=1):
        for row in cutlass.range(ends[0, expert] + lane, ends[1, expert], 32, unroll=2):
            row_token[row] = -1


@cute.jit
def launch(
    experts: cute.Tensor,
    counts: cute.Tensor,
    offsets: cute.Tensor,
    route_row: cute.Tensor,
    row_token: cute.Tensor,
    cta_counts: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    ctas = cute.ceil_div(experts.shape[0] * K, ROUTES)
    if ctas == 1:
        offsets_kernel(
            experts, counts, offsets, route_row, row_token, cta_counts, False, pdl
        ).launch(grid=[PADDING_CTAS, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)
    if ctas > 1:
        count_kernel(experts, cta_counts, pdl).launch(
            grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )
        offsets_kernel(
            experts, counts, offsets, route_row, row_token, cta_counts, True, pdl
        ).launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)


def arguments(variant):
    tokens, rows, ctas = cute.sym_int(), cute.sym_int(), cute.sym_int()
    experts = make_fake_tensor(Int32, (tokens, K), (K, 1), assumed_align=4)
    counts = make_fake_tensor(Int32, (EXPERTS,), (1,), assumed_align=4)
    offsets = make_fake_tensor(Int32, (EXPERTS + 1,), (1,), assumed_align=4)
    route_row = make_fake_tensor(Int32, (tokens, K), (K, 1), assumed_align=4)
    row_token = make_fake_tensor(Int32, (rows,), (1,), assumed_align=4)
    cta_counts = make_fake_tensor(Int32, (ctas, EXPERTS), (EXPERTS, 1), assumed_align=4)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return experts, counts, offsets, route_row, row_token, cta_counts, variant["pdl"], stream
