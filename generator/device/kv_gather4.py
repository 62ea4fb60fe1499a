"""Raw rows of packed pages asked for four at a time: TMA's ``tile::gather4``, which chips from sm_100 on have.

A pool whose page stride is a multiple of a row's 576 bytes is one matrix of such rows to the copy engine: row r of
page p is its row p · (stride / 576) + r, and what lies between the pages, the scales among it, are rows that nobody
asks for. A row of the matrix is 144 words, so that one box holds it whole, and without a swizzle four rows lie one
behind the other in shared memory, where ``cp.async.bulk`` puts them too: all that reads them is that of ``kv_feed``.

Lane i of a warp stands for its key i. Four neighbouring keys are a group, and one lane asks for the group's rows: a row
that is no key has coordinate −1, outside the matrix, and becomes zeros without being read. A group without a key is not
asked for at all, so that nothing is on its way when there are no more tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import cute_nvgpu
from cutlass.cute.nvgpu import cpasync
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import kv_rows, sm90_ring
from dsv4.generator.device.inline_asm import memory_asm
from dsv4.generator.device.kv_dequant import TILE_BYTES
from dsv4.generator.device.kv_dequant_rows import dequantise_rows
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_TAIL_BYTES, row_addresses

GROUP_ROWS = 4
GROUP_BYTES = GROUP_ROWS * KV_BODY_BYTES
SLOT_GROUPS = kv_rows.SLOT_ROWS // GROUP_ROWS
GROUP_BITS = (1 << GROUP_ROWS) - 1
BOX_WORDS = KV_BODY_BYTES // 4
"""Of 32 bits: a box has at most 256 elements, and bytes would take three boxes a row."""
NO_ROW = -1


class Matrix(NamedTuple):
    """A pool as the copy engine sees it: the address of its tensor map, and rows of 576 bytes from page to page."""

    tensor_map: Int64
    page_rows: Int32


def pool_atom(pool: cute.Tensor, page: Int32, box_words: int = BOX_WORDS) -> cute.CopyAtom:
    """Host: the atom that holds the tensor map of ``pool``, u8 [pages, page bytes] with ``page`` rows a page.

    Its stride is a multiple of 576. The map ends with the last row of the last page. ``box_words``: of a row at a time.
    """
    rows = Int64(pool.shape[0] - 1) * (Int64(pool.stride[0]) // KV_BODY_BYTES) + Int64(page)
    words = cute.make_tensor(
        cute.recast_ptr(pool.iterator, dtype=Int32),
        cute.make_layout((rows, BOX_WORDS), stride=(BOX_WORDS, 1)),
    )
    # The copies themselves are written below: the atom is but the map, and that of a tile of one row is gather4's too.
    one_row = cute.make_layout((1, box_words), stride=(box_words, 1))
    atom, _ = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), words, one_row, (1, box_words))
    return atom


@cute.jit
def matrix_of(atom: cute.CopyAtom, pool: cute.Tensor, full: cute.Pointer) -> Matrix:
    """Device: what the gathering warps know of a pool whose map ``pool_atom`` made. ``full``: any mbarrier."""
    return Matrix(map_address(atom, full), Int32(Int64(pool.stride[0]) // KV_BODY_BYTES))


@dsl_user_op
def map_address(atom: cute.CopyAtom, full: cute.Pointer, *, loc=None, ip=None) -> Int64:
    """The generic address of an atom's tensor map. Only an atom with a barrier tells it, any one: ``full``."""
    pointer_type = ir.Type.parse("!cute.ptr<!cute_nvgpu.tma_descriptor_tiled, generic, align<64>>")
    copy = atom._trait.with_(tma_bar_ptr=full, loc=loc, ip=ip)
    pointer = cute_nvgpu.get_tma_desc_addr(pointer_type, copy.value, loc=loc, ip=ip)
    return Int64(pointer.toint(loc=loc, ip=ip))


@dsl_user_op
def gather_rows(
    target: Int32,
    tensor_map: Int64,
    rows: tuple[Int32, Int32, Int32, Int32],
    barrier: Int32,
    first_word: int = 0,
    *,
    loc=None,
    ip=None,
) -> None:
    """Start the copy of four rows of a matrix, a box each from ``first_word`` on, to ``target``, a multiple of 128.

    Rows outside the matrix become zeros and count too: the mbarrier at ``barrier`` expects four boxes.
    """
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int64(tensor_map).ir_value(loc=loc, ip=ip),
        *(Int32(number).ir_value(loc=loc, ip=ip) for number in (first_word, *rows)),
        Int32(barrier).ir_value(loc=loc, ip=ip),
    ]
    form = "cp.async.bulk.tensor.2d.shared::cta.global.tile::gather4.mbarrier::complete_tx::bytes"
    memory_asm(operands, form + " [$0], [$1, {$2, $3, $4, $5, $6}], [$7];", "r,l,r,r,r,r,r,r", loc, ip)


