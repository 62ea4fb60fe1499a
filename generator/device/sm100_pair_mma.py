"""tcgen05.mma of a pair of CTAs on sm_100 with 64 rows each, and the two warps of a decoding attention that issue it.

One CTA, the leader, issues a product of 128 rows for both. A and D of rows 64·c … are those of CTA c. B is in halves:
CTA c has its rows (columns of D) from N/2·c on. All lie at the same places in either CTA. In tensor memory (data path
layout B) lane l of a CTA has row l mod 64 of D, the first N/2 columns in lanes 0 … 63 and the others in lanes 64 … 127;
an A there stands in both halves of the lanes.

So for S = Q·Kᵀ a CTA has half of the tile's keys, with all columns, and for O += P·V all keys, with half of the
columns: the 256 first of O's columns are in lanes 0 … 63, the others in lanes 64 … 127, whatever the passes.

A commit arrives in both CTAs. See ``sm100_sparse_mma`` for why two warps issue.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass._mlir.dialects import nvvm
from cutlass.cute.nvgpu import tcgen05
from cutlass.experimental.primitives import Tcgen05InstrDesc

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, ROW_BYTES, TILE_BYTES
from dsv4.generator.device.sm100_half_mma import (
    GROUP_BYTES,
    K_COLUMNS,
    K_ELEMENTS,
    k_major,
    mn_major,
    multiply,
)
from dsv4.generator.device.sm100_sparse_decode import HEAD_DIM, P_BYTES, ROWS, TILE_KEYS
from dsv4.generator.device.sm100_tmem import fence_after_wait

STEP_BYTES = 2 * K_ELEMENTS
STEPS_OF_BLOCK = 64 // K_ELEMENTS
OWN_KEYS = TILE_KEYS // 2
K_BLOCK_BYTES = OWN_KEYS * ROW_BYTES
"""64 columns of the keys whose K a CTA has."""
K_BYTES = HEAD_DIM // 64 * K_BLOCK_BYTES
"""From the start of a slot to its V: four blocks of 64 columns, which are ``BLOCK_BYTES`` each."""
S_COLUMNS = TILE_KEYS // 2
"""Of tensor memory, of a tile's S."""
assert K_BYTES + HEAD_DIM // 128 * BLOCK_BYTES == TILE_BYTES


def instruction(columns: int, *, transposed_b: bool) -> Int32:
    """The instruction descriptor of 128 x ``columns`` x 16: bf16 operands, float32 sums; B is K-major or MN-major."""
    return Tcgen05InstrDesc.build(
        a_dtype=BFloat16, b_dtype=BFloat16, c_dtype=Float32, b_major=int(transposed_b), n_dim=columns, m_dim=2 * ROWS
    )


@cute.jit
def commit_to_both(barrier: cute.Pointer, leader: Int32):
    """One arrival on ``barrier`` of both CTAs when every MMA that this warp has issued so far is complete."""
    with cute.arch.elect_one():
        tcgen05.commit(barrier, Int32(3) << leader, tcgen05.CtaGroup.TWO)


@cute.jit
def issue_scores(
    tiles: Int32,
    tmem: cutlass.Constexpr,
    smem_q: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    leader: Int32,
    tmem_columns: cutlass.Constexpr[int],
    slots: cutlass.Constexpr[int],
):
    """The leader's: S = Q·Kᵀ of each tile. ``tmem_columns`` of Q's columns are in tensor memory, the others at
    address ``smem_q``."""
    cute.arch.mbarrier_wait(barriers.q_full, 0)
    keys_address = ring.keys.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    for _ in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.pair_full + slot, phase)
        fence_after_wait()
        tile, scores = keys_address + slot * TILE_BYTES, tmem.s + slot * S_COLUMNS
        with cute.arch.elect_one():
            kind = instruction(TILE_KEYS, transposed_b=False)
            for step in cutlass.range_constexpr(HEAD_DIM // K_ELEMENTS):
                block, place = step // STEPS_OF_BLOCK, step % STEPS_OF_BLOCK * STEP_BYTES
                keys = k_major(tile + block * K_BLOCK_BYTES + place)
                if cutlass.const_expr(step * K_ELEMENTS < tmem_columns):
                    multiply(nvvm.CTAGroupKind.CTA_2, scores, tmem.q + step * K_COLUMNS, True, keys, kind, step > 0)
                else:
                    query = k_major(smem_q + (block - tmem_columns // 64) * BLOCK_BYTES + place)
                    multiply(nvvm.CTAGroupKind.CTA_2, scores, query, False, keys, kind, step > 0)
        commit_to_both(barriers.scores_full + slot, leader)
        slot, phase = sm90_ring.next_position(slot, phase, slots)


@cute.jit
def issue_values(
    tiles: Int32,
    tmem: cutlass.Constexpr,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    leader: Int32,
    pass_columns: cutlass.Constexpr[int],
    slots: cutlass.Constexpr[int],
):
    """The leader's: O += P·V of each tile, ``pass_columns`` columns of O at a time, half of them by either CTA's V."""
    keys_address, p_address = ring.keys.iterator.toint(), ring.p.iterator.toint()
    own_columns = pass_columns // 2
    slot, phase = Int32(0), Int32(0)
    for number in cutlass.range(tiles, unroll=1):
        cute.arch.mbarrier_wait(barriers.weights_full + slot, phase)
        cute.arch.mbarrier_wait(barriers.output_ready, number & 1)
        fence_after_wait()
        values_address = keys_address + slot * TILE_BYTES + K_BYTES
        weights = p_address + slot * P_BYTES
        with cute.arch.elect_one():
            kind = instruction(pass_columns, transposed_b=True)
            for first in cutlass.range_constexpr(0, HEAD_DIM // 2, own_columns):
                for step in cutlass.range_constexpr(TILE_KEYS // K_ELEMENTS):
                    rows = step * (K_ELEMENTS // 8) * GROUP_BYTES
                    values = mn_major(values_address + (first // 64 * BLOCK_BYTES + rows), BLOCK_BYTES)
                    accumulate = number > 0 if cutlass.const_expr(step == 0) else True
                    query = k_major(weights + step * STEP_BYTES)
                    multiply(nvvm.CTAGroupKind.CTA_2, tmem.o + first, query, False, values, kind, accumulate)
        commit_to_both(barriers.empty + slot, leader)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
