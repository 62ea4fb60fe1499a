"""Warps that gather and dequantise the keys of one query after another: ``kv_halves`` without a stop between queries.

A CTA works through items, a query and a block of its heads each. Of the tile that is worked on, of the next and of the
one after, the warps know different things, and these may belong to different items: the rows of the next tile are on
their way, and of the one after the entries of the index are being loaded. An item without keys counts as one tile of
which no key counts, so that each item has a tile to go on to.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint16, Uint32

from dsv4.generator.device import kv_halves, kv_rows, sm90_ring
from dsv4.generator.device.bulk_rows import load_global
from dsv4.generator.device.kv_rows import TILE_KEYS
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_TAIL_BYTES, row_addresses

ORDERED = 512
"""Requests up to which they are sorted by how many keys they have."""


class Rest(NamedTuple):
    """Items behind ``rounds`` full rounds: each is shared by ``parts`` CTAs, ``part_tiles`` tiles each or what is left.

    This CTA has part ``part`` of the item that is number ``item`` behind the rounds. All items have as many keys.
    """

    rounds: Int32
    parts: Int32
    part_tiles: Int32
    item: Int32
    part: Int32


class Work(NamedTuple):
    """What CTA ``cta`` of ``ctas`` takes of ``items``: one in each round, every other round in reversed order, so
    that all CTAs have as many keys where those of the queries become fewer and fewer. Item i is query i // ``blocks``
    of all requests' queries, in the ``order`` of :func:`sort_requests`, or as they come if it is None.

    ``queries``: of a request. ``pools``, ``indices``, ``lengths`` and ``pages``: those of the one or two segments of a
    query's keys, as the kernel has them. The second one's index may be a table of pages.

    ``rest`` is None, or says how the items behind the first ``rest.rounds`` rounds are taken: see ``Rest``.
    """

    cta: Int32
    ctas: Int32
    items: Int32
    blocks: int
    queries: Int32
    pools: tuple
    indices: tuple
    lengths: tuple
    pages: tuple
    requests: Int32
    order: cute.Tensor | None
    rest: Rest | None


@cute.jit
def sort_requests(work: cutlass.Constexpr, tiles: cute.Tensor, thread: Int32, threads: cutlass.Constexpr[int]):
    """All threads of a CTA: ``order`` becomes the requests, those with the most tiles first; up to ``ORDERED`` of them.

    ``tiles`` Int32 [ORDERED] in shared memory, of no use to anybody before or after.
    """
    if work.requests <= ORDERED:
        for request in cutlass.range(thread, work.requests, threads, unroll=1):
            tiles[request] = tiles_of(*_keys_of_request(work, request, Int32(0)))
        cute.arch.sync_threads()
        for request in cutlass.range(thread, work.requests, threads, unroll=1):
            own, before = tiles[request], Int32(0)
            for other in cutlass.range(work.requests, unroll=8):
                others = tiles[other]
                is_before = others > own or (others == own and other < request)
                before += Int32(1) if is_before else Int32(0)
            work.order[before] = Uint16(request)
        cute.arch.sync_threads()


@cute.jit
def item_of(work: cutlass.Constexpr, turn: Int32) -> Int32:
    """The item of this CTA in round ``turn``; none below ``items`` after the last one."""
    item = turn * work.ctas + (work.ctas - 1 - work.cta if turn % 2 == 1 else work.cta)
    if cutlass.const_expr(work.rest is not None):  # noqa: SIM102  # known when this is traced, the other is not
        if turn == work.rest.rounds:
            item = turn * work.ctas + work.rest.item
    return item


@cute.jit
def is_part(work: cutlass.Constexpr, turn: Int32):
    """Whether round ``turn`` is the last one, of items that CTAs share."""
    return turn == work.rest.rounds and work.rest.parts > 1


@cute.jit
def rounds_of(work: cutlass.Constexpr) -> Int32:
    """How many items this CTA takes."""
    whole = work.items // work.ctas
    if cutlass.const_expr(work.rest is not None):
        whole = work.rest.rounds
    return whole + (Int32(1) if item_of(work, whole) < work.items else Int32(0))


@cute.jit
def place_of(work: cutlass.Constexpr, item: Int32) -> tuple[Int32, Int32, Int32]:
    """Request, query of it, and block of heads of an item."""
    token = item // work.blocks
    number = token // work.queries
    request = number
    if cutlass.const_expr(work.order is not None):  # noqa: SIM102  # known when this is traced, the other is not
        if work.requests <= ORDERED and number < work.requests:
            request = Int32(work.order[number])
    return request, token - number * work.queries, item - token * work.blocks


@cute.jit
def keys_of(work: cutlass.Constexpr, item: Int32) -> tuple[Int32, Int32]:
    """How many keys of either segment ``item`` has; none where there is no such item or segment."""
    first, second = Int32(0), Int32(0)
    if item < work.items:
        request, query, _ = place_of(work, item)
        first, second = _keys_of_request(work, request, query)
    return first, second


@cute.jit
def _keys_of_request(work: cutlass.Constexpr, request: Int32, query: Int32) -> tuple[Int32, Int32]:
    """How many keys of either segment a query of ``request`` has."""
    counts = []
    for index, length in zip(work.indices, work.lengths, strict=True):
        if cutlass.const_expr(len(index.shape) == 2):
            count = length[request, query]
        else:
            count = Int32(index.shape[2])
            if cutlass.const_expr(length is not None):
                count = cutlass.min(length[request], count)
        counts.append(cutlass.max(count, 0))
    if cutlass.const_expr(len(counts) == 1):
        counts.append(Int32(0))
    return counts[0], counts[1]


@cute.jit
def tiles_of(first_keys: Int32, second_keys: Int32) -> Int32:
    """Tiles of an item with these keys in its segments: one at least."""
    return cutlass.max(kv_rows.tiles_of(first_keys) + kv_rows.tiles_of(second_keys), 1)


@cute.jit
def span_of(work: cutlass.Constexpr, turn: Int32, first_keys: Int32, second_keys: Int32) -> tuple[Int32, Int32]:
    """Of this CTA's item of round ``turn``, which has these keys: its first tile, and the one behind its last."""
    first, end = Int32(0), tiles_of(first_keys, second_keys)
    if cutlass.const_expr(work.rest is not None):  # noqa: SIM102  # known when this is traced, the other is not
        if turn == work.rest.rounds:
            first = work.rest.part * work.rest.part_tiles
            end = cutlass.min(end, first + work.rest.part_tiles)
    return first, end


