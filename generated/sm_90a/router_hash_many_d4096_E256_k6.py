# Emitted from generator/templates/moe/router_hash_many_sm90.py.j2 for op router_hash_many on sm_90a. Do not edit.
# dims: d=4096, E=256, k=6
# config: stages=4, pair=2, slabs_min=4, ctas=132, opt_level=3
# spec sha256: 31aff1332be68b56803c964511f0182c56a77e48db48df6b76625823d1912b7f
"""The router of a hash layer for many tokens on Hopper: the gate as a GEMM, and the 6 experts that a table names.

A load warp brings slabs of 64 columns of 128 tokens and of the gate by TMA, 4 in flight, and two warpgroups multiply
by wgmma. The named experts' logits are picked from the accumulators. The slabs of all tiles are shared out evenly: where
a share ends within a tile, its part of the named logits goes through global memory to who is the last to have one.
Two CTAs, a cluster, have the same columns of two tiles and load half of the gate each, for both.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Int64
from cutlass.cute.nvgpu import cpasync
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor
from cutlass.memory import SmemAllocator

from dsv4.generator.device import column_shares, named_choice, sm90_gate, sm90_tma, sm90_wgmma

VARIANTS = ({"pdl": False}, {"pdl": True})

COLUMNS = 4096
EXPERTS = 256
K = 6  # experts a token
SLABS = COLUMNS // sm90_gate.SLAB
SLABS_MIN = 4  # of a share
SLOTS = 4  # slabs in shared memory
CTAS = 132
PAIR = 2  # CTAs that load the gate for one another
TILE_TOKENS = sm90_gate.TILE_TOKENS
TILING = sm90_gate.Tiling(experts=EXPERTS, slots=SLOTS, pair=PAIR)
LANES = named_choice.lanes_per_token(K)  # that put a token together
MASK_WORDS = named_choice.mask_words(EXPERTS)
COUNTERS, PARTS = 132, 2 * 132  # that the caller gives; of a CTA
THREADS = 384
FIRST_PRODUCT_WARP = 4
PRODUCT_THREADS = sm90_gate.GROUPS * sm90_wgmma.WARPGROUP_THREADS
LOAD_REGISTERS = 24
PRODUCT_REGISTERS = 240
assert CTAS <= COUNTERS


@cute.struct
class SharedStorage:
    token_slabs: cute.struct.Align[cute.struct.MemRange[BFloat16, 32768], 1024]
    gate_slabs: cute.struct.Align[cute.struct.MemRange[BFloat16, 65536], 1024]
    logits: cute.struct.Align[cute.struct.MemRange[Float32, 1024], 16]
    ids: cute.struct.Align[cute.struct.MemRange[Int32, 1024], 16]
    pairs: cute.struct.Align[cute.struct.MemRange[Float32, 3072], 16]
    masks: cute.struct.Align[cute.struct.MemRange[Int32, 256], 16]
    arrived: cute.struct.Align[cute.struct.MemRange[Int32, 1], 16]
    full: cute.struct.Align[cute.struct.MemRange[Int64, 4], 8]
    empty: cute.struct.Align[cute.struct.MemRange[Int64, 4], 8]


@cute.kernel
def router_kernel(
    token_atom: cute.CopyAtom,
    y: cute.Tensor,
    gate_atom: cute.CopyAtom,
    gate: cute.Tensor,
    tid2eid: cute.Tensor,
    tokens: cute.Tensor,
    counters: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    parts: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
):
    """y, gate: TMA coordinate tensors. A cluster of PAIR CTAs has a share; a work is a tile of each of them."""
    thread, _, _ = cute.arch.thread_idx()
    cta, _, _ = cute.arch.block_idx()
    ctas, _, _ = cute.arch.grid_dim()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    lane = thread % 32
    share, member, shares = cta // PAIR, cta % PAIR, ctas // PAIR
    total_tokens = tokens.shape[0]
    all_slabs = cute.ceil_div(total_tokens, TILE_TOKENS * PAIR) * SLABS
    first, end = (
        column_shares.first_slab(share, shares, all_slabs),
        column_shares.first_slab(share + 1, shares, all_slabs),
    )

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

    slot, phase, slab = Int32(0), Int32(0), first
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
            while slab < end:
                work, column = slab // SLABS, slab % SLABS
                stop = cutlass.min(SLABS, end - work * SLABS)
                slot, phase = sm90_gate.load_slabs(
                    work * PAIR + member,
                    column,
                    stop,
                    slot,
                    phase,
                    member,
                    token_copy,
                    gate_copy,
                    ring,
                    TILING,
                )
                slab += stop - column
            if cutlass.const_expr(pdl):
                cute.arch.griddepcontrol_launch_dependents()
    else:
        # Product role: each warpgroup has 64 tokens of the tile and all experts.
        cute.arch.setmaxregister_increase(PRODUCT_REGISTERS)
        thread -= THREADS - PRODUCT_THREADS
        warp -= FIRST_PRODUCT_WARP
        group, group_thread = warp // 4, thread % sm90_wgmma.WARPGROUP_THREADS
        mma = sm90_wgmma.tiled_mma_ss(TILING.part_experts)
        operands = sm90_gate.operands(
            mma, group_thread, storage.token_slabs, storage.gate_slabs, TILING
        )
        sums = [sm90_wgmma.accumulator(TILING.part_experts) for _ in range(TILING.parts)]
        by_rows = cute.make_ordered_layout((TILE_TOKENS, LANES), order=(1, 0))
        logits, ids = storage.logits.get_tensor(by_rows), storage.ids.get_tensor(by_rows)
        pushed = named_choice.Pushed(
            storage.pairs.get_tensor(
                cute.make_ordered_layout((2, K, 4, TILE_TOKENS // 2), order=(0, 1, 2, 3))
            ),
            storage.masks.get_tensor(
                cute.make_ordered_layout((MASK_WORDS, 4, TILE_TOKENS // 2), order=(0, 1, 2))
            ),
        )
        arrived = storage.arrived.get_tensor(cute.make_layout((1,)))
        all_parts = cute.make_tensor(
            parts.iterator,
            cute.make_ordered_layout(
                (2, CTAS // PAIR, PAIR, TILE_TOKENS, LANES), order=(4, 3, 2, 1, 0)
            ),
        )[None, None, member, None, None]
        named = cute.make_rmem_tensor((2, K), Int32)
        first_row = warp * 16  # of the warp's 16
        row = first_row + lane // 4  # of the tile, and the one eight below
        token_ids = cute.make_rmem_tensor((2,), Int32)
        for half in cutlass.range_constexpr(2):
            token = (first // SLABS * PAIR + member) * TILE_TOKENS + row + 8 * half
            token_ids[half] = tokens[cutlass.min(token, total_tokens - 1)]
        while slab < end:
            work, column = slab // SLABS, slab % SLABS
            stop = cutlass.min(SLABS, end - work * SLABS)
            first_token = (work * PAIR + member) * TILE_TOKENS
            for half in cutlass.range_constexpr(2):
                for n in cutlass.range_constexpr(K):
                    named[half, n] = tid2eid[token_ids[half], n]
                # Of the next tile: by then nobody waits for them.
                following = first_token + PAIR * TILE_TOKENS + row + 8 * half
                token_ids[half] = tokens[cutlass.min(following, total_tokens - 1)]
            slot, phase = sm90_gate.multiply(
                stop - column, slot, phase, group, (cta ^ 1) % PAIR, operands, sums, ring, TILING
            )
            named_choice.tell_logits(sums, named, row, lane, pushed, logits, ids, K)
            cute.arch.sync_warp()
            complete = stop - column == SLABS
            if stop - column < SLABS:
                # Others have parts of this tile. The one that begins in it counts them.
                later = Int32(1) if slab > first else Int32(0)
                named_choice.store_part(
                    logits, all_parts[later, share, None, None], first_row, lane, K
                )
                begins = column_shares.share_of(work * SLABS, shares, all_slabs)
                others = (
                    column_shares.share_of(work * SLABS + SLABS - 1, shares, all_slabs) - begins
                )
                counter = cute.make_tensor(
                    counters.iterator + begins * PAIR + member, cute.make_layout((1,))
                )
                complete = column_shares.is_last(
                    counter, others, arrived, thread, 1, PRODUCT_THREADS
                )
                if complete:
                    its_first = column_shares.first_slab(begins, shares, all_slabs)
                    later = Int32(1) if its_first < work * SLABS else Int32(0)
                    named_choice.add_parts(
                        all_parts, begins, others + 1, later, logits, first_row, lane, K
                    )
                    cute.arch.sync_warp()
            if complete:
                named_choice.write_weights(
                    logits, ids, first_row, first_token, experts, weights, factor, lane, K
                )
            cute.arch.sync_warp()
            slab += stop - column
    # Whoever is written to or arrived at has not ended.
    cute.arch.cluster_arrive()
    cute.arch.cluster_wait()


@cute.jit
def launch(
    y: cute.Tensor,
    gate: cute.Tensor,
    tid2eid: cute.Tensor,
    tokens: cute.Tensor,
    counters: cute.Tensor,
    experts: cute.Tensor,
    weights: cute.Tensor,
    parts: cute.Tensor,
    factor: Float32,
    pdl: cutlass.Constexpr[bool],
    stream,
):
    token_atom, y_tiles = sm90_gate.token_atom(y)
    gate_atom, gate_tiles = sm90_gate.gate_atom(gate, TILING)
    works = cute.ceil_div(y.shape[0], TILE_TOKENS * PAIR)
    if works > 0:
        shares = column_shares.share_count(works, Int32(CTAS // PAIR), SLABS, SLABS_MIN)
        router_kernel(
            token_atom,
            y_tiles,
            gate_atom,
            gate_tiles,
            tid2eid,
            tokens,
            counters,
            experts,
            weights,
            parts,
            factor,
            pdl,
        ).launch(
            grid=[shares * PAIR, 1, 1],
            block=[THREADS, 1, 1],
            cluster=[PAIR, 1, 1],
            stream=stream,
            use_pdl=pdl,
            min_blocks_per_mp=1,
        )


def arguments(variant):
    rows, entries = cute.sym_int(), cute.sym_int()
    y = make_fake_tensor(
        BFloat16, (rows, COLUMNS), (cute.sym_int64(divisibility=8), 1), assumed_align=16
    )
    gate = make_fake_tensor(BFloat16, (EXPERTS, COLUMNS), (COLUMNS, 1), assumed_align=16)
    tid2eid = make_fake_tensor(
        Int32, (entries, K), (cute.sym_int64(), cute.sym_int64()), assumed_align=4
    )
    tokens = make_fake_tensor(Int32, (rows,), (cute.sym_int64(),), assumed_align=4)
    counters = make_fake_tensor(Int32, (COUNTERS,), (1,), assumed_align=4)
    experts = make_fake_tensor(Int32, (rows, K), (K, 1), assumed_align=4)
    weights = make_fake_tensor(Float32, (rows, K), (K, 1), assumed_align=4)
    parts = make_fake_tensor(Float32, (PARTS, 128, 8), (128 * 8, 8, 1), assumed_align=16)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return (
        y,
        gate,
        tid2eid,
        tokens,
        counters,
        experts,
        weights,
        parts,
        Float32(0.0),
        variant["pdl"],
        stream,
    )
