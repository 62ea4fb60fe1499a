"""Eight warps that gather a tile of 64 keys, eight keys each, and know their rows four tiles at a time.

Lane i of a warp stands for key i mod 8 of tile i/8 of a group of four tiles, so that row numbers, addresses and scales
of a group are worked out by all lanes at once. Rows of a packed pool go to raw slots of four rows in shared memory, of
which each warp has a ring: a slot is asked for again as soon as it was read, so a warp waits for nobody but the memory
(``kv_raw``). See ``kv_rows`` for the keys of a query, and for four warps with 16 keys each.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from dsv4.generator.device import kv_plain, kv_raw, kv_rows, sm90_ring
from dsv4.generator.device.kv_dequant import TILE_BYTES
from dsv4.generator.device.kv_dequant_rows import dequantise_rows
from dsv4.generator.device.page_rows import KV_BODY_BYTES

WARPS = 8
ROWS = 4
SLOT_BYTES = ROWS * KV_BODY_BYTES
WARP_KEYS = kv_rows.TILE_KEYS // WARPS
KEY_BITS = (1 << WARP_KEYS) - 1
GROUP_TILES = 32 // WARP_KEYS
TILE_SLOTS = WARP_KEYS // ROWS  # raw slots that a warp's keys of a tile take
GROUP_SLOTS = GROUP_TILES * TILE_SLOTS


class Group(NamedTuple):
    """What a lane knows of its key of a group: the address of its row's ``body``, whether it ``is_key``, its scales."""

    body: Int64
    is_key: Boolean
    low: Uint32
    high: Uint32


class Keys(NamedTuple):
    """Keys of one query: tiles of ``segments`` up to ``last_tile``."""

    segments: list
    last_tile: Int32


@cute.jit
def load_entries(keys: cutlass.Constexpr, tile: Int32, warp: Int32, lane: Int32) -> Int32:
    """What stands in the index for this lane's key of the group that begins at ``tile`` (``kv_rows.load_entry``)."""
    own_tile = tile + lane // WARP_KEYS
    return kv_rows.load_entry(keys.segments, own_tile, keys.last_tile, warp, lane % WARP_KEYS, WARP_KEYS)


@cute.jit
def rows_of(segments: cutlass.Constexpr, tile: Int32, entry: Int32, warp: Int32, lane: Int32) -> Int32:
    """The flat row of this lane's key of the group that begins at ``tile``, −1 where it has none."""
    return kv_rows.row_of(segments, tile + lane // WARP_KEYS, entry, warp, lane % WARP_KEYS, WARP_KEYS)


@cute.jit
def locate(keys: cutlass.Constexpr, tile: Int32, entry: Int32, warp: Int32, lane: Int32) -> Group:
    """The group that begins at ``tile``, whose entries are loaded: addresses, and the scales on their way."""
    row = rows_of(keys.segments, tile, entry, warp, lane)
    body, tail = kv_rows.address_of(keys.segments, tile + lane // WARP_KEYS, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    return Group(body, row >= 0, low, high)


@cute.jit
def feed(
    load: cutlass.Constexpr,
    find: cutlass.Constexpr,
    keys_of: cutlass.Constexpr,
    entry: Int32,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
    raw_slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` (0 … 7): its keys of tiles ``first_tile`` … ``last_tile`` − 1 into the ring.

    ``load`` and ``find``: ``load_entries`` and ``locate`` for what ``keys_of`` knows, :class:`Keys` of one query, or
    those of ``kv_group_rounds`` for one query after another. ``entry`` is what ``load`` gave for ``first_tile``.
    ``raw`` points to the warp's ``raw_slots`` (2 … 8) slots of ``SLOT_BYTES``. A group's entries are loaded two groups
    ahead, its scales one group ahead.
    """
    assert 2 <= raw_slots <= GROUP_SLOTS
    keys_address, raw_address = ring.keys.iterator.toint(), raw.toint()
    own = find(keys_of, first_tile, entry, warp, lane)
    body, is_key, low, high = own.body, own.is_key, own.low, own.high
    entry = load(keys_of, first_tile + GROUP_TILES, warp, lane)
    for number in cutlass.range_constexpr(raw_slots):
        own_raw = raw_address + number * SLOT_BYTES
        kv_raw.ask_for_rows(ROWS, Int32(number * ROWS), body, is_key, own_raw, lane)
    slot, phase, raw_slot = Int32(0), Int32(0), Int32(0)
    for group_tile in cutlass.range(first_tile, last_tile, GROUP_TILES, unroll=1):
        further = find(keys_of, group_tile + GROUP_TILES, entry, warp, lane)
        entry = load(keys_of, group_tile + 2 * GROUP_TILES, warp, lane)
        keys = Uint32(cute.arch.vote_ballot_sync(is_key))
        for tile in cutlass.range(cutlass.min(last_tile - group_tile, GROUP_TILES), unroll=1):
            cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
            tile_address = keys_address + slot * TILE_BYTES
            for part in cutlass.range_constexpr(TILE_SLOTS):
                number = tile * TILE_SLOTS + part
                own_raw = raw_address + raw_slot * SLOT_BYTES
                kv_raw.wait_for_rows(raw_slots - 1)
                row = warp * WARP_KEYS + part * ROWS
                dequantise_rows(ROWS, own_raw, tile_address, row, number * ROWS, keys, low, high, lane, 2, True)
                cute.arch.sync_warp()
                ahead = number + raw_slots
                ahead_body, ahead_is_key = body, is_key
                if ahead >= GROUP_SLOTS:
                    ahead_body, ahead_is_key = further.body, further.is_key
                kv_raw.ask_for_rows(ROWS, ahead % GROUP_SLOTS * ROWS, ahead_body, ahead_is_key, own_raw, lane)
                raw_slot = raw_slot + 1 if raw_slot + 1 < raw_slots else Int32(0)
            kv_rows.pass_on(keys >> Uint32(tile * WARP_KEYS) & Uint32(KEY_BITS), ring, barriers, slot, warp, lane)
            slot, phase = sm90_ring.next_position(slot, phase, slots)
        body, is_key, low, high = further.body, further.is_key, further.low, further.high
    cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do


@cute.jit
def feed_plain(
    keys_of: cutlass.Constexpr,
    entry: Int32,
    first_tile: Int32,
    last_tile: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """``feed`` for rows of bf16, which need no raw slots: a tile is on its way while those before are worked on."""
    keys_address = ring.keys.iterator.toint()
    slot, phase = Int32(0), Int32(0)
    for group_tile in cutlass.range(first_tile, last_tile, GROUP_TILES, unroll=1):
        row = rows_of(keys_of.segments, group_tile, entry, warp, lane)
        entry = load_entries(keys_of, group_tile + GROUP_TILES, warp, lane)
        keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
        for tile in cutlass.range(cutlass.min(last_tile - group_tile, GROUP_TILES), unroll=1):
            own_row = cute.arch.shuffle_sync(row, tile * WARP_KEYS + lane % WARP_KEYS)
            address = kv_plain.row_address(keys_of.segments, group_tile + tile, own_row)
            cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
            kv_plain.gather_rows(address, own_row, keys_address + slot * TILE_BYTES, warp, lane, warp_keys=WARP_KEYS)
            cute.arch.cp_async_wait_group(0)
            kv_rows.pass_on(keys >> Uint32(tile * WARP_KEYS) & Uint32(KEY_BITS), ring, barriers, slot, warp, lane)
            slot, phase = sm90_ring.next_position(slot, phase, slots)