@cute.jit
def tiles_in(work: cutlass.Constexpr, turn: Int32, first_keys: Int32, second_keys: Int32) -> Int32:
    """How many tiles that are."""
    first, end = span_of(work, turn, first_keys, second_keys)
    return end - first


@cute.jit
def index_addresses(work: cutlass.Constexpr, item: Int32) -> tuple[Int64, Int64]:
    """Where the index of either segment of ``item`` begins; anywhere for an item that does not exist."""
    request, query, _ = place_of(work, item)
    addresses = []
    for index in work.indices:
        if cutlass.const_expr(len(index.shape) == 2):
            addresses.append((index.iterator + index.layout((request, 0))).toint())
        else:
            addresses.append((index.iterator + index.layout((request, query, 0))).toint())
    if cutlass.const_expr(len(addresses) == 1):
        addresses.append(Int64(0))
    return addresses[0], addresses[1]


@cute.jit
def _load_entry(
    work: cutlass.Constexpr, is_second: Int32, key: Int32, count: Int32, address: Int64, lane: Int32
) -> Int32:
    """What stands in the index at ``address`` for ``key`` of a segment of ``count``; −1 where it has none.

    Nothing is done with the number: nobody waits for it.
    """
    place = key
    stands = lane < kv_rows.WARP_KEYS and key < count
    has_table = cutlass.const_expr(len(work.indices) == 2 and len(work.indices[1].shape) == 2)
    if cutlass.const_expr(has_table):
        page, _ = kv_rows.page_and_offset(key, work.pages[1])
        if is_second != 0:
            place = page
            stands = stands and place < work.indices[1].shape[1]
    entry = cute.make_rmem_tensor((1,), Uint32)
    entry.fill(0xFFFFFFFF)
    if stands:
        load_global(address + Int64(4 * place), entry)
    return Int32(entry[0])


@cute.jit
def locate(work: cutlass.Constexpr, is_second: Int32, key: Int32, entry: Int32) -> tuple[Int32, Int64, Int64]:
    """The row that ``entry`` says ``key`` of a segment is, −1 for none; where its body and scales begin (of row 0)."""
    row, body, tail = Int32(-1), Int64(0), Int64(0)
    if cutlass.const_expr(len(work.pools) == 1):
        row, body, tail = _locate(work, 0, key, entry)
    else:
        if is_second == 0:
            row, body, tail = _locate(work, 0, key, entry)
        else:
            row, body, tail = _locate(work, 1, key, entry)
    return row, body, tail


@cute.jit
def _locate(
    work: cutlass.Constexpr, number: cutlass.Constexpr[int], key: Int32, entry: Int32
) -> tuple[Int32, Int64, Int64]:
    pool, page, index = work.pools[number], work.pages[number], work.indices[number]
    rows = Int64(pool.shape[0]) * Int64(kv_rows.rows_of_page(page))
    row = entry
    if cutlass.const_expr(len(index.shape) == 2):
        start = Int64(entry) * Int64(kv_rows.rows_of_page(page))
        row = Int32(-1)
        if start >= 0 and start < rows:
            _, offset = kv_rows.page_and_offset(key, page)
            row = Int32(start) + offset
    elif row < 0 or Int64(row) >= rows:
        row = Int32(-1)
    body, tail = row_addresses(pool, Int64(cutlass.max(row, 0)), page, KV_BODY_BYTES, KV_TAIL_BYTES)
    return row, body, tail


