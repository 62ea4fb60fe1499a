"""P on its way from the warpgroup of S to those of O: from registers to registers, through shared memory.

What an accumulator has of 16 columns are the registers of one k step of operand A (``sm90_wgmma.as_operand_a``): a
thread of O needs what the thread of the same number has in S. So nothing is rearranged, no proxy fence is waited for,
and the tensor cores do not read P from shared memory once for each product of 128 columns, which they wait for.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32, Uint32
from cutlass.cute.nvgpu import warpgroup

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.kv_rows import TILE_KEYS

STEPS = TILE_KEYS // 16
"""k steps of a tile."""
THREAD_BYTES = 16
"""Of P of one k step."""
STEP_BYTES = 128 * THREAD_BYTES


@cute.jit
def place_of(p: cute.Tensor, thread: Int32) -> Int32:
    """Where ``thread``'s part of P begins in the shared memory of ``p``, which has one place for all slots."""
    return p.iterator.toint() + thread * THREAD_BYTES


@cute.jit
def tell(scores: cute.Tensor, place: Int32):
    """Warpgroup of S: P of a tile, an accumulator fragment, as bf16."""
    narrow = cute.make_rmem_tensor(scores.layout, BFloat16)
    narrow.store(scores.load().to(BFloat16))
    words = cute.make_tensor(cute.recast_ptr(narrow.iterator, dtype=Uint32), cute.make_layout((4, STEPS)))
    for step in cutlass.range_constexpr(STEPS):
        store_shared(place + step * STEP_BYTES, words[None, step])


@cute.jit
def hear(place: Int32, step: cutlass.Constexpr[int]) -> cute.Tensor:
    """Warpgroup of O: operand A of one k step."""
    weights = cute.make_rmem_tensor(((2, 2, 2), 1, 1), BFloat16)
    load_shared(place + step * STEP_BYTES, cute.make_tensor(cute.recast_ptr(weights.iterator, dtype=Uint32), 4))
    return weights


@cute.jit
def add_values(
    mma: cute.TiledMma,
    accs_o: cutlass.Constexpr,
    values: cutlass.Constexpr,
    weights: cutlass.Constexpr,
    place: Int32,
    slot: Int32,
    empty: cute.Pointer,
):
    """Warpgroup of O: ``accs_o`` += P · ``values`` (operand B of each, all slots); releases either half of the slot.

    ``weights`` are those of all k steps but the last. The last one's are loaded when the first half's are multiplied,
    into registers of those: with 16 for P a thread would need more than there are.
    """
    assert len(weights) == STEPS - 1 == 3, len(weights)
    atom = cute.make_mma_atom(mma.op)
    atom.set(warpgroup.Field.ACCUMULATE, True)
    warpgroup.fence()
    for step in cutlass.range_constexpr(STEPS):
        own = weights[step % len(weights)]
        if cutlass.const_expr(step == STEPS - 1):  # not the first one's, but what is loaded now
            warpgroup.wait_group(1)
            own = hear(place, step)
            sm90_ring.release(empty, 2 * slot)
            warpgroup.fence()
        for acc, operand in zip(accs_o, values, strict=True):
            cute.gemm(atom, acc, own[None, None, 0], operand[None, None, step, slot], acc)
        warpgroup.commit_group()
    warpgroup.wait_group(0)
    sm90_ring.release(empty, 2 * slot + 1)
