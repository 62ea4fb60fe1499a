"""The warpgroup of scores of a prefilling attention on Hopper: Q, S = Q·Kᵀ, the softmax, what the rows end with.

It passes messages on to the two warpgroups of O, each of which reads the same ones: for a tile P and the factors that
the rows of O have to be scaled by, at the end of a query the factors that normalise them. There is room for one
message of either kind. A thread of S and the threads of the same number of the warpgroups of O have the same two rows.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Uint32
from cutlass.cute.nvgpu import warp as warp_ops
from cutlass.cute.nvgpu import warpgroup

from dsv4.generator.device import sm90_mask, sm90_ring, sm90_wgmma, softmax
from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.inline_asm import not_hoisted
from dsv4.generator.device.sm90_prefill_gather import BLOCK_BYTES, HEAD_DIM, PIECE_BYTES, TILE_KEYS
from dsv4.generator.device.sm90_sparse_decode import hide_absent

SCORE_BARRIER = 1
"""Named barrier of this warpgroup (0 is the CTA's own)."""
TURNS_AT_ONCE = 12
"""Pieces of Q that a thread has on their way from one place in shared memory to the other."""
STEPS = HEAD_DIM // 16
PORTIONS = (10, 20, 26)
"""Of the products of a tile, how many are issued before each row's exponentials, and before P is stored."""


class Messages(NamedTuple):
    """``p``: (64, 64) bf16, swizzled; ``factors`` (2, 128) float32, those of each thread; ``normalisers`` alike.

    ``full`` has an arrival of each warp of S, ``empty`` of each of O, when P·V is done; ``last_full`` and
    ``last_empty`` are those of the normalisers.
    """

    p: cute.Tensor
    factors: cute.Tensor
    normalisers: cute.Tensor
    full: cute.Pointer
    empty: cute.Pointer
    last_full: cute.Pointer
    last_empty: cute.Pointer


@cute.jit
def take_q(
    tile: cute.Tensor,
    smem_q: cute.Tensor,
    registers: cute.Tensor,
    thread: Int32,
    register_columns: cutlass.Constexpr[int],
):
    """Q from the swizzled ``tile`` (64, 512): its first ``register_columns`` columns, a multiple of 64, into operand
    fragments ``((2, 2, 2), 1, k steps)``, the others to ``smem_q`` (64, 512 − register_columns), laid out alike.

    All threads of the warpgroup call; on return none reads the tile any more, and ``smem_q`` is the tensor cores'.
    """
    thread = not_hoisted(thread)
    mma = sm90_wgmma.tiled_mma_rs(TILE_KEYS, cute.nvgpu.OperandMajorMode.K)
    copy = cute.make_tiled_copy_A(cute.make_copy_atom(warp_ops.LdMatrix8x8x16bOp(False, 4), BFloat16), mma)
    thread_copy = copy.get_slice(thread)
    source, target = thread_copy.partition_S(tile), thread_copy.retile(registers)
    steps = register_columns // 16
    assert cute.size(target, mode=[2]) == steps and cute.size(source, mode=[2]) == HEAD_DIM // 16
    for step in cutlass.range_constexpr(steps):
        cute.copy(copy, source[None, None, step], target[None, None, step])
    cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)  # the products with the last Q are done
    from_address = tile.iterator.toint() + register_columns // 64 * BLOCK_BYTES + thread * PIECE_BYTES
    to_address = smem_q.iterator.toint() + thread * PIECE_BYTES
    turns = (HEAD_DIM - register_columns) // 64 * BLOCK_BYTES // (128 * PIECE_BYTES)
    pieces = [cute.make_rmem_tensor((4,), Uint32) for _ in range(TURNS_AT_ONCE)]
    for first in cutlass.range_constexpr(0, turns, TURNS_AT_ONCE):
        for turn in cutlass.range_constexpr(first, min(first + TURNS_AT_ONCE, turns)):
            load_shared(from_address + turn * 128 * PIECE_BYTES, pieces[turn - first])
        for turn in cutlass.range_constexpr(first, min(first + TURNS_AT_ONCE, turns)):
            store_shared(to_address + turn * 128 * PIECE_BYTES, pieces[turn - first])
    cute.arch.fence_view_async_shared()
    cute.arch.barrier(barrier_id=SCORE_BARRIER, number_of_threads=128)


class State(NamedTuple):
    """Of a thread's two rows: ``top``, the largest score, and ``row_max``, which P and ``row_sum`` refer to."""

    row_max: cute.Tensor
    row_sum: cute.Tensor
    top: cute.Tensor
    scale_log2: Float32
    rescale_above: int


class Scores(NamedTuple):
    """What S = Q·Kᵀ of a tile is made of: the operands, ``acc``, where the tensor cores put it, and ``own``, a copy.

    ``q_registers`` and ``q_operand`` are the columns of Q in registers and in shared memory; ``keys`` has all slots.
    """

    mma_rs: cute.TiledMma
    mma_ss: cute.TiledMma
    q_registers: cute.Tensor
    q_operand: cute.Tensor
    keys: cute.Tensor
    keys_full: cute.Pointer
    acc: cute.Tensor
    own: cute.Tensor