class Ahead(NamedTuple):
    """The tile whose entries are loaded next. ``numbers`` (6,) Int32: its round, its number there, the item's keys in
    either segment, and those of the item after it; ``starts`` (2,) Int64: where the item's indices begin."""

    numbers: cute.Tensor
    starts: cute.Tensor


@cute.jit
def _go_to(work: cutlass.Constexpr, ahead: cutlass.Constexpr, turn: Int32, first_keys: Int32, second_keys: Int32):
    """``ahead`` becomes the first tile of the item of round ``turn``, which has these keys."""
    first_tile, _ = span_of(work, turn, first_keys, second_keys)
    ahead.numbers[0], ahead.numbers[1] = turn, first_tile
    ahead.numbers[2], ahead.numbers[3] = first_keys, second_keys
    ahead.numbers[4], ahead.numbers[5] = keys_of(work, item_of(work, turn + 1))
    ahead.starts[0], ahead.starts[1] = index_addresses(work, item_of(work, turn))


@cute.jit
def load_next(
    work: cutlass.Constexpr, ahead: cutlass.Constexpr, warp: Int32, lane: Int32
) -> tuple[Int32, Int32, Int32]:
    """This lane's entry of the tile ``ahead``, its segment (0 or 1) and its key there; ``ahead`` goes on."""
    tile, first_keys, second_keys = ahead.numbers[1], ahead.numbers[2], ahead.numbers[3]
    is_second, first_tile, count, start = Int32(0), Int32(0), first_keys, ahead.starts[0]
    if cutlass.const_expr(len(work.pools) == 2):
        first_tiles = kv_rows.tiles_of(first_keys)
        if tile >= first_tiles:
            is_second, first_tile, count, start = Int32(1), first_tiles, second_keys, ahead.starts[1]
    key = (tile - first_tile) * TILE_KEYS + kv_rows.key_of(warp, lane, kv_rows.WARP_KEYS, True)
    entry = _load_entry(work, is_second, key, count, start, lane)
    ahead.numbers[1] = tile + 1
    _, end = span_of(work, ahead.numbers[0], first_keys, second_keys)
    if tile + 1 == end:
        _go_to(work, ahead, ahead.numbers[0] + 1, ahead.numbers[4], ahead.numbers[5])
    return entry, is_second, key


@cute.jit
def feed(
    work: cutlass.Constexpr,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` (0 … 3): its 16 keys of every tile of every item into the ring.

    Eight of them are of either half of the tile: see ``kv_halves``.
    ``raw`` points to the warp's two slots of eight raw rows.
    """
    raw_address = raw.toint()
    ahead = Ahead(cute.make_rmem_tensor((6,), Int32), cute.make_rmem_tensor((2,), Int64))
    first_keys, second_keys = keys_of(work, item_of(work, Int32(0)))
    _go_to(work, ahead, Int32(0), first_keys, second_keys)
    tiles = tiles_in(work, Int32(0), first_keys, second_keys)
    entry, is_second, key = load_next(work, ahead, warp, lane)
    row, body, tail = locate(work, is_second, key, entry)
    low, high = kv_rows.load_scales(tail, row >= 0)
    following = kv_halves.rows_of(body, row >= 0, lane)
    for half in cutlass.range_constexpr(kv_halves.HALVES):
        kv_halves.ask(following, half, raw_address, lane)
    keys = following.keys
    entry, is_second, key = load_next(work, ahead, warp, lane)
    slot, phase = Int32(0), Int32(0)
    for turn in cutlass.range(rounds_of(work), unroll=1):
        next_tiles = tiles_in(work, turn + 1, *keys_of(work, item_of(work, turn + 1)))
        for _ in cutlass.range(tiles, unroll=1):
            factors = kv_halves.factors_of(low, high, lane)
            row, body, tail = locate(work, is_second, key, entry)
            low, high = kv_rows.load_scales(tail, row >= 0)
            following = kv_halves.rows_of(body, row >= 0, lane)
            entry, is_second, key = load_next(work, ahead, warp, lane)
            kv_halves.fill(keys, factors, following, raw_address, ring, barriers, slot, phase, warp, lane)
            keys = following.keys
            slot, phase = sm90_ring.next_position(slot, phase, slots)
        tiles = next_tiles
    cute.arch.cp_async_wait_group(0)  # a CTA may not end before its copies do
