# Emitted from generator/templates/moe/expert_offsets.py.j2 for op expert_offsets on sm_90a. Do not edit.
# dims: k=6, E=256, align_m=128
# config: warps=32, few_routes=16384, few_chunk=128, ranked_routes=384, opt_level=3
# spec sha256: 6c640d6eb02a11bcf647c52796e221aba37ff55c1de8eb526e2b4f8cc02db2b5
"""Routes sorted by expert, 256 experts, each one's rows padded to a multiple of 128; the order is stable.

A CTA places a chunk of the routes. For that it needs to know how many of each expert lie before its chunk and how many
there are. Up to 16384 routes every CTA counts them all, and none has to wait for another. Beyond, a launch before
counts each 4096 routes, and a CTA adds up what it said and counts only those of its own 4096. Its last part is the
same: each warp has 32 neighbouring routes, and sums over warps in order give ranks.
Up to 384 routes all of them are the chunk of every CTA: their ranks are their counts.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.route_ranks import (
    add_routes,
    load_routes,
    rank_route,
    route_of,
    sum_before,
)

VARIANTS = ({"pdl": False}, {"pdl": True})

EXPERTS = 256
K = 6  # experts a token
ALIGN = 128  # rows
WARPS = 32
THREADS = 1024
SUPER = 4096  # routes that are counted together where there are many
FEW_ROUTES = 16384  # that every CTA counts by itself
FEW_CHUNK = 128  # routes that a CTA places, of few
RANKED = 384  # routes, a thread each, that every CTA ranks
CHUNK = THREADS  # of many
PADDING_CTAS = 32  # of few routes, at least: a thread a row of padding
BATCH = 8  # routes of a thread that are on their way together
EXPERT_WARPS = 8


@cute.struct
class SharedStorage:
    warp_counts: cute.struct.Align[cute.struct.MemRange[Int32, 8192], 16]
    warp_sums: cute.struct.Align[cute.struct.MemRange[Int32, 32], 16]
    before: cute.struct.Align[cute.struct.MemRange[Int32, 256], 16]
    totals: cute.struct.Align[cute.struct.MemRange[Int32, 256], 16]
    ends: cute.struct.Align[cute.struct.MemRange[Int32, 512], 16]


@cute.jit
def flat(tensor: cute.Tensor) -> cute.Tensor:
    """A compact tensor as one row."""
    return cute.make_tensor(tensor.iterator, cute.make_layout((cute.size(tensor),)))


@cute.kernel
def count_kernel(experts: cute.Tensor, cta_counts: cute.Tensor, pdl: cutlass.Constexpr[bool]):
    """The experts of each SUPER routes: a CTA a row of ``cta_counts`` [C, EXPERTS]."""
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    storage = SmemAllocator().allocate(SharedStorage)
    counted = storage.totals.get_tensor(cute.make_layout((EXPERTS,)))
    if thread < EXPERTS:
        counted[thread] = 0
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
    # The next launch is offsets_kernel. Not before the wait: it relies on all launches before this.
    cute.arch.griddepcontrol_launch_dependents()
    routes = flat(experts)
    cute.arch.sync_threads()
    end = cutlass.min((cta + 1) * SUPER, cute.size(routes))
    add_routes(
        load_routes(routes, cta * SUPER + thread, end, Int32(THREADS), SUPER // THREADS), counted
    )
    cute.arch.sync_threads()
    if thread < EXPERTS:
        cta_counts[cta, thread] = counted[thread]


@cute.jit
def add_split(
    held: cute.Tensor, route: Int32, first: Int32, before: cute.Tensor, later: cute.Tensor
):
    """Add a thread's routes, THREADS apart from ``route`` on, to ``before`` if they lie before ``first``, else ``later``."""
    for i in cutlass.range_constexpr(cute.size(held)):
        if held[i] >= 0:
            place = before.iterator if route + i * THREADS < first else later.iterator
            cute.arch.atomic_add(place + held[i], Int32(1), sem="relaxed", scope="cta")


@cute.jit
def add_supers(
    cta_counts: cute.Tensor, own: Int32, before: cute.Tensor, totals: cute.Tensor, thread: Int32
):
    """Add what count_kernel said: of the rows before ``own`` to ``before``, of all to ``totals`` (shared memory)."""
    parts = THREADS // EXPERTS
    expert, part = thread % EXPERTS, thread // EXPERTS
    if part < parts:
        earlier, count = Int32(0), Int32(0)
        for row in cutlass.range(part, cta_counts.shape[0], parts, unroll=8):
            more = cta_counts[row, expert]
            earlier = earlier + (more if row < own else Int32(0))
            count = count + more
        cute.arch.atomic_add(before.iterator + expert, earlier, sem="relaxed", scope="cta")
        cute.arch.atomic_add(totals.iterator + expert, count, sem="relaxed", scope="cta")


