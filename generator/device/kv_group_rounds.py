"""Keys of one query after another, for the warps of ``kv_groups``: no stop between queries.

A CTA takes an item, a query, in each round (``kv_rounds``). All have as many tiles, so its tiles can be numbered
through: a group of four may have keys of two queries, and rows of the next one are on their way while the last one's
are worked on.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from dsv4.generator.device import kv_groups, kv_rounds, kv_rows


class Items(NamedTuple):
    """The items of ``work`` that this CTA takes: ``tiles`` each, ``first_tiles`` of them of the first segment."""

    work: kv_rounds.Work
    tiles: Int32
    first_tiles: Int32


@cute.jit
def items_of(work: cutlass.Constexpr) -> Items:
    """The items of ``work``, whose queries all have the keys that their indices have columns."""
    first_tiles = kv_rows.tiles_of(Int32(work.indices[0].shape[2]))
    tiles = first_tiles
    if cutlass.const_expr(len(work.indices) == 2):
        tiles += kv_rows.tiles_of(Int32(work.indices[1].shape[2]))
    return Items(work, cutlass.max(tiles, 1), first_tiles)


@cute.jit
def _key_of(items: cutlass.Constexpr, tile: Int32, warp: Int32, lane: Int32) -> tuple[Int32, Int32, Int32]:
    """Of a tile of those numbered through: its round, whether it is of the second segment, and this lane's key."""
    turn = tile // items.tiles
    own_tile, is_second = tile - turn * items.tiles, Int32(0)
    if own_tile >= items.first_tiles:
        own_tile, is_second = own_tile - items.first_tiles, Int32(1)
    key = own_tile * kv_rows.TILE_KEYS + warp * kv_groups.WARP_KEYS + lane % kv_groups.WARP_KEYS
    return turn, is_second, key


@cute.jit
def load_entries(items: cutlass.Constexpr, tile: Int32, warp: Int32, lane: Int32) -> Int32:
    """What stands in the index for this lane's key of the group that begins at ``tile``, of those numbered through; −1
    where it has none. Nobody waits for it here."""
    work = items.work
    turn, is_second, key = _key_of(items, tile + lane // kv_groups.WARP_KEYS, warp, lane)
    item = kv_rounds.item_of(work, turn)
    entry = Int32(-1)
    if item < work.items:
        request, query, _ = kv_rounds.place_of(work, item)
        if is_second == 0:
            if key < work.indices[0].shape[2]:
                entry = work.indices[0][request, query, key]
        elif cutlass.const_expr(len(work.indices) == 2):  # noqa: SIM102  # known when this is traced, the other is not
            if key < work.indices[1].shape[2]:
                entry = work.indices[1][request, query, key]
    return entry


@cute.jit
def locate(items: cutlass.Constexpr, tile: Int32, entry: Int32, warp: Int32, lane: Int32) -> kv_groups.Group:
    """The group that begins at ``tile``, whose entries are loaded: addresses, and the scales on their way."""
    _, is_second, key = _key_of(items, tile + lane // kv_groups.WARP_KEYS, warp, lane)
    row, body, tail = kv_rounds.locate(items.work, is_second, key, entry)
    low, high = kv_rows.load_scales(tail, row >= 0)
    return kv_groups.Group(body, row >= 0, low, high)
