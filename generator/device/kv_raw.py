"""Raw rows of packed pages on their way to shared memory by ``cp.async``, for the warp alone that will work on them.

A bulk copy a row takes one instruction, but an instruction of one lane: a warp that asks for eight rows stands still
for 500 cycles and more. Here 32 lanes copy 16 bytes each, 64 of a row (of four rows 128) at a time, at addresses that
differ by constants. A lane waits for its own copies, so that the warp needs no mbarrier, and a row that is no key
becomes zeros without being read.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from dsv4.generator.device.kv_plain import copy_piece
from dsv4.generator.device.page_rows import KV_BODY_BYTES

PIECE_BYTES = 16


@cute.jit
def ask_for_rows(
    rows: cutlass.Constexpr[int], first_lane: Int32, body: Int64, is_key: Boolean, raw: Int32, lane: Int32
) -> None:
    """Start the copies of ``rows`` (4 or 8) rows to the slot at address ``raw``, as one group.

    Lane ``first_lane`` + r knows where row r begins, a valid address, and whether it is a key. All lanes call, after
    all of them have read what was in the slot.
    """
    keys = Uint32(cute.arch.vote_ballot_sync(is_key))
    copy_part(rows, first_lane, part_of_row(rows, first_lane, body, lane), keys, raw, lane)


@cute.jit
def part_of_row(rows: cutlass.Constexpr[int], first_lane: Int32, body: Int64, lane: Int32) -> Int64:
    """Where this lane's first piece of the row that it copies with others lies."""
    lanes = cutlass.const_expr(32 // rows)  # that share a row
    source = first_lane + lane // lanes
    high = Int64(cute.arch.shuffle_sync(Int32(body >> 32), source)) << 32
    start = high | (Int64(cute.arch.shuffle_sync(Int32(body & Int64(0xFFFFFFFF)), source)) & Int64(0xFFFFFFFF))
    return start + Int64(lane % lanes * PIECE_BYTES)


@cute.jit
def copy_part(
    rows: cutlass.Constexpr[int], first_lane: Int32, start: Int64, keys: Uint32, raw: Int32, lane: Int32
) -> None:
    """:func:`ask_for_rows` with what ``part_of_row`` gave; bit i of ``keys``: lane i knows a key."""
    lanes = cutlass.const_expr(32 // rows)
    row, piece = lane // lanes, lane % lanes
    read_bytes = Int32((keys >> Uint32(first_lane + row)) & Uint32(1)) * PIECE_BYTES
    target = raw + row * KV_BODY_BYTES + piece * PIECE_BYTES
    step = cutlass.const_expr(lanes * PIECE_BYTES)
    for turn in cutlass.range_constexpr(KV_BODY_BYTES // step):
        copy_piece(target + turn * step, start + Int64(turn * step), read_bytes)
    rest = cutlass.const_expr(KV_BODY_BYTES % step)
    if cutlass.const_expr(rest > 0):
        done = cutlass.const_expr(KV_BODY_BYTES - rest)
        if piece < rest // PIECE_BYTES:
            copy_piece(target + done, start + Int64(done), read_bytes)
    cute.arch.cp_async_commit_group()


@cute.jit
def wait_for_rows(later: cutlass.Constexpr[int]) -> None:
    """The rows that the warp asked for are there, but for those of the last ``later`` calls."""
    cute.arch.cp_async_wait_group(later)
    cute.arch.sync_warp()
