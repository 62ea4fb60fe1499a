"""Gathered keys that two CTAs of a cluster, which have the same query and other heads, make for one another.

Each gathers half of a tile's keys, eight a warp: it puts them into its own ring, and into the partner's at the same
place, by bulk copies between the shared memories. Their bytes count on ``keys_full`` of the partner, which waits for
its own four warps and for the bytes of the other four. Both CTAs write to a slot of both rings, so a slot is empty when
the warpgroups of O of both are done with it (:func:`release_both`).

So a CTA may be written to until its last tile is full, and arrived at until the partner's last tile is done: it must
have begun before the first tile, and must not end before the partner's is done. A cluster barrier each.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from dsv4.generator.device import kv_plain, kv_raw, kv_rows, sm90_ring
from dsv4.generator.device.bulk_rows import copy_to_cta, send_word
from dsv4.generator.device.cluster_sum import shift_to_cta
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, ROW_BYTES, TILE_BYTES
from dsv4.generator.device.kv_dequant_rows import dequantise_rows

WARP_KEYS = 8
"""Keys of a tile that a warp feeds: group 2·warp + half of the tile's eight."""
SENT_BYTES = WARP_KEYS * TILE_BYTES // kv_rows.TILE_KEYS + 4
"""By a warp for a tile: its rows of bf16, and a word that says which of them are keys."""
STEPS_AHEAD = 4
"""Of the dequantisation, loaded before one is worked on; four registers each."""
assert WARP_KEYS == kv_rows.SLOT_ROWS


class Partner(NamedTuple):
    """The other CTA: its ``rank`` in the cluster, and the ``shift`` (Int32) from an address in this CTA's shared memory
    to the same place in the partner's. ``half``: this CTA's, 0 or 1."""

    rank: Int32
    shift: Int32
    half: Int32


@cute.jit
def partner_of(rank: Int32, anywhere: cute.Pointer) -> Partner:
    """Of CTA ``rank`` of the cluster: neighbours are partners. ``anywhere`` points into shared memory."""
    other = rank ^ 1
    return Partner(other, shift_to_cta(anywhere.toint(), other), rank & 1)


@cute.jit
def release_both(empty, number: Int32, partner_rank: Int32):
    """Consumer: one arrival per warp in both CTAs, after that warp's last read of the slot has completed."""
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive(empty + number)
        cute.arch.mbarrier_arrive(empty + number, partner_rank)


