"""The mix warps of an mHC kernel with roles: staged streams under their weights, and the RMS norm behind it.

A warp has 64 columns of 8 or all 16 of a tile's tokens: eight lanes of eight columns to a token, so that a lane has two
or four tokens of every tile, four apart, and a warp stores 128 bytes of a row together.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint32

from dsv4.generator.device import mhc_combine
from dsv4.generator.device.bulk_rows import load_shared
from dsv4.generator.device.mhc_role_barriers import arrive, square_buffers
from dsv4.generator.device.mhc_role_columns import BLOCK_COLUMNS, ROW_BYTES, VECTOR_BYTES
from dsv4.generator.device.mhc_tiling import QUAD, STREAMS, TILE_TOKENS, kept_short
from dsv4.generator.device.rms_scale import inverse_rms, product, scaled
from dsv4.generator.device.row_reduce import sum_of_squares
from dsv4.generator.device.sm90_ring import next_position
from dsv4.generator.device.vector_io import VECTOR_BITS, VECTOR_ELEMENTS, to_float32

LANES = BLOCK_COLUMNS // VECTOR_ELEMENTS
"""Of a warp that share a token."""
APART = 32 // LANES


class Share(NamedTuple):
    """One thread's part of a pass: the first of its tokens, its column block, its first column of the row, and where
    the first stream of its first token lies in stage 0."""

    token: Int32
    block: Int32
    column: Int32
    first: Int32
    stream_bytes: int
    stage_bytes: int


@cute.jit
def share_of_thread(staged: cute.Tensor, rank: Int32, thread: Int32, tiling: cutlass.Constexpr):
    """The share of thread ``thread`` of the mix warps."""
    lane, group = thread % 32, thread // 32 * tiling.groups
    token, vector = group % 2 * 8 + lane // LANES, lane % LANES
    address = group // 2 * (tiling.tokens * ROW_BYTES) + token * ROW_BYTES + (vector ^ (token % 8)) * VECTOR_BYTES
    first = Int32(staged.iterator.toint() + address)
    column = rank * tiling.slice_columns + group // 2 * BLOCK_COLUMNS + vector * VECTOR_ELEMENTS
    stream_bytes = tiling.tokens * tiling.slice_columns * 2
    return Share(token, group // 2, column, first, stream_bytes, STREAMS * stream_bytes)


def tokens_of_thread(tiling) -> int:
    """How many tokens of a pass a thread has."""
    return 2 * tiling.groups * tiling.token_tiles


def token_place(number: int, tiling) -> int:
    """How far token ``number`` of a thread is behind its first one."""
    each = 2 * tiling.groups
    return number // each * TILE_TOKENS + number % each * APART


@cute.jit
def vector_of(share, slot: Int32, number: cutlass.Constexpr[int], stream: cutlass.Constexpr[int], tiling):
    """Eight bf16 of this thread's token ``number`` in registers."""
    words = cute.make_rmem_tensor((4,), Uint32)
    first = share.first + slot * share.stage_bytes
    if cutlass.const_expr(number % 2):  # four rows on in a block of eight
        first = first ^ (APART * VECTOR_BYTES)
    load_shared(first + (stream * share.stream_bytes + token_place(number, tiling) * ROW_BYTES), words)
    return cute.recast_tensor(words, BFloat16)


@cute.jit
def weighted_sums(share, slot: Int32, weights: cute.Tensor, tiling: cutlass.Constexpr):
    """Σ_j weight_j · stream_j at this thread's columns, rounded to bf16, for each of its tokens: a list of ``(8,)``.

    ``weights``: shared memory (4, tokens).
    """
    sums = []
    for number in cutlass.range_constexpr(tokens_of_thread(tiling)):
        own = cute.make_rmem_tensor((QUAD,), Float32)
        cute.autovec_copy(weights[None, share.token + token_place(number, tiling)], own)
        total = to_float32(vector_of(share, slot, number, 0, tiling)).load() * own[0]
        for j in cutlass.range_constexpr(1, STREAMS):
            total = to_float32(vector_of(share, slot, number, j, tiling)).load() * own[j] + total
        rounded = cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16)
        rounded.store(total.to(BFloat16))
        sums.append(rounded)
    return sums


