"""Packed rows gathered by thirds and dequantised to two places: values to shared memory, keys to tensor memory.

Where keys are the rows of S = K·Qᵀ, K may be an operand A in tensor memory: then shared memory, which is what such a
kernel waits for, does not have to be read for it. A warp feeds 16 keys of a tile (``kv_rows``), which are the 16 lanes
of tensor memory that it reaches for a product of 64 rows (``sm100_half_mma``).

``tcgen05.st.16x256b`` takes of each lane two rows, eight apart, so that a warp needs all of its 16 rows at once. For
that it shall not wait for the memory: its raw slots are thirds of the columns, 192 bytes of each row (three blocks of
64 codes; in the last third one block and the rotary numbers), and each is asked for again as soon as it was read, by
gather4 with boxes of 48 words. Rows lie 192 bytes apart, which like 576 is half of the banks.

Lane l has 16 codes, l mod 4, of a block of rows l/4 and l/4 + 8: neighbouring pieces of V's tile, and in tensor memory
columns 8·i + 2·(l mod 4) and + 1 for its i-th four codes. So group (i, j) of four columns of a block of 64 stands there
at (j, i), and Q lies in the same order (``sm100_few_heads.q_to_shared``).
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import kv_gather4, kv_rows, sm90_ring
from dsv4.generator.device.bulk_rows import load_shared_if, store_shared
from dsv4.generator.device.inline_asm import memory_asm
from dsv4.generator.device.kv_dequant import (
    BLOCK_BYTES,
    CODE_BLOCKS,
    PIECE_BYTES,
    ROW_BYTES,
    TILE_BYTES,
    scale_pair_of,
    scaled_codes,
)
from dsv4.generator.device.page_rows import KV_BODY_BYTES
from dsv4.generator.device.sm100_barriers import init_barriers
from dsv4.generator.device.sm100_half_mma import HALF_LANE
from dsv4.generator.device.sm100_tmem import fence_after_wait, fence_before_arrive, wait_stores

THIRDS = 3
THIRD_BLOCKS = 3
THIRD_BYTES = KV_BODY_BYTES // THIRDS
BOX_WORDS = THIRD_BYTES // 4
GROUP_BYTES = kv_gather4.GROUP_ROWS * THIRD_BYTES
SLOT_BYTES = kv_rows.WARP_KEYS * THIRD_BYTES
CODE_BYTES = 64  # of a block
BLOCK_COLUMNS = 32
"""Of tensor memory, of a block of 64 columns of K."""
assert THIRD_BYTES == THIRD_BLOCKS * CODE_BYTES


@cute.jit
def init_raw_barriers(raw_full: cute.Pointer):
    """Initialises the mbarriers of the raw slots, three for each gathering warp; one thread."""
    init_barriers(raw_full, kv_rows.WARPS * THIRDS, 1)


@dsl_user_op
def _store_rows(address: Int32, words: tuple, *, loc=None, ip=None) -> None:
    """16 rows of tensor memory, 32 columns: of each lane 16 registers. Collective over the warp."""
    operands = [Int32(address).ir_value(loc=loc, ip=ip), *(Uint32(word).ir_value(loc=loc, ip=ip) for word in words)]
    registers = ", ".join(f"${1 + i}" for i in range(len(words)))
    text = f"tcgen05.st.sync.aligned.16x256b.x{len(words) // 4}.b32 [$0], {{{registers}}};"
    memory_asm(operands, text, ",".join("r" * len(operands)), loc, ip)


@cute.jit
def _ask(
    third: cutlass.Constexpr[int], tensor_map: Int64, rows: tuple, keys: Uint32, raw: Int32, full, lane: Int32
) -> None:
    """Start the copies of a third of the warp's rows, four of which at least one is a key at a time, to ``raw``."""
    is_asked = lane < 4 and (keys >> Uint32((lane & 3) * kv_gather4.GROUP_ROWS)) & Uint32(kv_gather4.GROUP_BITS) != 0
    count = cute.arch.popc(cute.arch.vote_ballot_sync(is_asked))
    with cute.arch.elect_one():
        cute.arch.mbarrier_arrive_and_expect_tx(full, count * GROUP_BYTES)
    cute.arch.sync_warp()
    if is_asked:
        kv_gather4.gather_rows(raw + lane * GROUP_BYTES, tensor_map, rows, full.toint(), third * BOX_WORDS)


def _blocks_of(third: int) -> range:
    """The blocks of 64 columns that a third holds, the rotary numbers as the eighth."""
    return range(third * THIRD_BLOCKS, min((third + 1) * THIRD_BLOCKS, CODE_BLOCKS + 1))


def _load(block: int, row: Int32, raw: Int32, wanted: Uint32, lane: Int32) -> tuple:
    """What a lane has of a block of a row in a raw slot: four words of codes, or eight of rotary numbers."""
    first = raw + row * THIRD_BYTES + block % THIRD_BLOCKS * CODE_BYTES
    vector = lane & 3
    if block < CODE_BLOCKS:
        return load_shared_if(first + vector * PIECE_BYTES, wanted)
    halves = [load_shared_if(first + vector * (2 * PIECE_BYTES) + PIECE_BYTES * half, wanted) for half in range(2)]
    return (*halves[0], *halves[1])


