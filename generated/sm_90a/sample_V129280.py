# Emitted from generator/templates/sampling/sample.py.j2 for op sample on sm_90a. Do not edit.
# dims: V=129280
# config: ctas=16, threads=512, opt_level=3
# spec sha256: d937682b74f641d25269b5d20412be1060dfca3f2559c43ad2869432ba7c604b
"""The next token of a row of 129280 logits, drawn by a cluster of 16 CTAs.

The logits are read once and stay in registers. A row that only wants the largest is done after one
reduction; top-k and top-p find their threshold by halving; noise is computed for the tokens that are left,
and the best score is the token.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device.cluster_reduce import largest, sums
from dsv4.generator.device.float_order import INFINITY, MINUS_INFINITY, order_of, value_of
from dsv4.generator.device.gumbel import advanced, gumbel, row_state, token_state
from dsv4.generator.device.kept_tokens import index_of, keep_prefix, offset_of

VARIANTS = ({"bf16_logits": False, "pdl": False}, {"bf16_logits": False, "pdl": True})

VOCABULARY = 129280
CTAS = 16  # that share a row
THREADS = 512
VECTOR = 4  # logits in 16 bytes
CTA_VECTORS = 2020
THREAD_VECTORS = 4
STRIDE = THREADS * VECTOR  # tokens between a thread's vectors
HELD = THREAD_VECTORS * VECTOR
LOG2_E = 1.4426950408889634


@cute.struct
class SharedStorage:
    warp_pairs: cute.struct.Align[cute.struct.MemRange[Uint32, 32], 16]
    cta_pairs: cute.struct.Align[cute.struct.MemRange[Uint32, 64], 16]


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
    warp_pairs = storage.warp_pairs.get_tensor(
        cute.make_ordered_layout((THREADS // 32, 2), order=(1, 0))
    )
    cta_pairs = storage.cta_pairs.get_tensor(
        cute.make_ordered_layout((2, CTAS, 2), order=(2, 1, 0))
    )
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()
        # Not earlier: what the next launch does before its own wait may rely on all launches before this.
        cute.arch.griddepcontrol_launch_dependents()
    cute.arch.cluster_arrive()  # the others' shared memory may be written once all CTAs run
    held = load_logits(logits[row, None], rank, thread)
    warmth, wanted, share = temperature[row], top_k[row], top_p[row]
    state = row_state(seed[row], position[row])
    values = cute.make_tensor(held.iterator, cute.make_layout((HELD,)))
    first_index = (rank * CTA_VECTORS + thread) * VECTOR

    # The largest logit and its first token.
    order, index = Uint32(0), Int32(0)
    for i in cutlass.range_constexpr(HELD):
        own = i // VECTOR * THREADS + thread
        found = order_of(values[i])
        if own >= CTA_VECTORS or rank * CTA_VECTORS + own >= VOCABULARY // VECTOR:
            found = Uint32(0)
        index = index_of(first_index, i, VECTOR, STRIDE) if found > order else index
        order = found if found > order else order
    cute.arch.cluster_wait()
    top, best = largest(order, Uint32(index), warp_pairs, cta_pairs, Int32(0), rank, thread)
    turn = Int32(1)

    # NaN and infinite logits, and what leaves one token only, take it as it is.
    inverse = Float32(1.0) / warmth
    is_draw = warmth > Float32(0.0) and inverse < Float32(float("inf")) and share > Float32(0.0)
    is_draw = (
        is_draw and top < Uint32(INFINITY) and top > Uint32(MINUS_INFINITY) and wanted != Int64(1)
    )
    if is_draw:
        peak, scale = value_of(top), inverse * Float32(LOG2_E)
        weights = cute.make_rmem_tensor((HELD,), Float32)
        weights.fill(0.0)
        if wanted > Int64(0) and wanted < Int64(VOCABULARY):
            turn = keep_prefix(
                *(values, weights, True, Float32(Int32(wanted)), scale, top, first_index),
                *(VECTOR, STRIDE, VOCABULARY, turn, warp_pairs, cta_pairs, rank, thread),
            )
        if share < Float32(1.0):
            whole = Float32(0.0)
            for i in cutlass.range_constexpr(HELD):
                weight = cute.math.exp2((values[i] - peak) * scale, fastmath=True)
                weights[i] = weight if values[i] == values[i] else Float32(0.0)
                whole = whole + weights[i]
            whole, _ = sums(whole, Float32(0.0), warp_pairs, cta_pairs, turn, rank, thread)
            turn = turn ^ 1
            turn = keep_prefix(
                *(values, weights, False, whole * share, scale, top, first_index),
                *(VECTOR, STRIDE, VOCABULARY, turn, warp_pairs, cta_pairs, rank, thread),
            )
        first_state = token_state(state, Uint32(first_index))
        order, index = Uint32(0), Int32(0)
        for i in cutlass.range_constexpr(HELD):
            own_token = index_of(first_index, i, VECTOR, STRIDE)
            if values[i] == values[i]:
                noise = gumbel(advanced(first_state, offset_of(i, VECTOR, STRIDE)))
                score = (values[i] - peak) * inverse + noise
                found = order_of(score)
                index = own_token if found > order else index
                order = found if found > order else order
        top, best = largest(order, Uint32(index), warp_pairs, cta_pairs, turn, rank, thread)
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
