"""A warpgroup of O of a prefilling attention on Hopper: 256 of its columns, O = O · factor + P·V, and their storing.

V is the tile that K was. The result goes to global memory from the
registers: four threads have eight columns of a row, two each, and change them among themselves until each has all
eight of another block. So no shared memory is needed, where the keys of the next query are on their way.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64, Uint32
from cutlass.cute.nvgpu import warpgroup

from dsv4.generator.device import sm90_mask, sm90_ring, sm90_wgmma, softmax
from dsv4.generator.device.page_rows import store_at
from dsv4.generator.device.sm90_prefill_gather import HEAD_DIM, PIECE_BYTES, TILE_KEYS

WARPGROUPS = 2
VALUE_WARPS = 4 * WARPGROUPS
VALUE_COLUMNS = HEAD_DIM // WARPGROUPS
PRODUCT_COLUMNS = 128
"""Of one wgmma: 256 would take more registers than a thread of 512 has when the kernel is compiled."""
PRODUCTS = VALUE_COLUMNS // PRODUCT_COLUMNS


@cute.jit
def add_values(
    tiles: Int32,
    slot: Int32,
    phase: Int32,
    message: Int32,
    part: Int32,
    keys: cute.Tensor,
    messages: cutlass.Constexpr,
    empty: cute.Pointer,
    accs_o: cutlass.Constexpr,
    thread: Int32,
    slots: cutlass.Constexpr[int],
):
    """Columns 256·part … of O (not normalised) over ``tiles`` tiles; ``slot``, ``phase`` and ``message`` after them.

    Mostly the factors are 1 for all rows of a warp. Each half of a tile's keys is released as soon as its products are
    done.
    """
    mma = sm90_wgmma.tiled_mma_ss(PRODUCT_COLUMNS, cute.nvgpu.OperandMajorMode.MN)
    thread_mma = mma.get_slice(thread)
    columns = sm90_wgmma.transposed(keys)
    values = [
        thread_mma.make_fragment_B(
            thread_mma.partition_B(
                cute.local_tile(columns, (PRODUCT_COLUMNS, TILE_KEYS), (part * PRODUCTS + i, 0, None))
            )
        )
        for i in range(PRODUCTS)
    ]
    p = thread_mma.make_fragment_A(thread_mma.partition_A(messages.p))
    for acc in accs_o:
        acc.fill(0.0)
    factor = cute.make_rmem_tensor((2,), Float32)
    for _ in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(messages.full, message)
        hear_factors(factor, messages.factors, thread)
        message ^= 1
        if cute.arch.vote_any_sync((factor[0] != Float32(1.0)) | (factor[1] != Float32(1.0))):
            for i in cutlass.range_constexpr(PRODUCTS):
                softmax.scale_rows(sm90_wgmma.rows_of(accs_o[i]), factor)
        for half in cutlass.range_constexpr(2):
            warpgroup.fence()
            for i in cutlass.range_constexpr(PRODUCTS):
                add_half(mma, accs_o[i], p, values[i][None, None, None, slot], half)
            warpgroup.commit_group()
        warpgroup.wait_group(1)
        sm90_ring.release(empty, 2 * slot)
        warpgroup.wait_group(0)
        sm90_ring.release(messages.empty, 0)
        sm90_ring.release(empty, 2 * slot + 1)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    return slot, phase, message


@cute.jit
def add_half(mma: cute.TiledMma, acc, p, values, half: cutlass.Constexpr[int]):
    """acc += P·V over half of a tile's keys, in the caller's group."""
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, True)
    steps = cute.size(p, mode=[2]) // 2
    for step in cutlass.range_constexpr(half * steps, (half + 1) * steps):
        cute.gemm(atom, acc, p[None, None, step], values[None, None, step], acc)


@cute.jit
def hear_factors(factor: cute.Tensor, factors: cute.Tensor, thread: Int32):
    """The factors of this thread's two rows."""
    for half in cutlass.range_constexpr(2):
        factor[half] = factors[half, thread]


@cute.jit
def store(accs_o: cutlass.Constexpr, factor: cute.Tensor, out: cute.Tensor, heads: Int32, part: Int32, thread: Int32):
    """O · factor as bf16 to ``out`` [64 or fewer heads, 512], rows from ``heads`` on left out."""
    row, quarter = sm90_mask.thread_row(thread), thread & 3
    for i, acc in enumerate(accs_o):
        softmax.scale_rows(sm90_wgmma.rows_of(acc), factor)
        narrow = cute.make_rmem_tensor(acc.layout, BFloat16)
        softmax.to_bf16(acc, narrow)
        blocks = PRODUCT_COLUMNS // 8
        words = cute.make_tensor(cute.recast_ptr(narrow.iterator, dtype=Uint32), cute.make_layout((2, blocks)))
        for half in cutlass.range_constexpr(2):
            start = (out.iterator + (row + 8 * half) * out.stride[0]).toint()
            start += Int64(2 * (part * VALUE_COLUMNS + i * PRODUCT_COLUMNS) + quarter * PIECE_BYTES)
            for group in cutlass.range_constexpr(blocks // 4):
                piece = exchanged([words[half, 4 * group + j] for j in range(4)], quarter)
                if row + 8 * half < heads:
                    store_at(start + Int64(group * 4 * PIECE_BYTES), piece)


@cute.jit
def exchanged(words: cutlass.Constexpr, quarter: Int32) -> cute.Tensor:
    """Word ``quarter`` of each of the four threads that share a row, in their order; all of them call.

    ``words``: of this thread, which is number ``quarter`` of the four, one for each of them.
    """
    is_odd, is_upper = quarter & 1 == 1, quarter & 2 == 2
    pairs = []
    for first in cutlass.range_constexpr(0, 4, 2):
        own, others = _chosen(is_odd, words[first + 1], words[first])
        heard = cute.arch.shuffle_sync_bfly(others, offset=1)
        pairs.append(_chosen(is_odd, heard, own))
    result = cute.make_rmem_tensor((4,), Uint32)
    for side in cutlass.range_constexpr(2):
        own, others = _chosen(is_upper, pairs[1][side], pairs[0][side])
        heard = cute.arch.shuffle_sync_bfly(others, offset=2)
        result[side], result[2 + side] = _chosen(is_upper, heard, own)
    return result


@cute.jit
def _chosen(condition, first: Uint32, second: Uint32) -> tuple[Uint32, Uint32]:
    """(first, second), or the other way round where ``condition`` does not hold."""
    return (first if condition else second), (second if condition else first)
