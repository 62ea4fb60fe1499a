"""The router's gate as a GEMM on Hopper: logits of 128 tokens and all experts in the registers of two warpgroups.

A load warp brings slabs of 64 columns of the tokens and of the whole gate by TMA into a ring; each warpgroup multiplies
64 of the tokens with all experts by wgmma. With ``pair`` two CTAs of a cluster, which have other tokens and the same
columns, load half of the gate's rows each, for both: a slot is empty when the warps of both are done with it. So a CTA
may be written to and arrived at by its partner: it must have begun before the first slab, and must not end before the
partner is done. A cluster barrier each.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.nvgpu import cpasync, warpgroup

from dsv4.generator.device import sm90_ring, sm90_wgmma
from dsv4.generator.device.sm90_sparse_pair import release_both

SLAB = 64
"""Columns of a slot of the ring: the 128 bytes that one swizzle pattern spans."""
GROUPS = 2
"""Warpgroups, 64 tokens each."""
TILE_TOKENS = GROUPS * sm90_wgmma.WARPGROUP_ROWS
GATE_HALVES = 2
"""Copies that bring a slab of the gate: a box has 256 rows at most, and with ``pair`` each CTA brings one."""
PRODUCT_COLUMNS_MAX = 256


class Tiling(NamedTuple):
    """What is fixed at compile time. ``slots``: of the ring. ``pair``: 2 CTAs share the gate, or 1 loads all of it."""

    experts: int
    slots: int
    pair: int

    @property
    def parts(self) -> int:
        """Products side by side that make all experts' logits."""
        return -(-self.experts // PRODUCT_COLUMNS_MAX)

    @property
    def part_experts(self) -> int:
        return self.experts // self.parts

    @property
    def slot_bytes(self) -> int:
        return 2 * SLAB * (TILE_TOKENS + self.experts)


class Ring(NamedTuple):
    """Pointers to the first mbarrier of each kind, a slot each."""

    full: cute.Pointer
    empty: cute.Pointer


@cute.jit
def init_barriers(ring, tiling: cutlass.Constexpr):
    """Initialises every mbarrier; to be called by one thread."""
    sm90_ring.init_ring(ring.full, ring.empty, tiling.slots, 4 * GROUPS * tiling.pair)


def token_atom(y: cute.Tensor):
    """Host: ``(TMA atom, coordinate tensor)`` that loads slabs of 128 tokens of ``y`` [T, d]."""
    return _load_atom(cpasync.CopyBulkTensorTileG2SOp(), y, TILE_TOKENS)


def gate_atom(gate: cute.Tensor, tiling: Tiling):
    """Host: the same for halves of the experts' rows of ``gate`` [E, d], for one CTA or for two at a time."""
    op = cpasync.CopyBulkTensorTileG2SOp() if tiling.pair == 1 else cpasync.CopyBulkTensorTileG2SMulticastOp()
    return _load_atom(op, gate, tiling.experts // GATE_HALVES)


def _load_atom(op, tensor: cute.Tensor, rows: int):
    smem_tile = cute.slice_(sm90_wgmma.k_major_smem_layout(rows, SLAB, 1), (None, None, 0))
    info = cpasync.make_tiled_tma_atom(op, tensor, smem_tile, (rows, SLAB))
    return info[0], info[1]


def slots_of(memory: cute.Pointer, rows: int, slots: int) -> cute.Tensor:
    """``(rows, 64, slots)``, swizzled, of aligned bf16 shared memory: the same bytes for any split of the rows."""
    layout = sm90_wgmma.k_major_smem_layout(rows, SLAB, slots)
    pointer = cute.recast_ptr(memory, layout.inner, dtype=BFloat16)
    return cute.make_tensor(pointer, layout.outer)


@cute.jit
def operands(mma: cute.TiledMma, thread: Int32, token_slabs, gate_slabs, tiling: cutlass.Constexpr):
    """What :func:`multiply` takes, for ``thread`` of a warpgroup; the slabs are ranges of shared memory."""
    tokens = slots_of(token_slabs.data_ptr(), sm90_wgmma.WARPGROUP_ROWS, GROUPS * tiling.slots)
    gate = slots_of(gate_slabs.data_ptr(), tiling.part_experts, tiling.parts * tiling.slots)
    own = mma.get_slice(thread)
    return mma, own.make_fragment_A(own.partition_A(tokens)), own.make_fragment_B(own.partition_B(gate))


@cute.jit
def load_slabs(
    token_tile: Int32,
    first: Int32,
    end: Int32,
    slot: Int32,
    phase: Int32,
    member: Int32,
    tokens,
    gate,
    ring,
    tiling: cutlass.Constexpr,
):
    """Load warp: slabs ``first`` … ``end`` − 1 of 128 tokens and of the gate. Returns the ring's next position.

    ``tokens`` and ``gate`` are ``(TMA atom, source (TMA, row tile, slab), target (TMA, slot))``. ``member``: this CTA's
    place in its cluster.
    """
    token_atom, token_source, token_target = tokens
    gate_atom, gate_source, gate_target = gate
    for slab in cutlass.range(first, end, unroll=1):
        sm90_ring.acquire(ring.full, ring.empty, slot, phase, tiling.slot_bytes)
        full = ring.full + slot
        cute.copy(token_atom, token_source[None, token_tile, slab], token_target[None, slot], tma_bar_ptr=full)
        if cutlass.const_expr(tiling.pair == 2):
            cute.copy(
                gate_atom,
                gate_source[None, member, slab],
                gate_target[None, GATE_HALVES * slot + member],
                tma_bar_ptr=full,
                mcast_mask=cutlass.Int16(3),
            )
        else:
            for half in cutlass.range_constexpr(GATE_HALVES):
                cute.copy(
                    gate_atom,
                    gate_source[None, half, slab],
                    gate_target[None, GATE_HALVES * slot + half],
                    tma_bar_ptr=full,
                )
        slot, phase = sm90_ring.next_position(slot, phase, tiling.slots)
    return slot, phase


@cute.jit
def multiply(
    count: Int32,
    slot: Int32,
    phase: Int32,
    group: Int32,
    partner_rank: Int32,
    operands,
    sums,
    ring,
    tiling: cutlass.Constexpr,
):
    """One warpgroup: ``sums`` (an accumulator a part of the experts) = its 64 tokens' logits over ``count`` ≥ 1 slabs.

    ``operands``: ``(tiled MMA, tokens (MMA, M, K, 2·slot + group), gate (MMA, N, K, parts·slot + part))`` fragments.
    The products of one slab are in flight while the next one's are issued. Returns the ring's next position.
    """
    mma, tokens, gate = operands
    for part in cutlass.range_constexpr(tiling.parts):
        sums[part].fill(0.0)
    before = slot
    for i in cutlass.range(count, unroll=1):
        sm90_ring.wait_full(ring.full, slot, phase)
        warpgroup.fence()
        for part in cutlass.range_constexpr(tiling.parts):
            sm90_wgmma.add_products(
                mma,
                sums[part],
                tokens[None, None, None, GROUPS * slot + group],
                gate[None, None, None, tiling.parts * slot + part],
                0,
                True,
            )
        warpgroup.commit_group()
        warpgroup.wait_group(1)
        if i > 0:
            _release(ring.empty, before, partner_rank, tiling)
        before = slot
        slot, phase = sm90_ring.next_position(slot, phase, tiling.slots)
    warpgroup.wait_group(0)
    _release(ring.empty, before, partner_rank, tiling)
    return slot, phase


@cute.jit
def store_sums(sums, logits: cute.Tensor, first_token: Int32, quarter: Int32):
    """This thread's accumulators into its rows ``first_token`` and ``first_token`` + 8 of ``logits`` (float32 [T, E]).

    ``quarter``: the thread's place among the four that have these rows.
    """
    tokens, experts = logits.shape
    pairs = cute.make_tensor(
        logits.iterator, cute.make_layout((2, 4, experts // 8, tokens), stride=(1, 2, 8, logits.stride[0]))
    )
    store = cute.make_copy_atom(cute.nvgpu.CopyR2GOp(), Float32, num_bits_per_copy=64)
    for half in cutlass.range_constexpr(2):
        token = first_token + 8 * half
        if token < tokens:
            for part in cutlass.range_constexpr(len(sums)):
                blocks = cute.size(sums[part]) // 4
                for block in cutlass.range_constexpr(blocks):
                    found = cute.make_rmem_tensor((2,), Float32)
                    found[0], found[1] = sums[part][(0, half, block), 0, 0], sums[part][(1, half, block), 0, 0]
                    cute.copy(store, found, pairs[None, quarter, part * blocks + block, token])


@cute.jit
def _release(empty, slot: Int32, partner_rank: Int32, tiling: cutlass.Constexpr):
    if cutlass.const_expr(tiling.pair == 2):
        release_both(empty, slot, partner_rank)
    else:
        sm90_ring.release(empty, slot)
