"""What the roles of a decoding attention on sm_100 share: shared memory, tensor memory and barriers.

Gathering warps fill a ring of tiles of 64 keys (``kv_rows``). For each tile one warp issues S = Q·Kᵀ, a warpgroup makes
P of it, another one scales O where a row's maximum grew, and a second warp issues O += P·V, V being the tile that K
was. A slot of the ring holds a tile's keys, P, factors and, in tensor memory, S: it is empty when P·V is done, and
nothing in it needs a barrier of its own against being overwritten, because the gathering warps wait for that before
they fill it.

Rows are 64 heads, so that every matrix takes half of the lanes (``sm100_half_mma``): the columns 0 … 255 and 256 … 511
of O lie in the same columns of tensor memory, S of the two slots too, and the part of Q that is there stands in both
halves, beside either S. With 128 heads two CTAs may be a pair, whose products one of them issues (``sm100_pair_mma``):
the columns of O and the part of Q lie likewise, but in other lanes, and either S takes half of the columns.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from dsv4.generator.device import kv_rows
from dsv4.generator.device.sm100_barriers import init_barriers

HEAD_DIM = 512
ROWS = 64
TILE_KEYS = kv_rows.TILE_KEYS
HALF_COLUMNS = HEAD_DIM // 2
"""Of O, in one half of the lanes."""
P_BYTES = ROWS * TILE_KEYS * 2
WARPGROUP = 128

# Named barriers (0 is the CTA's own).
CORRECTION_BARRIER = 1
STATISTICS_BARRIER = 2


class Barriers(NamedTuple):
    """Pointers to the first mbarrier of each kind; those from ``keys_full`` to ``empty`` have one for each slot.

    In a pair those that a product waits for (``weights_full``, ``q_full``, ``output_ready``, ``pair_full``) are the
    leader's, and count an arrival of each warp of both CTAs; the end of a product (``scores_full``, ``empty``) arrives
    in both.

    * ``raw_full``: the bytes of raw rows, two for each gathering warp; None with rows of bf16.
    * ``keys_full``: the four gathering warps have filled the slot.
    * ``scores_full``: S is complete (a commit).
    * ``factors_full``: a word of each warp of the softmax, of the rows' factors.
    * ``weights_full``: the threads of the softmax have read S and written P.
    * ``empty``: P·V is complete (a commit); for the gathering warps, and for the correction before it touches O.
    * ``q_full``: the threads of softmax and correction have put Q where the products read it; once.
    * ``output_ready``: the threads of the correction have made O ready for the next P·V; phase j for tile j.
    * ``pair_full``, of a pair: the gathering warps of both CTAs have filled the slot.
    """

    raw_full: cute.Pointer | None
    keys_full: cute.Pointer
    scores_full: cute.Pointer
    factors_full: cute.Pointer
    weights_full: cute.Pointer
    empty: cute.Pointer
    q_full: cute.Pointer
    output_ready: cute.Pointer
    pair_full: cute.Pointer | None = None


class Ring(NamedTuple):
    """Shared memory of the ring: ``keys`` [slot][64 x 512] and ``p`` [slot][64 x 64] bf16 in swizzled blocks of 64
    columns; ``factors`` (64, slot) float32; ``is_key`` (4, slot) Uint32, bit i of warp w: key 16·w + i counts."""

    keys: cute.Tensor
    p: cute.Tensor
    factors: cute.Tensor
    is_key: cute.Tensor


class Tmem(NamedTuple):
    """Addresses in tensor memory (Int32) of O, of Q's first columns and of S of the first slot; a pointer to that."""

    o: Int32
    q: Int32
    s: Int32
    scores: cute.Pointer


@cute.jit
def init_all_barriers(barriers: cutlass.Constexpr, slots: cutlass.Constexpr[int]):
    """Initialises every mbarrier; to be called by one thread."""
    warpgroup = WARPGROUP
    if cutlass.const_expr(barriers.pair_full is not None):
        init_barriers(barriers.pair_full, slots, 2 * kv_rows.WARPS)
        warpgroup = 2 * WARPGROUP // 32
    if cutlass.const_expr(barriers.raw_full is not None):
        init_barriers(barriers.raw_full, kv_rows.WARPS * kv_rows.SLOTS, 1)
    init_barriers(barriers.keys_full, slots, kv_rows.WARPS)
    init_barriers(barriers.scores_full, slots, 1)
    init_barriers(barriers.factors_full, slots, 4)
    init_barriers(barriers.weights_full, slots, warpgroup)
    init_barriers(barriers.empty, slots, 1)
    init_barriers(barriers.q_full, 1, 2 * warpgroup)
    init_barriers(barriers.output_ready, 1, warpgroup)
