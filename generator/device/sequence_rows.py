"""Rows of one sequence among others between global and shared memory, keys and values perhaps in pages.

The copy engine cuts off at the end of a tensor, not of a sequence:

* Queries and keys behind the end of a sequence are loaded and masked. Values behind it have to be overwritten with
  zeros in shared memory before anyone multiplies by them, since 0 · NaN is NaN.
* Rows of O are stored by vectors, as far as the sequence goes.
* Of a page the engine takes boxes of ``rows`` keys. A box behind the end is asked for behind the end of page 0, where
  there are zeros; the table is not read for it.

Tiles are ``(rows, columns)`` bf16 with a swizzle of 128 bytes: blocks of 64 columns, in each of which a row takes 128
bytes and the 16-byte vector c of row r lies at c xor (r mod 8). wgmma and tcgen05 read K in it as it is, and V as its
transpose.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32
from cutlass.cute.nvgpu import cpasync

from dsv4.generator.device import sm90_wgmma
from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.page_rows import store_at

VECTOR_BYTES = 16
BLOCK_COLUMNS = sm90_wgmma.SWIZZLE_COLUMNS
ROW_BYTES = 2 * BLOCK_COLUMNS
ROW_VECTORS = ROW_BYTES // VECTOR_BYTES


class Pages(NamedTuple):
    """``table``: the pages of one sequence; ``keys``: its length; ``boxes``: those of a page, of ``rows`` keys each."""

    table: cute.Tensor
    keys: Int32
    boxes: Int32
    rows: int


class Source(NamedTuple):
    """Where tiles of K or V come from, and where to: what ``sm90_tma.tile_copy`` gives of parts of a tile's columns,
    ``(TMA, tile, part)`` → ``(TMA, slot)``, or of boxes of ``rows`` keys and 64 columns, ``(TMA, box of page, column
    block, page)`` → ``(TMA, box of tile, column block of part, slot)``."""

    atom: cute.CopyAtom
    source: cute.Tensor
    target: cute.Tensor
    pages: Pages | None


def rows_atom(op, tensor: cute.Tensor, rows: int, columns: int):
    """Host: ``(TMA atom, coordinate tensor (S, D, H))`` for tiles of ``rows`` × ``columns`` of one head of
    ``[S, H, D]``; ``op`` loads or stores."""
    by_rows = cute.make_tensor(tensor.iterator, cute.select(tensor.layout, mode=[0, 2, 1]))
    smem_tile = cute.slice_(sm90_wgmma.k_major_smem_layout(rows, columns, 1), (None, None, 0))
    return cpasync.make_tiled_tma_atom(op, by_rows, smem_tile, (rows, columns))


def page_boxes(smem: cute.Tensor, rows: int) -> cute.Tensor:
    """Slots ``(tile_n, columns, slot)`` seen as ``(rows, 64, box, column block, slot)``."""
    return cute.local_tile(smem, (rows, BLOCK_COLUMNS), (None, None, None))


@cute.jit
def copy_part(
    tile: Int32,
    part: Int32,
    slot: Int32,
    feed: cutlass.Constexpr,
    barrier,
    tile_n: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
):
    """All copies of part ``part``, of ``columns``, of a tile of ``tile_n`` keys into a slot."""
    if cutlass.const_expr(feed.pages is None):
        cute.copy(feed.atom, feed.source[None, tile, part], feed.target[None, slot], tma_bar_ptr=barrier)
    else:
        blocks = cutlass.const_expr(columns // BLOCK_COLUMNS)
        for box in cutlass.range_constexpr(tile_n // feed.pages.rows):
            page, place = _box(tile * tile_n + box * feed.pages.rows, feed.pages)
            for block in cutlass.range_constexpr(blocks):
                source = feed.source[None, place, part * blocks + block, page]
                cute.copy(feed.atom, source, feed.target[None, box, block, slot], tma_bar_ptr=barrier)


@cute.jit
def _box(first_key: Int32, pages: cutlass.Constexpr):
    """``(page, box of it)`` of the keys from ``first_key`` on; a box behind the last key lies behind page 0."""
    page, place = Int32(0), pages.boxes
    if first_key < pages.keys:
        number = first_key // pages.rows
        column = number // pages.boxes
        page = pages.table[column]
        place = number - column * pages.boxes
    return page, place


@cute.jit
def zero_rows(
    address: Int32, first_row: Int32, lane: Int32, tile_n: cutlass.Constexpr[int], columns: cutlass.Constexpr[int]
):
    """One warp: zeros from ``first_row`` on in a tile at ``address``, and the fence that the tensor cores need to see
    them. Whole rows, so their swizzle is the same."""
    zeros = cute.make_rmem_tensor((4,), Uint32)
    zeros.fill(0)
    for row in cutlass.range(first_row + lane // ROW_VECTORS, tile_n, 32 // ROW_VECTORS, unroll=1):
        for block in cutlass.range_constexpr(columns // BLOCK_COLUMNS):
            at = (block * tile_n + row) * ROW_BYTES + lane % ROW_VECTORS * VECTOR_BYTES
            store_shared(address + at, zeros)
    cute.arch.fence_view_async_shared()
    cute.arch.sync_warp()


@cute.jit
def store_vectors(
    smem: Int32,
    address: Int64,
    row_bytes: Int64,
    rows: Int32,
    thread: Int32,
    threads: cutlass.Constexpr[int],
    tile_rows: cutlass.Constexpr[int],
    columns: cutlass.Constexpr[int],
):
    """The first ``rows`` rows of a ``(tile_rows, columns)`` tile to global memory: row 0 to ``address``, the others
    ``row_bytes`` apart. Neighbours of ``threads`` store neighbouring vectors of a row."""
    vectors = cutlass.const_expr(columns * 2 // VECTOR_BYTES)
    words = cute.make_rmem_tensor((4,), Uint32)
    for step in cutlass.range_constexpr(tile_rows * vectors // threads):
        vector = (step * threads + thread) % vectors
        row = (step * threads + thread) // vectors
        if row < rows:
            block, place = vector // ROW_VECTORS, vector % ROW_VECTORS
            at = (block * tile_rows + row) * ROW_BYTES + (place ^ row % ROW_VECTORS) * VECTOR_BYTES
            load_shared(smem + at, words)
            store_at(address + Int64(row) * row_bytes + Int64(vector * VECTOR_BYTES), words)