@cute.jit
def feed(
    segments: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    partner: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` (0 … 3): its 8 keys of tiles ``first_tile`` … ``last_tile`` − 1 into both rings.

    ``raw`` points to the warp's two slots of raw rows, which the tiles take in turns as they take the ring's two: rows
    are on their way two tiles ahead.
    """
    assert slots == kv_rows.SLOTS, (slots, kv_rows.SLOTS)
    keys_address, raw_address = ring.keys.iterator.toint(), raw.toint()
    group = 2 * warp + partner.half
    row = kv_rows.load_row(segments, first_tile, last_tile, group, lane, WARP_KEYS)
    next_row = kv_rows.load_row(segments, first_tile + 1, last_tile, group, lane, WARP_KEYS)
    low, high = _ask(segments, first_tile, row, raw_address, lane)
    next_low, next_high = _ask(segments, first_tile + 1, next_row, raw_address + kv_rows.SLOT_BYTES, lane)
    keys, next_keys = _keys_of(row), _keys_of(next_row)
    # What stands in the index is loaded a tile before it is looked at: nobody waits for it.
    entry = kv_rows.load_entry(segments, first_tile + 2, last_tile, group, lane, WARP_KEYS)
    slot, phase = Int32(0), Int32(0)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        row = kv_rows.row_of(segments, tile + 2, entry, group, lane, WARP_KEYS)
        entry = kv_rows.load_entry(segments, tile + 3, last_tile, group, lane, WARP_KEYS)
        own_raw = raw_address + slot * kv_rows.SLOT_BYTES
        cute.arch.mbarrier_wait(barriers.empty + 2 * slot + 1, phase ^ 1)
        full = barriers.keys_full + slot
        their_full = full.toint() + partner.shift
        kv_raw.wait_for_rows(kv_rows.SLOTS - 1)
        tile_address = keys_address + slot * TILE_BYTES
        dequantise_rows(
            *(WARP_KEYS, own_raw, tile_address, group * WARP_KEYS, 0, keys, low, high, lane),
            STEPS_AHEAD,
            True,
        )
        cute.arch.sync_warp()
        low_after, high_after = _ask(segments, tile + 2, row, own_raw, lane)
        _tell_keys(keys, ring, slot, group, partner, their_full, lane)
        _fill(full)
        _pass_on(tile_address, group, partner, their_full, lane)
        keys, next_keys = next_keys, _keys_of(row)
        low, high, next_low, next_high = next_low, next_high, low_after, high_after
        slot, phase = sm90_ring.next_position(slot, phase, slots)
    cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do


@cute.jit
def feed_plain(
    segments: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    partner: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """``feed`` for rows of bf16: a tile is on its way while the one before is worked on, and is passed on when it is
    there.

    The slot is not written to again before the partner, whose ``keys_full`` the passing on completes, has left it.
    """
    keys_address = ring.keys.iterator.toint()
    group = 2 * warp + partner.half
    slot, phase = Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, group, lane, WARP_KEYS)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.load_row(segments, tile + 1, last_tile, group, lane, WARP_KEYS)
        address = kv_plain.row_address(segments, tile, row)
        keys = _keys_of(row)
        cute.arch.mbarrier_wait(barriers.empty + 2 * slot + 1, phase ^ 1)
        full = barriers.keys_full + slot
        their_full = full.toint() + partner.shift
        tile_address = keys_address + slot * TILE_BYTES
        kv_plain.gather_rows(address, row, tile_address, group, lane, warp_keys=WARP_KEYS)
        _tell_keys(keys, ring, slot, group, partner, their_full, lane)
        cute.arch.cp_async_wait_group(0)
        _fill(full)
        _pass_on(tile_address, group, partner, their_full, lane)
        row = next_row
        slot, phase = sm90_ring.next_position(slot, phase, slots)


@cute.jit
def _keys_of(row: Int32) -> Uint32:
    """Bit i: the row of lane i is one."""
    return Uint32(cute.arch.vote_ballot_sync(row >= 0))


@cute.jit
def _ask(segments: cutlass.Constexpr, tile: Int32, row: Int32, raw: Int32, lane: Int32) -> tuple[Uint32, Uint32]:
    """Start the copies of a tile's rows to the raw slot at ``raw``; the scales of this lane's row."""
    body, tail = kv_rows.address_of(segments, tile, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    kv_raw.ask_for_rows(WARP_KEYS, Int32(0), body, row >= 0, raw, lane)
    return low, high


@cute.jit
def _pass_on(tile: Int32, group: Int32, partner: cutlass.Constexpr, full: Int32, lane: Int32):
    """Start the copies of the group's rows of the tile at address ``tile`` to the partner's; they count on ``full``.

    By the copy engine, a block of 64 columns at a time, whose eight rows follow one another. What the lanes wrote has
    to be fenced for it.
    """
    if lane < TILE_BYTES // BLOCK_BYTES:
        source = tile + lane * BLOCK_BYTES + group * (WARP_KEYS * ROW_BYTES)
        copy_to_cta(source + partner.shift, source, WARP_KEYS * ROW_BYTES, full)


@cute.jit
def _tell_keys(
    keys: Uint32,
    ring: cutlass.Constexpr,
    slot: Int32,
    group: Int32,
    partner: cutlass.Constexpr,
    full: Int32,
    lane: Int32,
):
    """Which of the group's keys count, where ``sm90_sparse_decode.hide_absent`` wants the bits, in both rings."""
    if lane == 0:
        word = keys << Uint32(8 * (group & 3))
        ring.is_key[group, slot] = word
        place = ring.is_key.iterator + ring.is_key.layout((group, slot))
        send_word(place.toint() + partner.shift, word, full)


@cute.jit
def _fill(full):
    """What all lanes wrote is seen by the tensor cores; one arrival, which expects the partner's bytes too."""
    cute.arch.fence_view_async_shared()
    cute.arch.sync_warp()
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full, SENT_BYTES)
