"""The two warps of a decoding attention on sm_100 for few heads that issue its products (``sm100_few_heads``).

As in ``sm100_sparse_mma`` each product is issued when its own operands are there, whatever the other warp does.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.experimental.primitives import Tcgen05InstrDesc

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, ROW_BYTES, TILE_BYTES
from dsv4.generator.device.sm100_few_heads import GROUP_ROWS, product_rows
from dsv4.generator.device.sm100_half_mma import (
    GROUP_BYTES,
    HALF_LANE,
    K_COLUMNS,
    K_ELEMENTS,
    ROWS,
    instruction,
    k_major,
    mn_major,
    multiply_shared,
    multiply_tmem,
)
from dsv4.generator.device.sm100_sparse_decode import HEAD_DIM, TILE_KEYS
from dsv4.generator.device.sm100_tmem import commit, fence_after_wait

STEP_BYTES = 2 * K_ELEMENTS
STEPS_OF_BLOCK = 64 // K_ELEMENTS


def value_instruction(heads: int) -> Int32:
    """Oᵀ: ``product_rows`` x ``heads`` x 16, of which A, the values, has its rows contiguous and B its K."""
    return Tcgen05InstrDesc.build(
        a_dtype=BFloat16,
        b_dtype=BFloat16,
        c_dtype=Float32,
        a_major=1,
        b_major=0,
        n_dim=heads,
        m_dim=product_rows(heads),
    )


@cute.jit
def issue_scores(
    tiles: Int32,
    scores: Int32,
    smem_q: Int32,
    heads: cutlass.Constexpr[int],
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    slots: cutlass.Constexpr[int],
    keys_tmem=None,
):
    """Sᵀ = K·Qᵀ of each tile: ``heads`` columns of tensor memory from ``scores`` on. Q is at address ``smem_q``.

    ``keys_tmem``: address of K in tensor memory, of the slots in either half of the lanes; else the ring has it.
    """
    cute.arch.mbarrier_wait(barriers.q_full, 0)
    keys_address = ring.keys.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    for _ in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.keys_full + slot, phase)
        fence_after_wait()
        tile, target = keys_address + slot * TILE_BYTES, scores + slot * HALF_LANE
        with cute.arch.elect_one():
            kind = instruction(heads, transposed_b=False)
            for step in cutlass.range_constexpr(HEAD_DIM // K_ELEMENTS):
                block, place = step // STEPS_OF_BLOCK, step % STEPS_OF_BLOCK * STEP_BYTES
                queries = k_major(smem_q + block * (heads * ROW_BYTES) + place)
                if cutlass.const_expr(keys_tmem is None):
                    multiply_shared(target, k_major(tile + block * BLOCK_BYTES + place), queries, kind, step > 0)
                else:
                    keys = keys_tmem + slot * HALF_LANE + step * K_COLUMNS
                    multiply_tmem(target, keys, queries, kind, step > 0)
        commit(barriers.scores_full + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)


@cute.jit
def issue_values(
    tiles: Int32,
    output: Int32,
    heads: cutlass.Constexpr[int],
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    slots: cutlass.Constexpr[int],
):
    """Oᵀ += Vᵀ·Pᵀ of each tile, at ``output`` in tensor memory; the first tile overwrites what stands there."""
    keys_address, p_address = ring.keys.iterator.toint(), ring.p.iterator.toint()
    rows = cutlass.const_expr(product_rows(heads))
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.weights_full + slot, phase)
        cute.arch.mbarrier_wait(barriers.output_ready, number & 1)
        fence_after_wait()
        tile, weights = keys_address + slot * TILE_BYTES, p_address + slot * (heads * ROW_BYTES)
        with cute.arch.elect_one():
            kind = value_instruction(heads)
            for first in cutlass.range_constexpr(0, HEAD_DIM, rows):
                target = output + first // GROUP_ROWS * heads + first % GROUP_ROWS // ROWS * HALF_LANE
                for step in cutlass.range_constexpr(TILE_KEYS // K_ELEMENTS):
                    keys = step * (K_ELEMENTS // 8) * GROUP_BYTES
                    values = mn_major(tile + (first // 64 * BLOCK_BYTES + keys), BLOCK_BYTES)
                    accumulate = number > 0 if cutlass.const_expr(step == 0) else True
                    multiply_shared(target, values, k_major(weights + step * STEP_BYTES), kind, accumulate)
        commit(barriers.empty + slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