@cute.jit
def score(
    tiles: Int32,
    slot: Int32,
    phase: Int32,
    message: Int32,
    scale_log2: Float32,
    smem_q: cute.Tensor,
    q_registers: cute.Tensor,
    keys: cute.Tensor,
    is_key: cute.Tensor,
    keys_full: cute.Pointer,
    messages: cutlass.Constexpr,
    row_max: cute.Tensor,
    row_sum: cute.Tensor,
    top: cute.Tensor,
    thread: Int32,
    slots: cutlass.Constexpr[int],
    rescale_above: cutlass.Constexpr[int],
):
    """P and factors of ``tiles`` tiles to the warpgroups of O; m (unscaled) and this thread's part of l.

    ``slot`` and ``phase`` in the ring ``keys`` (64, 512, slot) and ``message``, the phase of the messages, are returned
    as they are after them. ``top`` becomes the largest score of each row; ``row_max``, which the sums refer to, follows
    it when it has grown by more than ``rescale_above`` (in powers of two of P). The products of a tile are issued while
    the softmax of the one before it is worked out.
    """
    mma_rs = sm90_wgmma.tiled_mma_rs(TILE_KEYS, cute.nvgpu.OperandMajorMode.K)
    mma_ss = sm90_wgmma.tiled_mma_ss(TILE_KEYS)
    thread_rs, thread_ss = mma_rs.get_slice(thread), mma_ss.get_slice(thread)
    parts = Scores(
        *(mma_rs, mma_ss, q_registers, thread_ss.make_fragment_A(thread_ss.partition_A(smem_q))),
        *(thread_rs.make_fragment_B(thread_rs.partition_B(keys)), keys_full),
        *(sm90_wgmma.accumulator(TILE_KEYS), sm90_wgmma.accumulator(TILE_KEYS)),
    )
    assert cute.size(parts.keys, mode=[2]) == HEAD_DIM // 16, parts.keys.shape
    row_max.fill(-Float32.inf)
    top.fill(-Float32.inf)
    row_sum.fill(0.0)
    state = State(row_max, row_sum, top, scale_log2, rescale_above)
    if tiles > 0:
        issue_products(parts, slot, phase)
        warpgroup.wait_group(0)
        hand_over(parts, slot, message, is_key, messages, state, thread)
        message ^= 1
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    if tiles > 1:
        issue_products(parts, slot, phase)
        warpgroup.wait_group(0)
        for _ in cutlass.range(tiles - 2, unroll=1):
            following, next_phase = sm90_ring.next_position(slot, phase, slots)
            hand_over(parts, slot, message, is_key, messages, state, thread, (following, next_phase))
            warpgroup.wait_group(0)
            message ^= 1
            slot, phase = following, next_phase
        hand_over(parts, slot, message, is_key, messages, state, thread)
        message ^= 1
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return slot, phase, message


@cute.jit
def issue_products(parts: cutlass.Constexpr, slot: Int32, phase: Int32):
    """``acc`` ← Q·Kᵀ of the tile in ``slot`` when it is there, as one group, not waited for."""
    tile_keys = begin_products(parts, slot, phase)
    add_products(parts, tile_keys, 0, STEPS)
    warpgroup.commit_group()


@cute.jit
def begin_products(parts: cutlass.Constexpr, slot: Int32, phase: Int32):
    """Wait for the keys in ``slot``, before the first product with them; their operand fragments."""
    sm90_ring.wait_full(parts.keys_full, slot, phase)
    cute.arch.fence_view_async_shared()  # the copies of the gathering warps were not of the tensor cores' proxy
    warpgroup.fence()
    return parts.keys[None, None, None, slot]


@cute.jit
def add_products(parts: cutlass.Constexpr, tile_keys, first: cutlass.Constexpr[int], last: cutlass.Constexpr[int]):
    """Issue steps ``first`` … ``last`` − 1 of Q·Kᵀ, of which step 0 overwrites ``acc``, in the caller's group."""
    register_steps = cute.size(parts.q_registers, mode=[2])
    for step in cutlass.range_constexpr(first, last):
        of_registers = cutlass.const_expr(step < register_steps)
        mma = parts.mma_rs if cutlass.const_expr(of_registers) else parts.mma_ss
        atom = cute.make_mma_atom(mma.op)
        atom.set(warpgroup.Field.ACCUMULATE, step > 0)
        if cutlass.const_expr(of_registers):
            q = parts.q_registers[None, None, step]
        else:
            q = parts.q_operand[None, None, step - register_steps]
        cute.gemm(atom, parts.acc, q, tile_keys[None, None, step], parts.acc)


