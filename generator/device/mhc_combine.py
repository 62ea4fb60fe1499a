"""The input of a sub-layer: the streams of a token under its weights, and the RMS norm behind it."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64

from dsv4.generator.device.mhc_project import staged_vector, token_of_thread
from dsv4.generator.device.mhc_tiling import QUAD, STREAMS
from dsv4.generator.device.rms_scale import inverse_rms, product, scaled
from dsv4.generator.device.row_reduce import sum_of_squares
from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS, to_float32


@cute.jit
def weighted_sums(stage: cute.Tensor, weights: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr):
    """Σ_j weight_j · stream_j at this thread's columns, rounded to bf16, for each half tile: a list of ``(8,)``.

    ``weights``: shared memory (4, tokens).
    """
    sums = []
    for half in cutlass.range_constexpr(2 * tiling.token_tiles):
        own = cute.make_rmem_tensor((QUAD,), Float32)
        cute.autovec_copy(weights[None, half * 8 + thread % 32 // 4], own)
        total = to_float32(staged_vector(stage[None, None, half], 0)).load() * own[0]
        for j in cutlass.range_constexpr(1, STREAMS):
            total = to_float32(staged_vector(stage[None, None, half], j)).load() * own[j] + total
        rounded = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
        rounded.store(total.to(BFloat16))
        sums.append(rounded)
    return sums


@cute.jit
def publish_squares(sums, squares: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr):
    """Σ u² over the warp's columns of each token to shared memory ``squares`` (tokens, warps)."""
    for half in cutlass.range_constexpr(2 * tiling.token_tiles):
        total = cute.arch.warp_reduction_sum(sum_of_squares(sums[half]), threads_in_group=4)
        if thread % 4 == 0:
            squares[half * 8 + thread % 32 // 4, thread // 32] = total


@cute.jit
def normalised(
    sums, squares: cute.Tensor, norm_weight: cute.Tensor, norm_eps: Float32, thread: Int32, tiling: cutlass.Constexpr
):
    """``sums`` under RMS norm, as bf16; ``squares``: everyone's Σ u², shared memory (CTAs, tokens)."""
    results = []
    for half in cutlass.range_constexpr(2 * tiling.token_tiles):
        parts = cute.make_rmem_tensor((tiling.cluster,), Float32)
        cute.autovec_copy(squares[None, half * 8 + thread % 32 // 4], parts)
        total = parts[0]
        for peer in cutlass.range_constexpr(1, tiling.cluster):
            total = total + parts[peer]
        scale = inverse_rms(total, tiling.columns, norm_eps)
        results.append(scaled(product(sums[half], norm_weight), scale, BFloat16))
    return results


def make_held(tiling):
    """Registers for a pass's rounded sums while the squares of all CTAs are on their way."""
    return [cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16) for _ in range(2 * tiling.token_tiles)]


@cute.jit
def hold(sums, held):
    """Keeps ``sums`` in ``held``."""
    for half in cutlass.range_constexpr(len(sums)):
        held[half].store(sums[half].load())


@cute.jit
def finish_pass(
    held,
    all_squares: cute.Tensor,
    barriers: cute.Pointer,
    buffer: Int32,
    turn: Int32,
    again,
    norm_weight: cute.Tensor,
    norm_eps: Float32,
    y: cute.Tensor,
    first: Int32,
    column: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Waits for everyone's squares of a pass, normalises its sums and stores them.

    ``all_squares``: shared memory (CTAs, tokens, 2) with a barrier a ``buffer``, whose phase is ``turn``; ``again``:
    whether the buffer is filled once more. ``first``: the pass's first token.
    """
    arrived = barriers + buffer
    cute.arch.mbarrier_wait(arrived, turn)
    if thread == 0 and again:
        cute.arch.mbarrier_arrive_and_expect_tx(arrived, tiling.square_bytes)
    results = normalised(held, all_squares[None, None, buffer], norm_weight, norm_eps, thread, tiling)
    store_rows(results, y, first, column, thread, tiling)


@cute.jit
def store_rows(results, y: cute.Tensor, first: Int32, column: Int32, thread: Int32, tiling: cutlass.Constexpr):
    """Stores this thread's vector of each token that exists to ``y`` (tokens, columns)."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), BFloat16, num_bits_per_copy=VECTOR_BITS)
    for half in cutlass.range_constexpr(2 * tiling.token_tiles):
        token = token_of_thread(first, half, thread)
        if token < y.shape[0]:
            target = y.iterator + cute.assume(Int64(token) * tiling.columns + column, divby=VECTOR_ELEMENTS)
            cute.copy(atom, results[half], cute.make_tensor(target, cute.make_layout(VECTOR_ELEMENTS)))


@cute.jit
def load_norm_weight(norm_weight: cute.Tensor, column: Int32) -> cute.Tensor:
    """This thread's eight weights, 16 bytes of global memory, in registers."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), BFloat16, num_bits_per_copy=VECTOR_BITS)
    own = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
    source = norm_weight.iterator + cute.assume(column, divby=VECTOR_ELEMENTS)
    cute.copy(atom, cute.make_tensor(source, cute.make_layout(VECTOR_ELEMENTS)), own)
    return own
