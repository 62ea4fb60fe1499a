# Emitted from generator/templates/mhc/mhc_pre.py.j2 for op mhc_post_pre on sm_100a. Do not edit.
# dims: d=4096
# config: cluster=16, clusters=7, token_tiles=1, stages=3, register_terms=1, byte_terms=0, ahead=2, opt_level=2
# spec sha256: 1638e59cb3c738d3cbb1bb0ae6f4387c96fbdbfb90fe0c2aae3fe2c5aa34de83
"""mHC after a sub-layer and before the next: the next streams, 24 projections of them, and their weighted sum.

16 CTAs share a token: each owns 256 of the 4096 columns, keeps their weights as three terms that add up to them,
and reads its part of the streams once. A pass takes 16 tokens: partial projections go to the token's owner, whose
last warp turns them into weights; the weights come back, and the columns' warps mix what still lies in shared memory.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import (
    mhc_combine,
    mhc_exchange,
    mhc_owner,
    mhc_project,
    mhc_restream,
    mhc_tiling,
    mhc_weights,
)

VARIANTS = (
    {"norm": False, "pdl": False},
    {"norm": False, "pdl": True},
    {"norm": True, "pdl": False},
    {"norm": True, "pdl": True},
)

COLUMNS = 4096
STREAMS = mhc_tiling.STREAMS
OUTPUTS = 24
ITERATIONS = 20  # column steps of the Sinkhorn normalisation
CLUSTER = 16
MAX_CLUSTERS = 7
STAGES = 3
THREADS = 288
TILING = mhc_tiling.Tiling(
    columns=COLUMNS,
    cluster=CLUSTER,
    outputs=OUTPUTS,
    token_tiles=1,
    stages=STAGES,
    register_terms=1,
    byte_terms=0,
)
TOKENS = TILING.tokens  # of a pass
COLUMN_BARRIER = 1  # of the columns' warps; 0 is the whole CTA's


@cute.kernel
def mhc_post_pre_kernel(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    fn: cute.Tensor,
    base: cute.Tensor,
    scale: cute.Tensor,
    norm_weight: cute.Tensor | None,
    new_streams: cute.Tensor,
    y: cute.Tensor,
    next_post: cute.Tensor,
    next_comb: cute.Tensor,
    norm_eps: Float32,
    eps: Float32,
    norm: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    rank = cute.arch.block_idx_in_cluster()
    tokens = streams.shape[0]
    first_pass, pass_step = cta // CLUSTER, ctas // CLUSTER
    passes = cute.ceil_div(tokens, TOKENS)

    smem = SmemAllocator()
    staged = smem.allocate_tensor(BFloat16, cute.make_layout(49152), 128)
    spare_weights = smem.allocate_tensor(BFloat16, cute.make_layout(49152), 128)
    partials = smem.allocate_tensor(
        Float32, cute.make_layout((4, TOKENS, TILING.quads, TILING.warps)), 16
    )
    received = smem.allocate_tensor(
        Float32, cute.make_layout((4, TILING.quads, TILING.owned, CLUSTER)), 16
    )
    weights = smem.allocate_tensor(Float32, cute.make_layout((STREAMS, TOKENS)), 16)
    logits = smem.allocate_tensor(Float32, cute.make_layout((16, TILING.owned)), 16)
    if cutlass.const_expr(norm):
        squares = smem.allocate_tensor(Float32, cute.make_layout((TOKENS, TILING.warps)), 16)
        all_squares = smem.allocate_tensor(Float32, cute.make_layout((CLUSTER, TOKENS, 2)), 16)
    first_barrier = smem.allocate_array(Int64, mhc_exchange.BARRIERS)
    barriers = mhc_exchange.Barriers(*[first_barrier + i for i in range(mhc_exchange.BARRIERS - 1)])

    # The barriers have to exist in every CTA before the first one sends; until then there is a lot to load.
    if thread == 0:
        mhc_exchange.init_barriers(barriers, first_pass + pass_step < passes, TILING, norm)
    cute.arch.cluster_arrive_relaxed()  # the fence has released the barriers; nothing else is told here

    if warp == TILING.warps:
        # The owner: weights of the tokens whose place in the pass is this CTA's rank modulo the cluster.
        lane = thread % 32
        parameters = mhc_owner.logit_parameters(base, scale, lane, TILING)
        if cutlass.const_expr(pdl):
            cute.arch.griddepcontrol_wait()
        cute.arch.cluster_wait()
        phase = Int32(0)
        for index in cutlass.range(first_pass, passes, pass_step, unroll=1):
            more = index + pass_step < passes
            cute.arch.mbarrier_wait(barriers.partials, phase)
            if lane == 0 and more:
                cute.arch.mbarrier_arrive_and_expect_tx(barriers.partials, TILING.partial_bytes)
            if index > first_pass:
                cute.arch.mbarrier_wait(barriers.used, phase ^ 1)
            mhc_owner.own_pass(
                received,
                weights,
                logits,
                barriers,
                more or index >= first_pass + 2 * pass_step,
                next_post,
                next_comb,
                parameters,
                norm_eps,
                eps,
                index * TOKENS,
                tokens,
                rank,
                lane,
                TILING,
                ITERATIONS,
            )
            phase = phase ^ 1
    else:
        # The columns: weights first. With pdl they are read while the launch before still runs.
        column = mhc_project.column_of_thread(rank, thread, TILING)
        spare = mhc_weights.spare_of_thread(spare_weights, thread, TILING)
        kept, codes = mhc_weights.load_weights(fn, spare, rank, thread, TILING, 8)
        if cutlass.const_expr(norm):
            own_norm_weight = mhc_combine.load_norm_weight(norm_weight, column)
        stage_of = mhc_project.stage_of_thread(staged, thread, TILING)
        for ahead in cutlass.range_constexpr(STAGES):
            index = first_pass + ahead * pass_step
            if index < passes:
                mhc_project.fetch_pass(
                    streams,
                    stage_of[None, None, None, ahead],
                    index * TOKENS,
                    column,
                    thread,
                    TILING,
                )
            cute.arch.cp_async_commit_group()
        # Only the update can come from the launch before this one.
        if cutlass.const_expr(pdl):
            cute.arch.griddepcontrol_wait()
            cute.arch.griddepcontrol_launch_dependents()
        cute.arch.cluster_wait()

        # A pass is begun before the one before it is summed, and that is normalised and stored after the next is begun:
        # nobody waits for the way of the partial sums to the owners and of the weights and the squares back.
        slot, phase, turn = (
            Int32(0),
            Int32(0),
            Int32(0),
        )  # turn: the phase of both barriers of the squares
        last = first_pass * TOKENS
        if cutlass.const_expr(norm):
            held = mhc_combine.make_held(TILING)
        if first_pass < passes:
            cute.arch.cp_async_wait_group(STAGES - 1)
            stage = stage_of[None, None, None, 0]
            mhc_restream.next_streams(
                stage, update, post, comb, new_streams, last, column, thread, TILING
            )
            mhc_project.project_pass(stage, kept, codes, spare, partials, thread, TILING)
            cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
            mhc_exchange.send_partials(
                partials, received, barriers.partials, rank, thread, TILING, TILING.threads
            )
            cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
        for index in cutlass.range(first_pass, passes, pass_step, unroll=1):
            first = index * TOKENS
            more = index + pass_step < passes
            stage = stage_of[None, None, None, slot]
            slot = Int32(0) if slot + 1 == STAGES else slot + 1
            if more:
                begun = stage_of[None, None, None, slot]
                cute.arch.cp_async_wait_group(STAGES - 2)
                mhc_restream.next_streams(
                    begun,
                    update,
                    post,
                    comb,
                    new_streams,
                    first + pass_step * TOKENS,
                    column,
                    thread,
                    TILING,
                )
                mhc_project.project_pass(begun, kept, codes, spare, partials, thread, TILING)
                cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
                cute.arch.mbarrier_wait(barriers.taken, phase)
                mhc_exchange.send_partials(
                    partials, received, barriers.partials, rank, thread, TILING, TILING.threads
                )
            else:
                # As above, the last time: every warp has read the squares of the pass before, everywhere those of the
                # pass before that.
                cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
                if index >= first_pass + 2 * pass_step:
                    cute.arch.mbarrier_wait(barriers.taken, phase)
            if cutlass.const_expr(norm):
                if index > first_pass:
                    mhc_combine.finish_pass(
                        held,
                        all_squares,
                        barriers.squares,
                        phase ^ 1,
                        turn ^ phase ^ 1,
                        more,
                        own_norm_weight,
                        norm_eps,
                        y,
                        last,
                        column,
                        thread,
                        TILING,
                    )

            cute.arch.mbarrier_wait(barriers.weights, phase)
            if thread == 0 and more:
                cute.arch.mbarrier_arrive_and_expect_tx(barriers.weights, TILING.weight_bytes)
            results = mhc_combine.weighted_sums(stage, weights, thread, TILING)
            if more:
                mhc_exchange.tell_all(barriers.used, thread % 32, TILING)
            following = index + STAGES * pass_step
            if following < passes:
                mhc_project.fetch_pass(streams, stage, following * TOKENS, column, thread, TILING)
            cute.arch.cp_async_commit_group()
            if cutlass.const_expr(norm):
                mhc_combine.publish_squares(results, squares, thread, TILING)
                cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
                mhc_exchange.send_squares(
                    squares,
                    all_squares[None, None, phase],
                    barriers.squares + phase,
                    rank,
                    thread,
                    TILING,
                )
                mhc_combine.hold(results, held)
            else:
                # Every warp has read the partial sums of this pass before any writes those of the next.
                cute.arch.barrier(barrier_id=COLUMN_BARRIER, number_of_threads=TILING.threads)
                mhc_combine.store_rows(results, y, first, column, thread, TILING)
            last = first
            turn = turn ^ phase
            phase = phase ^ 1
        if cutlass.const_expr(norm):
            if first_pass < passes:
                mhc_combine.finish_pass(
                    held,
                    all_squares,
                    barriers.squares,
                    phase ^ 1,
                    turn ^ phase ^ 1,
                    False,
                    own_norm_weight,
                    norm_eps,
                    y,
                    last,
                    column,
                    thread,
                    TILING,
                )


@cute.jit
def launch(
    update: cute.Tensor,
    streams: cute.Tensor,
    post: cute.Tensor,
    comb: cute.Tensor,
    fn: cute.Tensor,
    base: cute.Tensor,
    scale: cute.Tensor,
    norm_weight: cute.Tensor | None,
    new_streams: cute.Tensor,
    y: cute.Tensor,
    next_post: cute.Tensor,
    next_comb: cute.Tensor,
    norm_eps: Float32,
    eps: Float32,
    norm: cutlass.Constexpr[bool],
    pdl: cutlass.Constexpr[bool],
    stream,
):
    clusters = cutlass.min(cute.ceil_div(streams.shape[0], TOKENS), MAX_CLUSTERS)
    if clusters > 0:
        mhc_post_pre_kernel(
            update,
            streams,
            post,
            comb,
            fn,
            base,
            scale,
            norm_weight,
            new_streams,
            y,
            next_post,
            next_comb,
            norm_eps,
            eps,
            norm,
            pdl,
        ).launch(
            grid=[clusters * CLUSTER, 1, 1],
            block=[THREADS, 1, 1],
            cluster=[CLUSTER, 1, 1],
            stream=stream,
            use_pdl=pdl,
        )


def arguments(variant):
    tokens = cute.sym_int()

    def compact(dtype, *shape, align=16):
        strides = [1]
        for extent in reversed(shape[1:]):
            strides.insert(0, strides[0] * extent)
        return make_fake_tensor(dtype, shape, tuple(strides), assumed_align=align)

    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        compact(BFloat16, tokens, COLUMNS),
        compact(BFloat16, tokens, STREAMS, COLUMNS),
        compact(Float32, tokens, STREAMS),
        compact(Float32, tokens, STREAMS, STREAMS),
        compact(Float32, OUTPUTS, STREAMS * COLUMNS),
        compact(Float32, OUTPUTS, align=4),
        compact(Float32, 3, align=4),
        compact(BFloat16, COLUMNS) if variant["norm"] else None,
        compact(BFloat16, tokens, STREAMS, COLUMNS),
        compact(BFloat16, tokens, COLUMNS),
        compact(Float32, tokens, STREAMS),
        compact(Float32, tokens, STREAMS, STREAMS),
        Float32(0.0),
        Float32(0.0),
        variant["norm"],
        variant["pdl"],
        stream,
    )