@cute.jit
def hand_over(
    parts: cutlass.Constexpr,
    slot: Int32,
    message: Int32,
    is_key: cute.Tensor,
    messages: cutlass.Constexpr,
    state: cutlass.Constexpr,
    thread: Int32,
    following=None,
):
    """The softmax of ``acc``, the scores of the tile in ``slot``, and its P and factors as a message.

    ``following``: slot and phase of another tile, whose products are issued a few at a time in between, as one group.
    The warps would do nothing while a whole tile's are taken by the tensor cores.
    """
    parts.own.store(parts.acc.load())
    correction, shifts = cute.make_rmem_tensor((2,), Float32), cute.make_rmem_tensor((2,), Float32)
    rows = sm90_wgmma.rows_of(parts.own)
    hide_absent(rows, is_key[None, slot], thread)
    raise_maxima(rows, state, correction, shifts)
    if cutlass.const_expr(following is not None):
        tile_keys = begin_products(parts, *following)
        add_products(parts, tile_keys, 0, PORTIONS[0])
    for row in cutlass.range_constexpr(2):
        tile_sum = softmax.exponentiate_row(rows, row, state.scale_log2, shifts[row])
        state.row_sum[row] = state.row_sum[row] * correction[row] + tile_sum
        if cutlass.const_expr(following is not None):
            add_products(parts, tile_keys, PORTIONS[row], PORTIONS[row + 1])
    cute.arch.mbarrier_wait(messages.empty, message ^ 1)
    sm90_wgmma.store_accumulator(parts.own, parts.mma_ss, messages.p, not_hoisted(thread))
    cute.arch.fence_view_async_shared()
    tell(correction, messages.factors, messages.full, thread)
    if cutlass.const_expr(following is not None):
        add_products(parts, tile_keys, PORTIONS[2], STEPS)
        warpgroup.commit_group()


@cute.jit
def raise_maxima(rows: cute.Tensor, state: cutlass.Constexpr, correction: cute.Tensor, shifts: cute.Tensor):
    """``top`` with the scores ``rows`` of a tile, and row_max where it is outgrown; ``correction``: the factors of O.

    ``shifts``: what has to be taken from the exponents. P is up to 2^``rescale_above``, and mostly the factors are 1.
    """
    for row in cutlass.range_constexpr(2):
        before = state.row_max[row]
        highest = softmax.row_maximum(rows, row, state.top[row])
        state.top[row] = highest
        grown = (highest - before) * state.scale_log2
        after = highest if grown > Float32(state.rescale_above) else before
        state.row_max[row] = after
        shifts[row] = (Float32(0.0) if after == -Float32.inf else after) * state.scale_log2
        correction[row] = cute.math.exp2(before * state.scale_log2 - shifts[row], fastmath=True)


@cute.jit
def tell(factors: cute.Tensor, place: cute.Tensor, full: cute.Pointer, thread: Int32):
    """This thread's ``factors`` (2,) to ``place`` (2, 128), the last part of a message; then it is there."""
    for half in cutlass.range_constexpr(2):
        place[half, thread] = factors[half]
    cute.arch.sync_warp()
    sm90_ring.release(full, 0)


@cute.jit
def finish(
    row_max: cute.Tensor,
    row_sum: cute.Tensor,
    top: cute.Tensor,
    normaliser: cute.Tensor,
    sink,
    lse: cute.Tensor,
    max_logits,
    heads: Int32,
    scale_log2: Float32,
    empty_lse: Float32,
    thread: Int32,
):
    """``normaliser`` ← 1 / (l + 2^(log2(e)·sink − c·m)); lse = ln l + softmax_scale·m and the largest scaled logit.

    ``sink`` is (64,) float32, of which ``heads`` may be read, or None; ``lse`` and ``max_logits`` are (64,),
    the latter may be None. A row without keys gets a normaliser of 0, ``empty_lse`` and −∞ (dsv4-reference §7.2, §7.5).
    """
    thread = not_hoisted(thread)
    first = sm90_mask.thread_row(thread)
    for half in cutlass.range_constexpr(2):
        row = first + 8 * half
        total = row_sum[half]
        total = total + cute.arch.shuffle_sync_bfly(total, offset=1)
        total = total + cute.arch.shuffle_sync_bfly(total, offset=2)
        reference = row_max[half]
        shift = (Float32(0.0) if reference == -Float32.inf else reference) * scale_log2
        below = total
        if cutlass.const_expr(sink is not None):
            below = total + cute.math.exp2(sink[cutlass.min(row, heads - 1)] * softmax.LOG2_E - shift, fastmath=True)
        normaliser[half] = Float32(0.0) if total == Float32(0.0) else cute.arch.rcp_approx(below)
        if thread & 3 == 0 and row < heads:
            value = (shift + cute.math.log2(total, fastmath=True)) * softmax.LN_2
            lse[row] = empty_lse if total == Float32(0.0) else value
            if cutlass.const_expr(max_logits is not None):
                max_logits[row] = top[half] * (scale_log2 * softmax.LN_2)
