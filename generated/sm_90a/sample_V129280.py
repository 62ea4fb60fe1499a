# Emitted from generator/templates/sampling/sample.py.j2 for op sample on sm_90a. Do not edit.
# dims: V=129280
# config: ctas=16, threads=512, opt_level=3
# spec sha256: 05945c4a2862b7bb6328a197d5bc4359e5391a4e7c030370cc0e8a6beac6e820
"""The next token of a row of 129280 logits, drawn by a cluster of 16 CTAs.

The logits are read once and stay in registers. A row that only wants the largest is done after one reduction. A small
top-k leaves a short list, from which the first CTA draws alone; a larger one finds its threshold digit by digit. Then
noise is computed for the tokens that are left, and the best score is the token; top-p asks of it, and if need be of the
next best, how much weight is before it.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32, Uint64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.cluster_reduce import largest
from dsv4.generator.device.float_order import INFINITY, MINUS_INFINITY, order_of, value_of
from dsv4.generator.device.gumbel import advanced, gumbel, row_state, token_state
from dsv4.generator.device.kept_share import best_of_share
from dsv4.generator.device.kept_tokens import DIGITS, index_of, keep_first, offset_of
from dsv4.generator.device.short_list import bound_of, collect, draw_listed, send_maxima

VARIANTS = ({"bf16_logits": False, "pdl": False}, {"bf16_logits": False, "pdl": True})

VOCABULARY = 129280
CTAS = 16  # that share a row
THREADS = 512
VECTOR = 4  # logits in 16 bytes
CTA_VECTORS = 2020
THREAD_VECTORS = 4
STRIDE = THREADS * VECTOR  # tokens between a thread's vectors
HELD = THREAD_VECTORS * VECTOR
GROUP_LANES = 32  # threads whose tokens are a group
GROUPS = CTAS * THREADS // GROUP_LANES
LISTED = 256  # the most tokens on the short list
# Above the k-th largest of G groups' maxima are about -G ln(1 - k / G) tokens: at this k as many as there are groups.
SMALL_K = GROUPS * 5 // 8


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
def load_logits(row: cute.Tensor, rank: Int32, thread: Int32) -> cute.Tensor:
    """This thread's logits as float32, NaN in place of those beyond the CTA's part or the row."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Float32, num_bits_per_copy=128)
    vectors = cute.make_tensor(
        row.iterator, cute.make_layout((VECTOR, VOCABULARY // VECTOR), stride=(1, VECTOR))
    )
    held = cute.make_rmem_tensor((VECTOR, THREAD_VECTORS), Float32)
    held.fill(Float32(float("nan")))
    for v in cutlass.range_constexpr(THREAD_VECTORS):
        own = v * THREADS + thread
        if own < CTA_VECTORS and rank * CTA_VECTORS + own < VOCABULARY // VECTOR:
            cute.copy(atom, vectors[None, rank * CTA_VECTORS + own], held[None, v])
    return held


@cute.kernel
def sample_kernel(
    logits: cute.Tensor,
    temperature: cute.Tensor,
    top_k: cute.Tensor,
    top_p: cute.Tensor,
    seed: cute.Tensor,
    position: cute.Tensor,
    token: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    thread, _, _ = cute.arch.thread_idx()
    rank, row, _ = cute.arch.block_idx()
    storage = SmemAllocator().allocate(SharedStorage)
    warp_words = storage.warp_words.get_tensor(
        cute.make_ordered_layout((THREADS // 32, 4), order=(1, 0))
    )
    cta_words = storage.cta_words.get_tensor(
        cute.make_ordered_layout((2, CTAS, 4), order=(2, 1, 0))
    )
    maxima = storage.maxima.get_tensor(
        cute.make_ordered_layout((CTAS, GROUPS // CTAS), order=(1, 0))
    )
    all_maxima = storage.maxima.get_tensor(cute.make_layout((GROUPS,)))
    own_size = storage.own_size.get_tensor(cute.make_layout((1,)))
    list_sizes = storage.list_sizes.get_tensor(cute.make_layout((CTAS,)))
    listed = storage.exchange.get_tensor(
        cute.make_ordered_layout((CTAS, LISTED, 2), order=(2, 1, 0))
    )
    list_keys = cute.recast_tensor(
        storage.list_keys.get_tensor(cute.make_layout((2 * LISTED,))), Uint64
    )
    list_ranked = storage.list_ranked.get_tensor(
        cute.make_ordered_layout((LISTED, 2), order=(1, 0))
    )
    # The list and the histograms are done with when scores are written: each ends with a barrier.
    own_scores = storage.exchange.get_tensor(
        cute.make_layout((HELD, THREADS), stride=(THREADS, 1))
    )[None, thread]
    exchange = storage.exchange.get_tensor(
        cute.make_ordered_layout((2, CTAS, DIGITS), order=(2, 1, 0))
    )
    digit_counts = storage.digit_counts.get_tensor(cute.make_layout((DIGITS,)))
    digit_found = storage.digit_found.get_tensor(cute.make_layout((3,)))
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    cute.arch.cluster_arrive()  # the others' shared memory may be written once all CTAs run
    held = load_logits(logits[row, None], rank, thread)
    warmth, share = temperature[row], top_p[row]
    wanted = Int32(
        top_k[row] if top_k[row] > Int64(0) and top_k[row] < Int64(VOCABULARY) else Int64(0)
    )  # 0 for all
    state = row_state(seed[row], position[row])
    inverse = Float32(1.0) / warmth
    is_draw = (
        warmth > Float32(0.0)
        and inverse < Float32(float("inf"))
        and share > Float32(0.0)
        and wanted != 1
    )
    values = cute.make_tensor(held.iterator, cute.make_layout((HELD,)))
    first_index = (rank * CTA_VECTORS + thread) * VECTOR
    if thread == 0:
        own_size[0] = Uint32(0)

    # The largest logit and its first token.
    order, place = Uint32(0), Int32(0)
    for i in cutlass.range_constexpr(HELD):
        own = i // VECTOR * THREADS + thread
        found = order_of(values[i])
        if own >= CTA_VECTORS or rank * CTA_VECTORS + own >= VOCABULARY // VECTOR:
            found = Uint32(0)
        place = Int32(i) if found > order else place
        order = found if found > order else order
    cute.arch.cluster_wait()
    if is_draw and wanted > 0 and wanted <= SMALL_K:
        send_maxima(order, maxima, rank, thread, GROUP_LANES)
    index = index_of(first_index, place, VECTOR, STRIDE)
    top, best = largest(order, Uint32(index), warp_words, cta_words, Int32(0), rank, thread)

    # NaN and infinite logits, and what leaves one token only, take it as it is.
    is_draw = is_draw and top < Uint32(INFINITY) and top > Uint32(MINUS_INFINITY)
    peak = value_of(top)
    if is_draw and wanted > 0:
        size = Int32(LISTED + 1)
        if wanted <= SMALL_K:
            bound = bound_of(all_maxima, wanted, warp_words, thread)
            size = collect(
                *(values, bound, peak, inverse, first_index, VECTOR, STRIDE),
                *(own_size, list_sizes, listed, rank, thread),
            )
        if size > LISTED:
            keep_first(
                *(values, wanted, first_index, VECTOR, STRIDE, digit_counts, exchange, digit_found),
                *(rank, thread, THREADS),
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
        first_state = token_state(state, Uint32(first_index))
        order, place = Uint32(0), Int32(0)
        for i in cutlass.range_constexpr(HELD):
            if values[i] == values[i]:
                noise = gumbel(advanced(first_state, offset_of(i, VECTOR, STRIDE)))
                found = order_of((values[i] - peak) * inverse + noise)
                if share < Float32(1.0):
                    own_scores[i] = found  # best_of_share may ask for it
                place = Int32(i) if found > order else place
                order = found if found > order else order
        if share >= Float32(1.0):
            index = index_of(first_index, place, VECTOR, STRIDE)
            top, best = largest(order, Uint32(index), warp_words, cta_words, Int32(1), rank, thread)
        else:
            best = best_of_share(
                *(
                    values,
                    own_scores,
                    order,
                    place,
                    share,
                    peak,
                    inverse,
                    first_index,
                    VECTOR,
                    STRIDE,
                ),
                *(warp_words, cta_words, Int32(1), rank, thread),
            )
    if rank == 0 and thread == 0:
        token[row] = Int64(best)


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
    if rows > 0:
        sample_kernel(logits, temperature, top_k, top_p, seed, position, token, pdl).launch(
            grid=[CTAS, rows, 1],
            block=[THREADS, 1, 1],
            cluster=[CTAS, 1, 1],
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