@cute.kernel
def offsets_kernel(
    experts: cute.Tensor,
    counts: cute.Tensor,
    offsets: cute.Tensor,
    route_row: cute.Tensor,
    row_token: cute.Tensor,
    cta_counts: cute.Tensor,
    many: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    warp, lane = thread // 32, thread % 32
    storage = SmemAllocator().allocate(SharedStorage)
    warp_counts = storage.warp_counts.get_tensor(
        cute.make_ordered_layout((WARPS, EXPERTS), order=(1, 0))
    )
    warp_sums = storage.warp_sums.get_tensor(cute.make_layout((WARPS,)))
    before = storage.before.get_tensor(cute.make_layout((EXPERTS,)))
    totals = storage.totals.get_tensor(
        cute.make_layout((EXPERTS,))
    )  # few: of the routes from the chunk on
    ends = storage.ends.get_tensor(cute.make_ordered_layout((2, EXPERTS), order=(1, 0)))
    routes = flat(experts)
    total = cute.size(routes)
    chunk = CHUNK if cutlass.const_expr(many) else FEW_CHUNK
    first = cutlass.min(cta * chunk, total)
    end = cutlass.min(first + chunk, total)
    busy = (end - first + 31) // 32  # warps that have routes
    if cutlass.const_expr(pdl and not many):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()

    # The chunk's own routes and those to count: of many, what its SUPER has before it (the launch before
    # count_kernel has ended when this begins, so they are there); of few, all, here the first of them.
    route = first + thread
    own = route_of(routes, route, end)
    if cutlass.const_expr(many):
        held = load_routes(
            routes, first // SUPER * SUPER + thread, first, Int32(THREADS), SUPER // CHUNK - 1
        )
    else:
        held = load_routes(routes, thread, total, Int32(THREADS), BATCH)
    cute.arch.sync_warp()  # keeps the compiler from moving the loads behind the barrier
    if thread < EXPERTS:
        before[thread], totals[thread] = 0, 0
    if warp < busy:
        for expert in cutlass.range_constexpr(EXPERT_WARPS):
            if expert * 32 + lane < EXPERTS:
                warp_counts[warp, expert * 32 + lane] = 0
    cute.arch.sync_threads()

    # Count and rank.
    if cutlass.const_expr(many):
        add_routes(held, before)
    else:
        add_split(held, thread, first, before, totals)
        for start in cutlass.range(BATCH * THREADS + thread, total, BATCH * THREADS, unroll=1):
            more = load_routes(routes, start, total, Int32(THREADS), BATCH)
            add_split(more, start, first, before, totals)
    rank = Int32(0)
    if warp < busy:
        rank = rank_route(own, warp_counts[warp, None], lane)
    if cutlass.const_expr(many):
        cute.arch.griddepcontrol_wait()  # for count_kernel, with or without pdl
        if cutlass.const_expr(pdl):
            cute.arch.griddepcontrol_launch_dependents()
        add_supers(cta_counts, first // SUPER, before, totals, thread)
    cute.arch.sync_threads()

    # A thread an expert: its routes in all, and where those of each warp begin.
    count, starts = Int32(0), Int32(0)
    if thread < EXPERTS:
        starts = before[thread]
        count = totals[thread] if cutlass.const_expr(many) else starts + totals[thread]
    padded = (count + (ALIGN - 1)) // ALIGN * ALIGN
    offset, rows = sum_before(padded, warp_sums, thread, EXPERT_WARPS)
    if thread < EXPERTS:
        starts = starts + offset
        for i in cutlass.range(busy, unroll=8):
            more = warp_counts[i, thread]
            warp_counts[i, thread] = starts
            starts = starts + more
        ends[0, thread], ends[1, thread] = offset + count, offset + padded
        if cta == 0:
            counts[thread] = count
            offsets[thread] = offset
    if thread == 0 and cta == 0:
        offsets[EXPERTS] = rows
    # Padding: behind all experts' rows, then behind each one's.
    for row in cutlass.range(
        rows + cta * THREADS + thread, row_token.shape[0], ctas * THREADS, unroll=1
    ):
        row_token[row] = -1
    cute.arch.sync_threads()
    if route < end:
        row = Int32(-1)
        if own >= 0:
            row = warp_counts[warp, own] + rank
            row_token[row] = route // K
        flat(route_row)[route] = row
    for expert in cutlass.range(cta + warp * ctas, EXPERTS, ctas * WARPS, unroll=1):
        for row in cutlass.range(ends[0, expert] + lane, ends[1, expert], 32, unroll=2):
            row_token[row] = -1


@cute.kernel
def rank_kernel(
    experts: cute.Tensor,
    counts: cute.Tensor,
    offsets: cute.Tensor,
    route_row: cute.Tensor,
    row_token: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    """At most RANKED routes: one barrier less than offsets_kernel, and no sums of several threads."""
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    warp, lane = thread // 32, thread % 32
    storage = SmemAllocator().allocate(SharedStorage)
    warp_counts = storage.warp_counts.get_tensor(
        cute.make_ordered_layout((WARPS, EXPERTS), order=(1, 0))
    )
    warp_sums = storage.warp_sums.get_tensor(cute.make_layout((WARPS,)))
    starts = storage.totals.get_tensor(cute.make_layout((EXPERTS,)))
    ends = storage.ends.get_tensor(cute.make_ordered_layout((2, EXPERTS), order=(1, 0)))
    routes = flat(experts)
    total = cute.size(routes)
    busy = (total + 31) // 32  # warps that have routes
    if warp < busy:
        for expert in cutlass.range_constexpr(EXPERT_WARPS):
            if expert * 32 + lane < EXPERTS:
                warp_counts[warp, expert * 32 + lane] = 0
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    own = route_of(routes, thread, total)
    rank = Int32(0)
    cute.arch.sync_warp()
    if warp < busy:
        rank = rank_route(own, warp_counts[warp, None], lane)
    cute.arch.sync_threads()

    # A thread an expert: its routes in all, and of the warps before each.
    count = Int32(0)
    if thread < EXPERTS:
        for i in cutlass.range(busy, unroll=4):
            more = warp_counts[i, thread]
            warp_counts[i, thread] = count
            count = count + more
    padded = (count + (ALIGN - 1)) // ALIGN * ALIGN
    offset, rows = sum_before(padded, warp_sums, thread, EXPERT_WARPS)
    if thread < EXPERTS:
        starts[thread] = offset
        ends[0, thread], ends[1, thread] = offset + count, offset + padded
        if cta == 0:
            counts[thread] = count
            offsets[thread] = offset
    if thread == 0 and cta == 0:
        offsets[EXPERTS] = rows
    for row in cutlass.range(
        rows + cta * THREADS + thread, row_token.shape[0], ctas * THREADS, unroll=1
    ):
        row_token[row] = -1
    cute.arch.sync_threads()
    if (
        thread < total and warp % ctas == cta
    ):  # all CTAs know the routes' rows; a warp's are written by one
        row = Int32(-1)
        if own >= 0:
            row = starts[own] + warp_counts[warp, own] + rank
            row_token[row] = thread // K
        flat(route_row)[thread] = row
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
    routes = experts.shape[0] * K
    if routes > FEW_ROUTES:
        count_kernel(experts, cta_counts, pdl).launch(
            grid=[cute.ceil_div(routes, SUPER), 1, 1],
            block=[THREADS, 1, 1],
            stream=stream,
            use_pdl=pdl,
        )
        offsets_kernel(
            experts, counts, offsets, route_row, row_token, cta_counts, True, pdl
        ).launch(
            grid=[cute.ceil_div(routes, CHUNK), 1, 1],
            block=[THREADS, 1, 1],
            stream=stream,
            use_pdl=True,
            min_blocks_per_mp=2,  # so that the CTAs of 32,768 tokens run side by side
            preferred_smem_carveout=-1,  # the driver's choice; left out, the compiler would ask a GPU
        )
    elif routes > RANKED:
        ctas = cutlass.max(PADDING_CTAS, cute.ceil_div(routes, FEW_CHUNK))
        offsets_kernel(
            experts, counts, offsets, route_row, row_token, cta_counts, False, pdl
        ).launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl)
    elif routes > 0:
        rank_kernel(experts, counts, offsets, route_row, row_token, pdl).launch(
            grid=[PADDING_CTAS, 1, 1], block=[THREADS, 1, 1], stream=stream, use_pdl=pdl
        )


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
