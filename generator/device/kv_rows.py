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

from dsv4.generator.device import sm90_ring
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

    ``page`` is an Int32, or a ``FastDivmodDivisorV2`` that the host made of it, by which a division is not waited for.

    ``index`` [K]: the query's flat rows, or with ``is_table`` its pages, all of whose rows are keys, one after another.
    ``keys``: how many keys there are."""

    pool: cute.Tensor
    page: Int32 | cute.FastDivmodDivisorV2
    index: cute.Tensor
    keys: Int32
    rows: Int64
    is_table: bool


@cute.jit
def tiles_of(keys: Int32) -> Int32:
    """Tiles that ``keys`` keys take; none below one."""
    return cutlass.max(keys + (TILE_KEYS - 1), 0) // TILE_KEYS


@cute.jit
def rows_of_page(page) -> Int32:
    """The number that a segment's ``page`` stands for."""
    rows = page
    if cutlass.const_expr(isinstance(page, cute.FastDivmodDivisorV2)):
        rows = Int32(page.divisor)
    return rows


@cute.jit
def page_and_offset(number: Int32, page) -> tuple[Int32, Int32]:
    """The page of a row or key and its place there. ``number`` is not negative."""
    if cutlass.const_expr(isinstance(page, cute.FastDivmodDivisorV2)):
        quotient, offset = divmod(number, page)
    else:
        quotient = Int32(Uint32(number) // Uint32(page))  # unsigned: the shorter division
        offset = number - quotient * page
    return quotient, offset


@cute.jit
def load_row(
    segments: cutlass.Constexpr,
    tile: Int32,
    last_tile: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int] = WARP_KEYS,
    spread: cutlass.Constexpr[bool] = False,
) -> Int32:
    """The flat row of this lane's key of ``tile``, −1 where it has none. Lanes from ``warp_keys`` on have none.

    It waits for the memory: see :func:`load_entry` and :func:`row_of`.
    """
    entry = load_entry(segments, tile, last_tile, warp, lane, warp_keys, spread)
    return row_of(segments, tile, entry, warp, lane, warp_keys, spread)


@cute.jit
def key_of(warp: Int32, lane: Int32, warp_keys: cutlass.Constexpr[int], spread: cutlass.Constexpr[bool]) -> Int32:
    """Which key of a tile a lane below ``warp_keys`` has: of a warp's keys that follow one another, or with ``spread``
    half in one half of the tile and half in the other, at the same place there."""
    key = warp * warp_keys + lane
    if cutlass.const_expr(spread):
        half = cutlass.const_expr(warp_keys // 2)
        key = warp * half + lane + (lane // half) * (TILE_KEYS // 2 - half)
    return key


@cute.jit
def load_entry(
    segments: cutlass.Constexpr,
    tile: Int32,
    last_tile: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int] = WARP_KEYS,
    spread: cutlass.Constexpr[bool] = False,
) -> Int32:
    """What stands in the index for this lane's key of ``tile``: a row, or the page of one; −1 where it has none.

    Nothing is done with it here, so that nobody waits for it: :func:`row_of` says which row that is. From ``last_tile``
    on there are no keys.
    """
    entry = Int32(-1)
    if tile < last_tile:
        first = segments[0]
        if cutlass.const_expr(len(segments) == 1):
            entry = _entry_of(first, tile, warp, lane, warp_keys, spread)
        else:
            first_tiles = tiles_of(first.keys)
            if tile < first_tiles:
                entry = _entry_of(first, tile, warp, lane, warp_keys, spread)
            else:
                entry = _entry_of(segments[1], tile - first_tiles, warp, lane, warp_keys, spread)
    return entry


@cute.jit
def _entry_of(
    segment: cutlass.Constexpr,
    tile: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int],
    spread: cutlass.Constexpr[bool],
) -> Int32:
    key = tile * TILE_KEYS + key_of(warp, lane, warp_keys, spread)
    entry = Int32(-1)
    if lane < warp_keys and key < segment.keys:
        if cutlass.const_expr(segment.is_table):
            number, _ = page_and_offset(key, segment.page)
            if number < segment.index.shape[0]:
                entry = segment.index[number]
        else:
            entry = segment.index[key]
    return entry