@cute.jit
def publish_squares(sums, squares: cute.Tensor, share, thread: Int32, tiling: cutlass.Constexpr):
    """Σ u² over the warp's columns of each token to shared memory ``squares`` (blocks, tokens)."""
    for number in cutlass.range_constexpr(tokens_of_thread(tiling)):
        total = cute.arch.warp_reduction_sum(sum_of_squares(sums[number]), threads_in_group=LANES)
        if thread % LANES == 0:
            squares[share.block, share.token + token_place(number, tiling)] = total


@cute.jit
def send_squares(
    squares: cute.Tensor,
    received: cute.Tensor,
    barrier: cute.Pointer,
    rank: Int32,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Adds up the blocks' ``squares`` (blocks, tokens) and sends them to ``received`` (CTAs, tokens) of every CTA."""
    items = tiling.tokens * tiling.cluster
    blocks, threads = tiling.slice_columns // BLOCK_COLUMNS, 32 * tiling.role_warps
    for visit in cutlass.range_constexpr(-(-items // threads)):
        item = thread + visit * threads
        if item < items:
            token, peer = item % tiling.tokens, item // tiling.tokens
            parts = cute.make_rmem_tensor((blocks,), Float32)
            cute.autovec_copy(squares[None, token], parts)
            total = cute.make_rmem_tensor((1,), Float32)
            total[0] = parts[0]
            for other in cutlass.range_constexpr(1, blocks):
                total[0] = total[0] + parts[other]
            place = cute.make_tensor(received.iterator + (token * tiling.cluster + rank), cute.make_layout(1))
            cute.arch.store_async_dsmem(place.iterator, cute.recast_tensor(total, Int32)[0], barrier, peer)


@cute.jit
def row_squares(squares: cute.Tensor, thread: Int32, tiling: cutlass.Constexpr) -> Float32:
    """The sum of everyone's ``squares`` (CTAs,) of a token, by the lanes that share it."""
    lanes = cutlass.const_expr(min(LANES, tiling.cluster))
    each = cutlass.const_expr(tiling.cluster // lanes)
    parts = cute.make_rmem_tensor((each,), Float32)
    start = cute.assume(thread % lanes * each, divby=each)
    cute.autovec_copy(cute.make_tensor(squares.iterator + start, cute.make_layout(each)), parts)
    total = parts[0]
    for other in cutlass.range_constexpr(1, each):
        total = total + parts[other]
    return cute.arch.warp_reduction_sum(total, threads_in_group=lanes)


@cute.jit
def store_row(vector: cute.Tensor, y: cute.Tensor, token: Int32, column: Int32, tiling: cutlass.Constexpr):
    """Stores eight columns of a token that exists to ``y`` (tokens, columns)."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), BFloat16, num_bits_per_copy=VECTOR_BITS)
    if token < y.shape[0]:
        target = y.iterator + cute.assume(Int64(token) * tiling.columns + column, divby=VECTOR_ELEMENTS)
        cute.copy(atom, vector, cute.make_tensor(target, cute.make_layout(VECTOR_ELEMENTS)))


@cute.jit
def finish(
    held,
    all_squares: cute.Tensor,
    barriers: cutlass.Constexpr,
    place: Int32,
    turn: Int32,
    own_weight: cute.Tensor,
    norm_eps: Float32,
    y: cute.Tensor,
    first: Int32,
    share,
    thread: Int32,
    tiling: cutlass.Constexpr,
):
    """Waits for everyone's squares of a pass, normalises its sums and stores them."""
    cute.arch.mbarrier_wait(barriers.squares + place, turn)
    for number in cutlass.range_constexpr(tokens_of_thread(tiling)):
        token = share.token + token_place(number, tiling)
        total = row_squares(all_squares[None, token, place], thread, tiling)
        scale = inverse_rms(total, tiling.columns, norm_eps)
        store_row(scaled(product(held[number], own_weight), scale, BFloat16), y, first + token, share.column, tiling)


@cute.jit
def mix_passes(
    passes,
    staged: cute.Tensor,
    weights: cute.Tensor,
    squares,
    all_squares,
    norm_weight,
    norm_eps: Float32,
    y: cute.Tensor,
    barriers: cutlass.Constexpr,
    member: Int32,
    tiling: cutlass.Constexpr,
    barrier_id: cutlass.Constexpr[int],
):
    """Mix role: the weighted sums of all passes, with ``norm_weight`` (columns,) normalised, one pass later
    where there are registers for it.

    ``weights``: shared memory (4, tokens, stages); ``squares`` (blocks, tokens, 2) and ``all_squares`` (CTAs, tokens,
    stages + 2), None without a norm.
    """
    norm = cutlass.const_expr(norm_weight is not None)
    later = cutlass.const_expr(norm and tiling.groups == 1)  # two groups leave no registers to hold a pass's sums
    slot, phase = Int32(0), Int32(0)
    place, turn = Int32(0), Int32(0)
    if cutlass.const_expr(later):
        held = [cute.make_rmem_tensor((VECTOR_ELEMENTS,), BFloat16) for _ in range(tokens_of_thread(tiling))]
        held_place, held_turn = Int32(0), Int32(0)
    last = passes.first * tiling.tokens
    for number in cutlass.range(passes.count, unroll=1):
        first = (passes.first + number * passes.step) * tiling.tokens
        thread = kept_short(member, number, tiling)
        share = share_of_thread(staged, passes.rank, thread, tiling)
        cute.arch.mbarrier_wait(barriers.full + slot, phase)
        cute.arch.mbarrier_wait(barriers.weights + slot, phase)
        results = weighted_sums(share, slot, weights[None, None, slot], tiling)
        arrive(barriers.empty + slot, thread % 32)
        slot, phase = next_position(slot, phase, tiling.stages)
        if cutlass.const_expr(norm):
            own = squares[None, None, number % 2]
            publish_squares(results, own, share, thread, tiling)
            # The weights are read anew in each pass, for want of registers: early, where that costs none.
            if cutlass.const_expr(later):
                own_weight = mhc_combine.load_norm_weight(norm_weight, share.column)
            if thread == 0:
                cute.arch.mbarrier_arrive_and_expect_tx(barriers.squares + place, tiling.square_bytes)
            cute.arch.barrier(barrier_id=barrier_id, number_of_threads=32 * tiling.role_warps)
            send_squares(own, all_squares[None, None, place], barriers.squares + place, passes.rank, thread, tiling)
            if cutlass.const_expr(later):
                if number > 0:
                    finish(held, all_squares, barriers, held_place, held_turn, own_weight, norm_eps, y, last, share,
                           thread, tiling)  # fmt: skip
                mhc_combine.hold(results, held)
                held_place, held_turn = place, turn
                last = first
            else:
                own_weight = mhc_combine.load_norm_weight(norm_weight, share.column)
                finish(results, all_squares, barriers, place, turn, own_weight, norm_eps, y, first, share, thread,
                       tiling)  # fmt: skip
            place, turn = next_position(place, turn, square_buffers(tiling.stages))
        else:
            for each in cutlass.range_constexpr(tokens_of_thread(tiling)):
                token = first + share.token + token_place(each, tiling)
                store_row(results[each], y, token, share.column, tiling)
    if cutlass.const_expr(later):  # noqa: SIM102 (decided when compiling)
        if passes.count > 0:
            share = share_of_thread(staged, passes.rank, member, tiling)
            own_weight = mhc_combine.load_norm_weight(norm_weight, share.column)
            finish(held, all_squares, barriers, held_place, held_turn, own_weight, norm_eps, y, last, share, member,
                   tiling)  # fmt: skip
