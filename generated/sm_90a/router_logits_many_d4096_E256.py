# Emitted from generator/templates/moe/router_logits_many_sm90.py.j2 for op router_logits_many on sm_90a. Do not edit.
# dims: d=4096, E=256
# config: stages=4, pair=2, ctas=132, opt_level=3
# spec sha256: a786858eabc7c8d4fdd6e20eda5bccf96883a7eedb0c47310ef9270f8feacf60
"""The router's logits for many tokens on Hopper: the gate of all experts as a GEMM, in parts that are to be added.

A load warp brings slabs of 64 columns of 128 tokens and of the gate by TMA, 4 in flight, and two warpgroups multiply
by wgmma and store their accumulators. CTAs take tiles in turn; the grid may share the columns between them: then each
writes its part of the logits, and who reads them adds up.
Two CTAs, a cluster, have the same columns of two tiles and load half of the gate each, for both.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import sm90_gate, sm90_tma, sm90_wgmma

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
EXPERTS = 256
SLABS = COLUMNS // sm90_gate.SLAB
SLOTS = 4  # slabs in shared memory
CTAS = 132
PAIR = 2  # CTAs that load the gate for one another
TILE_TOKENS = sm90_gate.TILE_TOKENS
TILING = sm90_gate.Tiling(experts=EXPERTS, slots=SLOTS, pair=PAIR)
THREADS = 384
FIRST_PRODUCT_WARP = 4
LOAD_REGISTERS = 24
PRODUCT_REGISTERS = 240


@cute.struct
class SharedStorage:
    token_slabs: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 1024]
    gate_slabs: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    full: cute.struct.Align[cute.struct.MemRange[Int64, 4], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 4], 8]


@cute.kernel
def router_logits_kernel(
    token_atom: cute.CopyAtom,
    y: cute.Tensor,
    gate_atom: cute.CopyAtom,
    gate: cute.Tensor,
    logits: cute.Tensor,
    pdl: cutlass.Constexpr[bool],
):
    """y, gate: TMA coordinate tensors. A work is a part of the columns of a tile of each CTA of a cluster."""
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    work, member, clusters = cta // PAIR, cta % PAIR, ctas // PAIR
    total_tokens, splits = logits.shape[1], logits.shape[0]
    works = cute.ceil_div(total_tokens, TILE_TOKENS * PAIR) * splits

    storage = SmemAllocator().allocate(SharedStorage)
    ring = sm90_gate.Ring(storage.full.data_ptr(), storage.empty.data_ptr())
    if warp == 0:
        for atom in (token_atom, gate_atom):
            cpasync.prefetch_descriptor(atom)
        with cute.arch.elect_one():
            sm90_gate.init_barriers(ring, TILING)
        cute.arch.mbarrier_init_fence()
    # The partner must have begun, with barriers, before it is written to or arrived at.
    cute.arch.cluster_arrive_relaxed()
    cute.arch.cluster_wait()
    cute.arch.sync_threads()
    # With pdl nothing of the launches before this one is read or overwritten before they have ended.
    if cutlass.const_expr(pdl):
        cute.arch.griddepcontrol_wait()

    slot, phase = Int32(0), Int32(0)
    if warp < FIRST_PRODUCT_WARP:
        # Load role: warp 0; the other three warps of its warpgroup only give up their registers.
        cute.arch.setmaxregister_decrease(LOAD_REGISTERS)
        if warp == 0:
            token_slots = sm90_gate.slots_of(storage.token_slabs.data_ptr(), TILE_TOKENS, SLOTS)
            gate_slots = sm90_gate.slots_of(storage.gate_slabs.data_ptr(), EXPERTS // 2, 2 * SLOTS)
            token_tiles = cute.local_tile(y, (TILE_TOKENS, sm90_gate.SLAB), (None, None))
            gate_tiles = cute.local_tile(gate, (EXPERTS // 2, sm90_gate.SLAB), (None, None))
            token_copy = sm90_tma.tile_copy(token_atom, token_slots, token_tiles)
            gate_copy = sm90_tma.tile_copy(gate_atom, gate_slots, gate_tiles)
            while work < works:
                tile, split = work // splits * PAIR + member, work % splits
                first, end = split * SLABS // splits, (split + 1) * SLABS // splits
                slot, phase = sm90_gate.load_slabs(
                    tile, first, end, slot, phase, member, token_copy, gate_copy, ring, TILING
                )
                work += clusters
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_launch_dependents()
    else:
        # Product role: each warpgroup has 64 tokens of the tile and all experts.
        cute.arch.setmaxregister_increase(PRODUCT_REGISTERS)
        warp -= FIRST_PRODUCT_WARP
        group, group_thread = warp // 4, thread % sm90_wgmma.WARPGROUP_THREADS
        mma = sm90_wgmma.tiled_mma_ss(TILING.part_experts)
        operands = sm90_gate.operands(
            mma, group_thread, storage.token_slabs, storage.gate_slabs, TILING
        )
        sums = [sm90_wgmma.accumulator(TILING.part_experts) for _ in range(TILING.parts)]
        row = warp * 16 + thread % 32 // 4  # of the tile, and the one eight below
        while work < works:
            tile, split = work // splits * PAIR + member, work % splits
            first, end = split * SLABS // splits, (split + 1) * SLABS // splits
            slot, phase = sm90_gate.multiply(
                end - first, slot, phase, group, (cta ^ 1) % PAIR, operands, sums, ring, TILING
            )
            sm90_gate.store_sums(
                sums, logits[split, None, None], tile * TILE_TOKENS + row, thread % 4
            )
            work += clusters
    # Whoever is written to or arrived at has not ended.
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def launch(
    y: cute.Tensor, gate: cute.Tensor, logits: cute.Tensor, pdl: cutlass.Constexpr[bool], stream
):
    token_atom, y_tiles = sm90_gate.token_atom(y)
    gate_atom, gate_tiles = sm90_gate.gate_atom(gate, TILING)
    works = cute.ceil_div(y.shape[0], TILE_TOKENS * PAIR) * logits.shape[0]
    if works > 0:
        router_logits_kernel(token_atom, y_tiles, gate_atom, gate_tiles, logits, pdl).launch(
            grid=[cutlass.min(works, CTAS // PAIR) * PAIR, 1, 1],
            block=[THREADS, 1, 1],
            cluster=[PAIR, 1, 1],
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )


def arguments(variant):
    rows = cute.sym_int()
    y = make_fake_tensor(
        BFloat16, (rows, COLUMNS), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    gate = make_fake_tensor(BFloat16, (EXPERTS, COLUMNS), (COLUMNS, 1), assumed_align=16)
    part_stride = cute.sym_int64(divisibility=8)
    logits = make_fake_tensor(
        Float32, (cute.sym_int(), rows, EXPERTS), (part_stride, EXPERTS, 1), assumed_align=16
    )
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return y, gate, logits, variant["pdl"], stream
