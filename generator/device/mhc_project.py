"""The projections of mHC on one CTA's slice of the columns: staged vectors times weights in registers."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint32
from cutlass.cute.nvgpu import warp

from dsv4.generator.device.mhc_tiling import QUAD, STREAMS, TERMS, TILE_TOKENS, WARP_COLUMNS
from dsv4.generator.device.mhc_weights import term_of
from dsv4.generator.device.row_reduce import sum_of_squares
from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS

STEPS = 2
"""Products with k = 16 that eight columns of each of four lanes make."""


@cute.jit
def stage_of_thread(staged: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr) -> cute.Tensor:
    """One thread's part of the shared memory ``staged``: bf16 ``(8, streams, 2 · token tiles, stages)``.

    Neighbouring threads have neighbouring 16 bytes. Nobody else reads or writes them, so they need no barrier.
    """
    step = VECTOR_ELEMENTS * tiling.threads
    layout = cute.make_layout(
        (VECTOR_ELEMENTS, STREAMS, 2 * tiling.token_tiles, tiling.stages),
        stride=(1, step, STREAMS * step, tiling.vectors * step),
    )
    return cute.make_tensor(staged.iterator + cute.assume(thread * VECTOR_ELEMENTS, divby=VECTOR_ELEMENTS), layout)


@cute.jit
def column_of_thread(rank: Int32, thread: Int32, tiling: cutlass.Constexpr):
    """The first of this thread's eight columns."""
    return rank * tiling.slice_columns + thread // 32 * WARP_COLUMNS + thread % 4 * VECTOR_ELEMENTS


@cute.jit
def token_of_thread(first: Int32, half: cutlass.Constexpr[int], thread: Int32):
    """The token of one half tile (eight tokens) that this thread works on; the pass starts at token ``first``."""
    return first + half * 8 + thread % 32 // 4


@cute.jit
def fetch_pass(
    streams: cute.Tensor, stage: cute.Tensor, first: Int32, column: Int32, thread: Int32, tiling: cutlass.Constexpr
):
    """Starts the copies of this thread's vectors of the tokens from ``first`` on into ``stage`` (8, streams, halves).

    Tokens that do not exist read as zeros. The caller commits the group.
    """
    atom = cute.make_copy_atom(
        cute.nvgpu.cpasync.CopyG2SOp(cache_mode=cute.nvgpu.cpasync.LoadCacheMode.GLOBAL),
        BFloat16,
        num_bits_per_copy=VECTOR_BITS,
    )
    for half in cutlass.range_constexpr(2 * tiling.token_tiles):
        token = token_of_thread(first, half, thread)
        if token < streams.shape[0]:
            row = Int64(token) * (STREAMS * tiling.columns) + column
            for j in cutlass.range_constexpr(STREAMS):
                source = streams.iterator + cute.assume(row + j * tiling.columns, divby=VECTOR_ELEMENTS)
                cute.copy(atom, cute.make_tensor(source, cute.make_layout(VECTOR_ELEMENTS)), stage[None, j, half])
        else:
            nothing = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
            nothing.fill(0.0)
            for j in cutlass.range_constexpr(STREAMS):
                cute.autovec_copy(nothing, stage[None, j, half])


@cute.jit
def staged_vector(half: cute.Tensor, stream: cutlass.Constexpr[int]) -> cute.Tensor:
    """One 16-byte vector of a half tile of a stage, (8, streams), in registers."""
    vector = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
    cute.autovec_copy(half[None, stream], vector)
    return vector


