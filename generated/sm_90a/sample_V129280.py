# Emitted from generator/templates/sampling/sample.py.j2 for op sample on sm_90a. Do not edit.
# dims: V=129280
# config: ctas=16, many_ctas=2, many_rows=32, threads=512, opt_level=2
# spec sha256: 5ecbe642b4829fb8a8e42cb71466a295fa2cf5b4c76169656526d4f224ff47df
"""The next token of a row of 129280 logits, drawn by a cluster of 16 CTAs.
Where rows are 32 or more, a cluster of 2 CTAs draws each.

A thread's logits stay in its registers, or, where they are too many, are read again for each pass. A row that only
wants the largest is done after one reduction. A small top-k leaves a short list, from which the first CTA draws alone;
a larger one finds its threshold digit by digit. Noise is computed for the tokens whose noise can be enough, and the
best score is the token; top-p asks of it, and if need be of the next best, how much weight is before it. Where logits
are read again, the pass that finds the largest logit draws, too, and what is close to the best is decided after it.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32, Uint64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.cluster_reduce import largest, two_largest
from dsv4.generator.device.float_order import (
    INFINITY,
    MINUS_INFINITY,
    NOT_A_NUMBER,
    order_of,
    value_of,
)
from dsv4.generator.device.gumbel import row_state
from dsv4.generator.device.kept_share import best_of_share
from dsv4.generator.device.kept_tokens import DIGITS, last_kept
from dsv4.generator.device.row_part import Part, load_chunk
from dsv4.generator.device.row_passes import decided, draw_all, largest_logit, peak_of_row
from dsv4.generator.device.short_list import bound_of, collect, draw_listed, send_maxima

VARIANTS = ({"bf16_logits": False, "pdl": False}, {"bf16_logits": False, "pdl": True})

VOCABULARY = 129280
THREADS = 512
LISTED = 256  # the most tokens on the short list
FEW_ROWS = Part(VOCABULARY, vector=4, ctas=16, threads=THREADS, listed=LISTED)
MANY = 32
MANY_ROWS = Part(VOCABULARY, vector=4, ctas=2, threads=THREADS, listed=LISTED)


@cute.struct
class SharedStorage:
    warp_words: cute.struct.Align[cute.struct.MemRange[Uint32, 64], 16]
    cta_words: cute.struct.Align[cute.struct.MemRange[Uint32, 128], 16]
    maxima: cute.struct.Align[cute.struct.MemRange[Uint32, 256], 16]
    own_size: cute.struct.Align[cute.struct.MemRange[Uint32, 1], 16]
    list_sizes: cute.struct.Align[cute.struct.MemRange[Uint32, 16], 16]
    list_keys: cute.struct.Align[cute.struct.MemRange[Uint32, 512], 16]
    list_ranked: cute.struct.Align[cute.struct.MemRange[Uint32, 512], 16]
    exchange: cute.struct.Align[cute.struct.MemRange[Uint32, 8192], 16]
    digit_counts: cute.struct.Align[cute.struct.MemRange[Uint32, 256], 16]
    digit_found: cute.struct.Align[cute.struct.MemRange[Uint32, 3], 16]


@cute.jit
def wanted_of(top_k: Int64) -> Int32:
    """How many of the largest logits are left, 0 for all."""
    return Int32(top_k if top_k > Int64(0) and top_k < Int64(VOCABULARY) else Int64(0))


@cute.kernel
def sample_kernel(
    logits: cute.Tensor,
    temperature: cute.Tensor,
    top_k: cute.Tensor,
    top_p: cute.Tensor,
    seed: cute.Tensor,
    position: cute.Tensor,
    token: cute.Tensor,
    part: cutlass.Constexpr[Part],
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    block, _, _ = cute.arch.block_idx()
    rank, number = block % part.ctas, block // part.ctas  # of the CTA in its cluster, of the row
    storage = SmemAllocator().allocate(SharedStorage)
    warp_words = storage.warp_words.get_tensor(
        cute.make_ordered_layout((THREADS // 32, 4), order=(1, 0))
    )
    cta_words = storage.cta_words.get_tensor(
        cute.make_ordered_layout((2, part.ctas, 4), order=(2, 1, 0))
    )
    maxima = storage.maxima.get_tensor(
        cute.make_ordered_layout((part.ctas, part.groups // part.ctas), order=(1, 0))
    )
    all_maxima = storage.maxima.get_tensor(cute.make_layout((part.groups,)))
    own_size = storage.own_size.get_tensor(cute.make_layout((1,)))
    list_sizes = storage.list_sizes.get_tensor(cute.make_layout((part.ctas,)))
    listed = storage.exchange.get_tensor(
        cute.make_ordered_layout((part.ctas, LISTED, 2), order=(2, 1, 0))
    )
    list_keys = cute.recast_tensor(
        storage.list_keys.get_tensor(cute.make_layout((2 * LISTED,))), Uint64
    )
    list_ranked = storage.list_ranked.get_tensor(
        cute.make_ordered_layout((LISTED, 2), order=(1, 0))
    )
    # The list is done with when histograms are sent: a barrier lies between.
    exchange = storage.exchange.get_tensor(
        cute.make_ordered_layout((2, part.ctas, DIGITS), order=(2, 1, 0))
    )
    digit_counts = storage.digit_counts.get_tensor(cute.make_layout((DIGITS,)))
    digit_found = storage.digit_found.get_tensor(cute.make_layout((3,)))
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    if cutlass.const_expr(part.ctas > 1):
        cute.arch.cluster_arrive()  # the others' shared memory may be written once all CTAs run
    row = logits[number, None]
    held = (
        load_chunk(row, Int32(0), rank, thread, part, float("nan"))
        if cutlass.const_expr(part.is_held)
        else None
    )
    warmth, share = temperature[number], top_p[number]
    wanted = wanted_of(top_k[number])
    state = row_state(seed[number], position[number])
    inverse = Float32(1.0) / warmth
    is_draw = (
        warmth > Float32(0.0)
        and inverse < Float32(float("inf"))
        and share > Float32(0.0)
        and wanted != 1
    )
    if thread == 0:
        own_size[0] = Uint32(0)

    # The largest logit and its first token, or the largest logit and a token that may be drawn.
    top, best = Uint32(0), Uint32(0)
    score, second, candidate, top_score = (
        Float32(float("-inf")),
        Float32(float("-inf")),
        Int32(0),
        Uint32(0),
    )
    turn = Int32(0)
    if cutlass.const_expr(part.ctas > 1 and not part.is_held):
        cute.arch.cluster_wait()
    if cutlass.const_expr(part.is_held):
        order, index = largest_logit(row, held, rank, thread, part)
        if cutlass.const_expr(part.ctas > 1):
            cute.arch.cluster_wait()
        if is_draw and wanted > 0 and wanted <= part.small_k:
            send_maxima(order, maxima, rank, thread, part.group_lanes)
        top, best = largest(order, index, warp_words, cta_words, turn, rank, thread)
        turn = turn ^ 1
    else:
        if is_draw:
            own_peak = Float32(0.0)
            if wanted > 0:
                own_peak = peak_of_row(row, rank, thread, part)
                if wanted <= part.small_k:
                    send_maxima(order_of(own_peak), maxima, rank, thread, part.group_lanes)
            else:
                own_peak, score, candidate, second = draw_all(
                    row, inverse, state, rank, thread, part
                )
            top, top_score = two_largest(
                order_of(own_peak), order_of(score), warp_words, cta_words, turn, rank, thread
            )
            turn = turn ^ 1
        share, wanted = (
            top_p[number],
            wanted_of(top_k[number]),
        )  # read again: registers are short in the pass before

    # NaN and infinite logits, and what leaves one token only, take the largest as it is.
    is_draw = is_draw and top < Uint32(INFINITY) and top > Uint32(MINUS_INFINITY)
    peak = value_of(top)
    if cutlass.const_expr(not part.is_held):
        if not is_draw:
            own_order, own_index = largest_logit(row, held, rank, thread, part)
            top, best = largest(own_order, own_index, warp_words, cta_words, turn, rank, thread)

    threshold, last_index = Float32(float("-inf")), Int32(VOCABULARY)  # of what is kept
    if is_draw and wanted > 0:
        size = Int32(LISTED + 1)
        if wanted <= part.small_k:
            bound = bound_of(all_maxima, wanted, warp_words, thread)
            size = collect(
                row, held, bound, peak, inverse, own_size, list_sizes, listed, rank, thread, part
            )
        if size > LISTED:
            threshold, last_index = last_kept(
                row, held, wanted, digit_counts, exchange, digit_found, rank, thread, part
            )
        else:
            is_draw = False  # the first CTA has all that is left
            if rank == 0:
                best = draw_listed(
                    *(
                        list_sizes,
                        listed,
                        list_keys,
                        list_ranked,
                        wanted,
                        share,
                        peak,
                        inverse,
                        state,
                    ),
                    *(warp_words, thread),
                )
    if is_draw:
        is_known = False
        if cutlass.const_expr(not part.is_held):
            if wanted == 0:
                known = decided(
                    row, score, candidate, second, value_of(top_score), peak, inverse, state
                )
                top, best = largest(
                    known, Uint32(candidate), warp_words, cta_words, turn, rank, thread
                )
                turn = turn ^ 1
                is_known = top != Uint32(NOT_A_NUMBER)
        best = best_of_share(
            *(row, held, is_known, best, threshold, last_index, share, peak, inverse, state),
            *(warp_words, cta_words, turn, rank, thread, part),
        )
    if rank == 0 and thread == 0:
        token[number] = Int64(best)


@cute.jit
def launch(
    logits: cute.Tensor,
    logits_bf16,
    temperature: cute.Tensor,
    top_k: cute.Tensor,
    top_p: cute.Tensor,
    seed: cute.Tensor,
    position: cute.Tensor,
    token: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    rows = token.shape[0]
    read = logits
    if rows > 0 and rows < MANY:
        sample_kernel(read, temperature, top_k, top_p, seed, position, token, FEW_ROWS, pdl).launch(
            grid=[rows * 16, 1, 1],
            block=[THREADS, 1, 1],
            cluster=[16, 1, 1],
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=2,
            preferred_smem_carveout=-1,  # the driver's choice; left out, the compiler would ask a GPU
        )
    if rows >= MANY:
        sample_kernel(
            read, temperature, top_k, top_p, seed, position, token, MANY_ROWS, pdl
        ).launch(
            grid=[rows * 2, 1, 1],
            block=[THREADS, 1, 1],
            cluster=[2, 1, 1],
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=2,
            preferred_smem_carveout=-1,  # the driver's choice; left out, the compiler would ask a GPU
        )


def arguments(variant):
    rows = cute.sym_int()

    def column(dtype, align):
        return make_fake_tensor(dtype, (rows,), (1,), assumed_align=align)

    logits = make_fake_tensor(
        Float32, (rows, VOCABULARY), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        *(logits, None, column(Float32, 4), column(Int64, 8), column(Float32, 4)),
        *(column(Int64, 8), column(Int64, 8), column(Int64, 8), variant["pdl"], stream),
    )