def _numbers(block: int, words: tuple, scales: Uint32) -> list:
    """A lane's 16 numbers of a block of a row as bf16, two to a word. ``scales``: the row's, of this block's four."""
    if block == CODE_BLOCKS:
        return list(words)
    factor = scale_pair_of(scales, Int32(block % 4))
    return [half for word in words for half in scaled_codes(word, factor)]


def dequantise_third(
    third: int,
    raw: Int32,
    tile: Int32,
    first_row: Int32,
    columns: Int32,
    keys: Uint32,
    scales: tuple,
    lane: Int32,
) -> None:
    """The 16 rows of a raw slot at ``raw`` to rows ``first_row`` … of the tile at ``tile``, and to tensor memory.

    ``columns``: the address there of the first column of K, with the lane of the first row. Bit r of ``keys``: row r
    counts, else it becomes zeros. ``scales``: those of rows l/4 and l/4 + 8 of lane l, two words each. All lanes call.
    """
    near, vector = lane >> 2, lane & 3
    blocks = _blocks_of(third)
    loaded = []
    for block in blocks:
        for half in range(2):
            wanted = (keys >> Uint32(near + 8 * half)) & Uint32(1)
            loaded.append(_load(block, near + 8 * half, raw, wanted, lane))
    for place, block in enumerate(blocks):
        found = []
        for half in range(2):
            numbers = _numbers(block, loaded[2 * place + half], scales[half][block // 4])
            found.append(numbers)
            start = tile + block * BLOCK_BYTES + (first_row + near + 8 * half) * ROW_BYTES
            for side in range(2):
                piece = cute.make_rmem_tensor((4,), Uint32)
                for i in range(4):
                    piece[i] = numbers[4 * side + i]
                store_shared(start + ((2 * vector + side) ^ near) * PIECE_BYTES, piece)
        words = [found[half][2 * i + e] for i in range(4) for half in range(2) for e in range(2)]
        _store_rows(columns + block * BLOCK_COLUMNS, tuple(words))


@cute.jit
def feed(
    segments: cutlass.Constexpr,
    matrices: cutlass.Constexpr,
    first_tile: Int32,
    last_tile: Int32,
    raw: cute.Pointer,
    ring: cutlass.Constexpr,
    barriers: cutlass.Constexpr,
    keys_tmem: Int32,
    warp: Int32,
    lane: Int32,
    slots: cutlass.Constexpr[int],
):
    """Gathering warp ``warp`` of four, the CTA's first: ``kv_gather4.feed``, and K of each tile to ``keys_tmem``.

    Matrices' boxes are of ``BOX_WORDS``. ``raw`` points to the warp's three raw slots, a multiple of 128.
    """
    raw_address, full = raw.toint(), barriers.raw_full + warp * THIRDS
    keys_address = ring.keys.iterator.toint()
    slot, phase, raw_phase = Int32(0), Int32(0), Int32(0)
    row = kv_rows.load_row(segments, first_tile, last_tile, warp, lane)
    number, tail = kv_gather4.locate(segments, matrices, first_tile, row)
    low, high = kv_rows.load_scales(tail, row >= 0)
    keys = Uint32(cute.arch.vote_ballot_sync(row >= 0))
    rows = kv_gather4.group_of(number, lane)
    tensor_map = kv_gather4.map_of(segments, matrices, first_tile)
    for third in cutlass.range_constexpr(THIRDS):
        _ask(third, tensor_map, rows, keys, raw_address + third * SLOT_BYTES, full + third, lane)
    entry = kv_rows.load_entry(segments, first_tile + 1, last_tile, warp, lane)
    for tile in cutlass.range(first_tile, last_tile, unroll=1):
        next_row = kv_rows.row_of(segments, tile + 1, entry, warp, lane)
        number, tail = kv_gather4.locate(segments, matrices, tile + 1, next_row)
        next_low, next_high = kv_rows.load_scales(tail, next_row >= 0)
        next_keys = Uint32(cute.arch.vote_ballot_sync(next_row >= 0))
        rows = kv_gather4.group_of(number, lane)
        tensor_map = kv_gather4.map_of(segments, matrices, tile + 1)
        entry = kv_rows.load_entry(segments, tile + 2, last_tile, warp, lane)
        scales = tuple(
            tuple(cute.arch.shuffle_sync(word, (lane >> 2) + 8 * half) for word in (low, high)) for half in range(2)
        )
        # With the products of the slot's last tile, its S among them, K there is read no more.
        cute.arch.mbarrier_wait(barriers.empty + slot, phase ^ 1)
        fence_after_wait()
        tile_address = keys_address + slot * TILE_BYTES
        columns = keys_tmem + (2 * warp + slot) * HALF_LANE
        for third in cutlass.range_constexpr(THIRDS):
            own_raw = raw_address + third * SLOT_BYTES
            cute.arch.mbarrier_wait(full + third, raw_phase)
            first_row = warp * kv_rows.WARP_KEYS
            dequantise_third(third, own_raw, tile_address, first_row, columns, keys, scales, lane)
            wait_stores()
            cute.arch.sync_warp()
            _ask(third, tensor_map, rows, next_keys, own_raw, full + third, lane)
        fence_before_arrive()
        kv_rows.pass_on(keys, ring, barriers, slot, warp, lane)
        keys, low, high = next_keys, next_low, next_high
        slot, phase = sm90_ring.next_position(slot, phase, slots)
        raw_phase ^= 1