@cute.jit
def project_tile(
    stage: cute.Tensor, weights: cute.Tensor, codes, spare, tile: cutlass.Constexpr[int], tiling: cutlass.Constexpr
):
    """The outputs of 16 tokens over this warp's columns and this thread's Σ x² of its two tokens.

    Returns float32 registers ``(4, output tiles)`` in the order of the product's accumulator: outputs ``2q`` and
    ``2q + 1`` of token ``g``, then of token ``g + 8``, with ``g = lane // 4``, ``q = lane % 4``; and two sums.
    """
    atom = cute.make_mma_atom(warp.MmaF16BF16Op(BFloat16, Float32, (16, 8, 16)))
    tiles = tiling.output_tiles
    sums = cute.make_rmem_tensor((4, tiles), Float32)
    sums.fill(0.0)
    squares = [Float32(0.0), Float32(0.0)]
    a = cute.make_rmem_tensor((4,), Uint32)
    b = cute.make_rmem_tensor((2,), Uint32)
    a_operand = cute.make_tensor(cute.recast_tensor(a, BFloat16).iterator, cute.make_layout(((2, 2, 2),)))
    b_operand = cute.make_tensor(cute.recast_tensor(b, BFloat16).iterator, cute.make_layout(((2, 2),)))
    halves = [stage[None, None, 2 * tile], stage[None, None, 2 * tile + 1]]
    for j in cutlass.range_constexpr(STREAMS):
        upper, lower = staged_vector(halves[0], j), staged_vector(halves[1], j)
        squares[0] = squares[0] + sum_of_squares(upper)
        squares[1] = squares[1] + sum_of_squares(lower)
        upper_pairs, lower_pairs = cute.recast_tensor(upper, Uint32), cute.recast_tensor(lower, Uint32)
        for term in cutlass.range_constexpr(TERMS):
            for n in cutlass.range_constexpr(tiles):
                pairs = term_of(weights, codes, spare, n, j, term, tiling)
                total = sums[None, n]
                for step in cutlass.range_constexpr(STEPS):
                    a[0], a[1] = upper_pairs[2 * step], lower_pairs[2 * step]
                    a[2], a[3] = upper_pairs[2 * step + 1], lower_pairs[2 * step + 1]
                    b[0], b[1] = pairs[2 * step], pairs[2 * step + 1]
                    cute.mma_atom_call(atom, total, a_operand, b_operand, total)
    return sums, squares


@cute.jit
def publish_tile(
    sums: cute.Tensor,
    squares,
    partials: cute.Tensor,
    tile: cutlass.Constexpr[int],
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Writes what :func:`project_tile` gave to shared memory ``partials`` (4, tokens, quads, warps)."""
    publish_sums(sums, partials, tile, thread, tiling)
    lane, owner = thread % 32, thread // 32
    g, q = lane // 4, lane % 4
    for half in cutlass.range_constexpr(2):
        total = cute.arch.warp_reduction_sum(squares[half], threads_in_group=4)
        if q == 0:
            quad = cute.make_rmem_tensor((QUAD,), Float32)
            quad.fill(0.0)
            quad[0] = total
            cute.autovec_copy(quad, partials[None, tile * TILE_TOKENS + half * 8 + g, tiling.quads - 1, owner])


@cute.jit
def publish_sums(
    sums: cute.Tensor, partials: cute.Tensor, tile: cutlass.Constexpr[int], thread: Int32, tiling: cutlass.Constexpr
):
    """Writes the outputs of 16 tokens, registers as :func:`project_tile` gives them, to ``partials``."""
    lane, owner = thread % 32, thread // 32
    g, q = lane // 4, lane % 4
    for half in cutlass.range_constexpr(2):
        token = tile * TILE_TOKENS + half * 8 + g
        for n in cutlass.range_constexpr(tiling.output_tiles):
            if cutlass.const_expr(tiling.outputs % 8 != 0):
                if q < tiling.outputs % 8 // 2:
                    _publish_pair(sums, partials, half, n, token, q, owner)
            else:
                _publish_pair(sums, partials, half, n, token, q, owner)


@cute.jit
def _publish_pair(sums, partials, half: cutlass.Constexpr[int], n: cutlass.Constexpr[int], token, q, owner):
    pair = cute.make_rmem_tensor((2,), Float32)
    pair[0], pair[1] = sums[2 * half, n], sums[2 * half + 1, n]
    row = partials[None, token, 2 * n + q // 2, owner]
    start = cute.assume(q % 2 * 2, divby=2)
    cute.autovec_copy(pair, cute.make_tensor(row.iterator + start, cute.make_layout(2)))


@cute.jit
def project_pass(stage, kept, codes, spare, partials: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr):
    """Every tile of a pass in ``stage`` projected, the warp's sums and sums of squares to ``partials``."""
    for tile in cutlass.range_constexpr(tiling.token_tiles):
        sums, sums_of_squares = project_tile(stage, kept, codes, spare, tile, tiling)
        publish_tile(sums, sums_of_squares, partials, tile, thread, tiling)