@cute.jit
def row_of(
    segments: cutlass.Constexpr,
    tile: Int32,
    entry: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int] = WARP_KEYS,
    spread: cutlass.Constexpr[bool] = False,
) -> Int32:
    """The flat row of this lane's key of ``tile``, from what ``load_entry`` gave for it; −1 where it has none."""
    first = segments[0]
    row = Int32(-1)
    if cutlass.const_expr(len(segments) == 1):
        row = _row_of(first, tile, entry, warp, lane, warp_keys, spread)
    else:
        first_tiles = tiles_of(first.keys)
        if tile < first_tiles:
            row = _row_of(first, tile, entry, warp, lane, warp_keys, spread)
        else:
            row = _row_of(segments[1], tile - first_tiles, entry, warp, lane, warp_keys, spread)
    return row


@cute.jit
def _row_of(
    segment: cutlass.Constexpr,
    tile: Int32,
    entry: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int],
    spread: cutlass.Constexpr[bool],
) -> Int32:
    row = entry
    if cutlass.const_expr(segment.is_table):
        key = tile * TILE_KEYS + key_of(warp, lane, warp_keys, spread)
        start = Int64(entry) * Int64(rows_of_page(segment.page))
        row = Int32(-1)
        if start >= 0 and start < segment.rows:
            _, offset = page_and_offset(key, segment.page)
            row = Int32(start) + offset
    elif row < 0 or Int64(row) >= segment.rows:
        row = Int32(-1)
    return row


@cute.jit
def address_of(segments: cutlass.Constexpr, tile: Int32, row: Int32) -> tuple[Int64, Int64]:
    """Addresses of the body and of the scales of ``row`` (from ``load_row`` for ``tile``); of row 0 without one."""
    row = cutlass.max(row, 0)
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
def ask_for_rows(
    rows: cutlass.Constexpr[int], number: Int32, body: Int64, is_key: Boolean, raw: Int32, full, lane: Int32
) -> None:
    """Start the copies of the rows of lanes rows · number … that are keys, to the slot of ``rows`` rows at ``raw``.

    ``full`` counts their bytes. All lanes of the warp call, after all of them have read what was in the slot.
    """
    is_ours = is_key and lane // rows == number
    count = cute.arch.popc(cute.arch.vote_ballot_sync(is_ours))
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full, count * KV_BODY_BYTES)
    cute.arch.sync_warp()
    if is_ours:
        copy_row(raw + lane % rows * KV_BODY_BYTES, body, KV_BODY_BYTES, full.toint())


@cute.jit
def load_scales(tail: Int64, is_key: Boolean) -> tuple[Uint32, Uint32]:
    """The eight bytes of scales at ``tail``, zeros for a lane without a key."""
    scales = cute.make_rmem_tensor((2,), Uint32)
    scales.fill(0)
    if is_key:
        load_global(tail, scales)
    return scales[0], scales[1]


@cute.jit
def pass_on(keys: Uint32, ring: cutlass.Constexpr, barriers: cutlass.Constexpr, slot: Int32, warp: Int32, lane: Int32):
    """A warp's rows of a slot of the ring, and the bits of those that count, to the warps that make the scores."""
    if lane == 0:
        ring.is_key[warp, slot] = keys
    _fill(barriers, slot)


@cute.jit
def pass_on_halves(
    keys: Uint32, ring: cutlass.Constexpr, barriers: cutlass.Constexpr, slot: Int32, warp: Int32, lane: Int32
):
    """:func:`pass_on` of a warp whose keys are ``spread``: groups ``warp`` and 4 + ``warp`` of eight keys."""
    if lane < 2:
        ring.is_key[warp + 4 * lane, slot] = ((keys >> Uint32(8 * lane)) & Uint32(0xFF)) << Uint32(8 * warp)
    _fill(barriers, slot)


@cute.jit
def _fill(barriers: cutlass.Constexpr, slot: Int32):
    """What all lanes wrote is seen by the tensor cores; one arrival."""
    cute.arch.fence_view_async_shared()
    cute.arch.sync_warp()
    sm90_ring.release(barriers.keys_full, slot)