@cute.jit
def locate(segments: cutlass.Constexpr, matrices: cutlass.Constexpr, tile: Int32, row: Int32) -> tuple[Int32, Int64]:
    """The matrix's row that ``row`` (from ``kv_rows.row_of`` for ``tile``) is, and the address of its scales.

    For no row ``NO_ROW``, and an address that means nothing.
    """
    number, tail = Int32(NO_ROW), Int64(0)
    if cutlass.const_expr(len(segments) == 1):
        number, tail = _located(segments[0], matrices[0], row)
    else:
        if tile < kv_rows.tiles_of(segments[0].keys):
            number, tail = _located(segments[0], matrices[0], row)
        else:
            number, tail = _located(segments[1], matrices[1], row)
    if row < 0:
        number = Int32(NO_ROW)
    return number, tail


@cute.jit
def _located(segment: cutlass.Constexpr, matrix: cutlass.Constexpr, row: Int32) -> tuple[Int32, Int64]:
    page, offset = kv_rows.page_and_offset(row, segment.page)
    _, tail = row_addresses(segment.pool, Int64(row), segment.page, KV_BODY_BYTES, KV_TAIL_BYTES)
    return page * matrix.page_rows + offset, tail


@cute.jit
def map_of(segments: cutlass.Constexpr, matrices: cutlass.Constexpr, tile: Int32) -> Int64:
    """The tensor map of the pool that ``tile``'s keys lie in."""
    tensor_map = matrices[0].tensor_map
    if cutlass.const_expr(len(segments) == 2):
        first_tiles = kv_rows.tiles_of(segments[0].keys)
        tensor_map = tensor_map if tile < first_tiles else matrices[1].tensor_map
    return tensor_map


@cute.jit
def group_of(number: Int32, lane: Int32) -> tuple[Int32, Int32, Int32, Int32]:
    """The four rows of group ``lane`` mod 4, of whose keys four lanes have a ``number`` each. All lanes call."""
    first = (lane & 3) * GROUP_ROWS
    one, two, three, four = (cute.arch.shuffle_sync(number, first + place) for place in range(GROUP_ROWS))
    return one, two, three, four


@cute.jit
def ask_for_slot(
    part: cutlass.Constexpr[int], tensor_map: Int64, rows: tuple, keys: Uint32, raw: Int32, full, lane: Int32
) -> None:
    """Start the copies of slot ``part``'s groups in which there is a key, to the slot at ``raw``.

    ``rows``: what ``group_of`` gave; bit i of ``keys``: whether the warp's key i is one. ``full`` counts the bytes. All
    lanes of the warp call, after all of them have read what was in the slot.
    """
    is_asked = lane // SLOT_GROUPS == part and (keys >> Uint32(lane * GROUP_ROWS)) & Uint32(GROUP_BITS) != 0
    count = cute.arch.popc(cute.arch.vote_ballot_sync(is_asked))
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full, count * GROUP_BYTES)
    cute.arch.sync_warp()
    if is_asked:
        gather_rows(raw + lane % SLOT_GROUPS * GROUP_BYTES, tensor_map, rows, full.toint())


@cute.jit
def feed(
    segments: cutlass.Constexpr,
    matrices: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` of four: ``kv_feed.feed`` with its rows asked for in groups.

    ``matrices``: one for each of ``segments``. ``raw`` points to the warp's two slots of raw rows, a multiple of 128.
    """
    raw_address, full = raw.toint(), barriers.raw_full + warp * kv_rows.SLOTS
    keys_address = ring.keys.iterator.toint()
    slot, phase, raw_phase = Int32(0), Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane)
    number, tail = locate(segments, matrices, first_tile, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
    rows = group_of(number, lane)
    tensor_map = map_of(segments, matrices, first_tile)
    for part in cutlass.range_constexpr(kv_rows.SLOTS):
        ask_for_slot(part, tensor_map, rows, keys, raw_address + part * kv_rows.SLOT_BYTES, full + part, lane)
    entry = kv_rows.load_entry(segments, first_tile + 1, last_tile, warp, lane)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.row_of(segments, tile + 1, entry, warp, lane)
        number, tail = locate(segments, matrices, tile + 1, next_row)
        next_low, next_high = kv_rows.load_scales(tail, next_row >= 0)
        next_keys = Uint32(cute.arch.vote_ballot_sync(next_row >= 0))
        rows = group_of(number, lane)
        tensor_map = map_of(segments, matrices, tile + 1)
        entry = kv_rows.load_entry(segments, tile + 2, last_tile, warp, lane)
        cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
        tile_address = keys_address + slot * TILE_BYTES
        for part in cutlass.range_constexpr(kv_rows.SLOTS):
            own_raw = raw_address + part * kv_rows.SLOT_BYTES
            cute.arch.mbarrier_wait(full + part, raw_phase)
            first_row = warp * kv_rows.WARP_KEYS + part * kv_rows.SLOT_ROWS
            dequantise_rows(
                *(kv_rows.SLOT_ROWS, own_raw, tile_address, first_row, part * kv_rows.SLOT_ROWS, keys, low, high, lane),
                4,
            )
            cute.arch.sync_warp()
            ask_for_slot(part, tensor_map, rows, next_keys, own_raw, full + part, lane)
        kv_rows.pass_on(keys, ring, barriers, slot, warp, lane)
        keys, low, high = next_keys, next_low, next_high
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        raw_phase ^= 1
