"""Rows of two packed pools gathered by one warp: which row a key is, where it lies, and its bytes on their way.

The keys of a query are those of its window row, then those of its row of compressed entries, in tiles of 64: a tile
holds keys of one segment only. A warp feeds 16 keys of each tile, lane i key i, in two slots of eight rows, and a slot
is asked for again as soon as it was read: so a warp waits for nobody but the copy engine. Codes and rotary numbers (576
bytes) go by a bulk copy to a raw slot in shared memory; the scales (8 bytes, not aligned to 16) into registers of the
key's lane (dsv4-reference §4.4).
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from dsv4.generator.device.bulk_rows import copy_row, load_global
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_TAIL_BYTES, row_addresses

TILE_KEYS = 64
WARPS = 4  # that feed a tile
WARP_KEYS = TILE_KEYS // WARPS
SLOT_ROWS = 8
SLOTS = WARP_KEYS // SLOT_ROWS
SLOT_BYTES = SLOT_ROWS * KV_BODY_BYTES


class Segment(NamedTuple):
    """Keys of one pool: ``pool`` u8 [pages, page bytes], ``page`` its rows a page, ``rows`` of it in all (Int64).

    ``index`` [K]: the query's flat rows, or with ``is_table`` its pages, all of whose rows are keys, one after another.
    ``keys``: how many keys there are."""

    pool: cute.Tensor
    page: Int32
    index: cute.Tensor
    keys: Int32
    rows: Int64
    is_table: bool


@cute.jit
def tiles_of(keys: Int32) -> Int32:
    """Tiles that ``keys`` keys take; none below one."""
    return cutlass.max(keys + (TILE_KEYS - 1), 0) // TILE_KEYS


@cute.jit
def load_row(
    segments: cutlass.Constexpr,
    tile: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int] = WARP_KEYS,
) -> Int32:
    """The flat row of this lane's key of ``tile``, −1 where it has none. Lanes from ``warp_keys`` on have none."""
    row = Int32(-1)
    first = segments[0]
    if cutlass.const_expr(len(segments) == 1):
        row = _row_of(first, tile, warp, lane, warp_keys)
    else:
        first_tiles = tiles_of(first.keys)
        if tile < first_tiles:
            row = _row_of(first, tile, warp, lane, warp_keys)
        else:
            row = _row_of(segments[1], tile - first_tiles, warp, lane, warp_keys)
    return row


@cute.jit
def _row_of(
    segment: cutlass.Constexpr, tile: Int32, warp: Int32, lane: Int32, warp_keys: cutlass.Constexpr[int]
) -> Int32:
    key = tile * TILE_KEYS + warp * warp_keys + lane
    row = Int32(-1)
    if lane < warp_keys and key < segment.keys:
        if cutlass.const_expr(segment.is_table):
            number = Uint32(key) // Uint32(segment.page)  # unsigned: the shorter division
            found = Int64(-1)
            if Int32(number) < segment.index.shape[0]:
                found = Int64(segment.index[number]) * Int64(segment.page)
            if found >= 0 and found < segment.rows:
                row = Int32(found) + (key - Int32(number) * segment.page)
        else:
            row = segment.index[key]
            if row < 0 or Int64(row) >= segment.rows:
                row = Int32(-1)
    return row


@cute.jit
def address_of(segments: cutlass.Constexpr, tile: Int32, row: Int32) -> tuple[Int64, Int64]:
    """Addresses of the body and of the scales of ``row`` (from ``load_row`` for ``tile``; not negative)."""
    body, tail = Int64(0), Int64(0)
    first = segments[0]
    if cutlass.const_expr(len(segments) == 1):
        body, tail = row_addresses(first.pool, Int64(row), first.page, KV_BODY_BYTES, KV_TAIL_BYTES)
    else:
        if tile < tiles_of(first.keys):
            body, tail = row_addresses(first.pool, Int64(row), first.page, KV_BODY_BYTES, KV_TAIL_BYTES)
        else:
            second = segments[1]
            body, tail = row_addresses(second.pool, Int64(row), second.page, KV_BODY_BYTES, KV_TAIL_BYTES)
    return body, tail


@cute.jit
def ask_for_slot(slot: cutlass.Constexpr[int], body: Int64, is_key: Boolean, raw: Int32, full, lane: Int32) -> None:
    """Start the copies of the rows of lanes 8·slot … 8·slot + 7 that are keys; ``full`` counts their bytes.

    ``raw`` is the address of the warp's slots, ``full`` points to their mbarriers. All lanes of the warp call, after
    all of them have read what was in the slot.
    """
    is_ours = is_key and lane >> 3 == slot
    count = cute.arch.popc(cute.arch.vote_ballot_sync(is_ours))
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full + slot, count * KV_BODY_BYTES)
    cute.arch.sync_warp()
    if is_ours:
        target = raw + slot * SLOT_BYTES + (lane & 7) * KV_BODY_BYTES
        copy_row(target, body, KV_BODY_BYTES, (full + slot).toint())


@cute.jit
def load_scales(tail: Int64, is_key: Boolean) -> tuple[Uint32, Uint32]:
    """The eight bytes of scales at ``tail``, zeros for a lane without a key."""
    scales = cute.make_rmem_tensor((2,), Uint32)
    scales.fill(0)
    if is_key:
        load_global(tail, scales)
    return scales[0], scales[1]
