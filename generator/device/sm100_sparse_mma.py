"""The two warps of a decoding attention on sm_100 that issue its products, each when its own operands are there.

They do not rely on the order of one another's products: whatever one needs of the other comes by a barrier. So P·V of a
tile never waits for the keys of the next one, nor the next S for P.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, TILE_BYTES
from dsv4.generator.device.sm100_half_mma import (
    GROUP_BYTES,
    HALF_LANE,
    K_COLUMNS,
    K_ELEMENTS,
    instruction,
    k_major,
    mn_major,
    multiply_shared,
    multiply_tmem,
)
from dsv4.generator.device.sm100_sparse_decode import HALF_COLUMNS, HEAD_DIM, P_BYTES, TILE_KEYS
from dsv4.generator.device.sm100_tmem import commit, fence_after_wait

STEP_BYTES = 2 * K_ELEMENTS
STEPS_OF_BLOCK = 64 // K_ELEMENTS


@cute.jit
def issue_scores(
    tiles: Int32,
    tmem: cutlass.Constexpr,
    smem_q: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    tmem_columns: cutlass.Constexpr[int],
    slots: cutlass.Constexpr[int],
):
    """S = Q·Kᵀ of each tile. ``tmem_columns`` of Q's columns are in tensor memory, the others at address ``smem_q``."""
    cute.arch.mbarrier_wait(barriers.q_full, 0)
    keys_address = ring.keys.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    for _ in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.keys_full + slot, phase)
        fence_after_wait()
        tile, half = keys_address + slot * TILE_BYTES, slot * HALF_LANE
        with cute.arch.elect_one():
            kind = instruction(TILE_KEYS, transposed_b=False)
            for step in cutlass.range_constexpr(HEAD_DIM // K_ELEMENTS):
                place = step // STEPS_OF_BLOCK * BLOCK_BYTES + step % STEPS_OF_BLOCK * STEP_BYTES
                keys = k_major(tile + place)
                if cutlass.const_expr(step * K_ELEMENTS < tmem_columns):
                    query = tmem.q + half + step * K_COLUMNS
                    multiply_tmem(tmem.s + half, query, keys, kind, step > 0)
                else:
                    skipped = tmem_columns // 64 * BLOCK_BYTES
                    multiply_shared(tmem.s + half, k_major(smem_q + (place - skipped)), keys, kind, step > 0)
        commit(barriers.scores_full + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)


@cute.jit
def issue_values(
    tiles: Int32,
    tmem: cutlass.Constexpr,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    pass_columns: cutlass.Constexpr[int],
    slots: cutlass.Constexpr[int],
):
    """O += P·V of each tile, ``pass_columns`` columns of O at a time; the first tile overwrites what stands there."""
    keys_address, p_address = ring.keys.iterator.toint(), ring.p.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.weights_full + slot, phase)
        cute.arch.mbarrier_wait(barriers.output_ready, number & 1)
        fence_after_wait()
        tile, weights = keys_address + slot * TILE_BYTES, p_address + slot * P_BYTES
        with cute.arch.elect_one():
            kind = instruction(pass_columns, transposed_b=True)
            for first in cutlass.range_constexpr(0, HEAD_DIM, pass_columns):
                output = tmem.o + first // HALF_COLUMNS * HALF_LANE + first % HALF_COLUMNS
                for step in cutlass.range_constexpr(TILE_KEYS // K_ELEMENTS):
                    rows = step * (K_ELEMENTS // 8) * GROUP_BYTES
                    values = mn_major(tile + (first // 64 * BLOCK_BYTES + rows), BLOCK_BYTES)
                    accumulate = number > 0 if cutlass.const_expr(step == 0) else True
                    multiply_shared(output, k_major(weights + step * STEP_BYTES), values, kind, accumulate)
        commit(barriers.empty + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
