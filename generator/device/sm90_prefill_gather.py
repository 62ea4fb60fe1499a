"""Warps that gather the keys of a prefilling attention on Hopper: rows of bf16, straight into the ring of tiles.

A CTA works through queries and blocks of 64 heads, one after another, and these warps run ahead over them as far as the
ring has room: nobody waits for a copy but the warpgroup that needs it. For each query Q comes first, as a tile like
those of the keys. A row is 64 pieces of 16 bytes, of which each lane copies two by ``cp.async`` to where the tensor
cores read them; a row that is no key becomes zeros without being read. The number of a key's row is loaded a tile
before it is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32

from dsv4.generator.device import sm90_ring
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, PIECE_BYTES, ROW_BYTES, TILE_BYTES
from dsv4.generator.device.kv_plain import copy_piece
from dsv4.generator.device.kv_rows import TILE_KEYS

HEAD_DIM = 512
ROWS = 64
"""Heads of a block, the rows of a wgmma."""
WARPS = 4
WARP_KEYS = TILE_KEYS // WARPS
KEYS_ARRIVALS = 32 * WARPS + WARPS
"""On ``keys_full``: of every gathering thread when its copies have landed, of each warp for the word of its keys."""


class Work(NamedTuple):
    """What a CTA works through: items ``first``, ``first + step`` … below ``items``, an item being a query and a block.

    ``rows`` i32 [T, K], ``length`` i32 [T] or None, ``kv`` bf16 [S, 512], ``q`` bf16 [T, ``heads``, 512]; item i is
    query i // ``head_blocks``, heads 64·(i mod ``head_blocks``) ….
    """

    first: Int32
    items: Int32
    step: Int32
    heads: int
    head_blocks: int
    q: cute.Tensor
    kv: cute.Tensor
    rows: cute.Tensor
    length: cute.Tensor | None


@cute.jit
def keys_of(work: cutlass.Constexpr, item: Int32) -> Int32:
    """How many columns of its rows count for the query of ``item``, 0 for one that does not exist."""
    keys = Int32(work.rows.shape[1])
    if cutlass.const_expr(work.length is not None):
        counted = Int32(0)
        if item < work.items:
            counted = work.length[item // work.head_blocks]
        keys = cutlass.max(cutlass.min(counted, keys), 0)
    return keys


@cute.jit
def tiles_of(keys: Int32) -> Int32:
    """Tiles that ``keys`` keys (not negative) take."""
    return (keys + (TILE_KEYS - 1)) // TILE_KEYS


@cute.jit
def load_number(work: cutlass.Constexpr, item: Int32, key: Int32) -> Int32:
    """What stands in column ``key`` of the rows of ``item``, −1 where there is no such column or item."""
    number = Int32(-1)
    if key < work.rows.shape[1] and item < work.items:
        number = work.rows[item // work.head_blocks, key]
    return number


@cute.jit
def gather(
    work: cutlass.Constexpr,
    keys_address: Int32,
    is_key: cute.Tensor,
    keys_full: cute.Pointer,
    empty: cute.Pointer,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` (0 … 3): its 16 rows of Q and of every tile of keys into the ring, for every item.

    ``keys_address`` is that of (64, 512, slot) bf16, swizzled; ``is_key`` (4, slot) Uint32, bit i of warp w: key
    16·w + i of the tile counts. A tile without a key to come costs as much as another.
    """
    slot, phase = Int32(0), Int32(0)
    own_empty = empty + warp // 2  # of the half of a slot that this warp fills
    own_key = warp * WARP_KEYS + (lane & (WARP_KEYS - 1))
    kv_start = work.kv.iterator.toint() + Int64(lane * PIECE_BYTES)
    kv_stride, q_stride = Int64(work.kv.stride[0]) * 2, Int64(work.q.stride[1]) * 2
    rows_of_kv = Int32(work.kv.shape[0])
    number = load_number(work, work.first, own_key)
    next_keys = keys_of(work, work.first)
    for item in cutlass.range(work.first, work.items, work.step, unroll=1):
        keys = next_keys
        next_keys = keys_of(work, item + work.step)
        tiles = tiles_of(keys)
        token, first_head = item // work.head_blocks, item % work.head_blocks * ROWS
        cute.arch.mbarrier_wait(own_empty + 2 * slot, phase ^ 1)
        q_start = (work.q.iterator + work.q.layout((token, first_head, 0))).toint() + Int64(lane * PIECE_BYTES)
        row = own_key if own_key < work.heads - first_head else Int32(-1)
        copy_rows(q_start, q_stride, row, keys_address + slot * TILE_BYTES, warp, lane)
        cute.arch.cp_async_mbarrier_arrive_noinc(keys_full + slot)
        sm90_ring.release(keys_full, slot)
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        for tile in cutlass.range(tiles, unroll=1):
            key = tile * TILE_KEYS + own_key
            row = Int32(-1)
            if key < keys and number >= 0 and number < rows_of_kv:
                row = number
            # Nothing waits for this load before the next turn.
            if tile + 1 < tiles:
                number = load_number(work, item, key + TILE_KEYS)
            else:
                number = load_number(work, item + work.step, own_key)
            bits = Uint32(cute.arch.vote_ballot_sync(row >= 0)) & Uint32((1 << WARP_KEYS) - 1)
            cute.arch.mbarrier_wait(own_empty + 2 * slot, phase ^ 1)
            copy_rows(kv_start, kv_stride, row, keys_address + slot * TILE_BYTES, warp, lane)
            cute.arch.cp_async_mbarrier_arrive_noinc(keys_full + slot)
            if lane == 0:
                is_key[warp, slot] = bits
            cute.arch.sync_warp()
            sm90_ring.release(keys_full, slot)
            slot, phase = sm90_ring.next_position(slot, phase, slots)
        if tiles == 0:
            number = load_number(work, item + work.step, own_key)
    cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do


@cute.jit
def copy_rows(start: Int64, row_stride: Int64, row: Int32, tile: Int32, warp: Int32, lane: Int32):
    """Start the copies of a warp's 16 rows of the tile at address ``tile``; lane i has the number of row i, or −1.

    ``start`` is the address of the lane's first piece in row 0, ``row_stride`` is in bytes. All lanes call.
    """
    block, piece = lane >> 3, lane & 7
    for turn in cutlass.range_constexpr(WARP_KEYS):
        own = turn // 2 + turn % 2 * 8  # rows that are swizzled alike one after another: fewer addresses at a time
        number = cute.arch.shuffle_sync(row, own)
        read_bytes = Int32(PIECE_BYTES) if number >= 0 else Int32(0)
        source = start + Int64(cutlass.max(number, 0)) * row_stride
        place = tile + (warp * WARP_KEYS + own) * ROW_BYTES + (piece ^ (own & 7)) * PIECE_BYTES
        for half in cutlass.range_constexpr(2):
            target = place + (block + 4 * half) * BLOCK_BYTES
            copy_piece(target, source + Int64(half * 32 * PIECE_BYTES), read_bytes)
