"""Rows of bf16 gathered by one warp straight to where the tensor cores read them; see ``kv_rows`` for rows of codes.

A row of 512 numbers is 64 pieces of 16 bytes, which ``cp.async`` puts to their places in the swizzled tile (see
``kv_dequant``): neighbouring lanes take neighbouring pieces. A row that is no key becomes zeros without being read.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device import kv_rows
from dsv4.generator.device.inline_asm import memory_asm
from dsv4.generator.device.kv_dequant import BLOCK_BYTES, PIECE_BYTES, ROW_BYTES

ROW_PIECES = 64


@dsl_user_op
def copy_piece(target: Int32, source: Int64, read_bytes: Int32, *, loc=None, ip=None) -> None:
    """Start the copy of 16 bytes to shared memory: ``read_bytes`` (16 or 0) from ``source``, the others are zeros."""
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int64(source).ir_value(loc=loc, ip=ip),
        Int32(read_bytes).ir_value(loc=loc, ip=ip),
    ]
    text = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
    memory_asm(operands, text, "r,l,r", loc, ip)


@cute.jit
def gather_rows(
    address: Int64,
    row: Int32,
    tile: Int32,
    warp: Int32,
    lane: Int32,
    warp_keys: cutlass.Constexpr[int] = kv_rows.WARP_KEYS,
) -> None:
    """Start the copies of ``warp_keys`` (8 or 16) rows of a tile at address ``tile``; one group of ``cp.async``.

    Lane i below that says where row warp_keys · warp + i lies, and whether it is a key (``row`` ≥ 0). All lanes call.
    """
    low, high = Int32(address & Int64(0xFFFFFFFF)), Int32(address >> 32)
    size = Int32(16) if row >= 0 else Int32(0)
    block, piece = lane >> 3, lane & 7
    for own in cutlass.range_constexpr(warp_keys):
        start = (Int64(cute.arch.shuffle_sync(high, own)) << 32) | (
            Int64(cute.arch.shuffle_sync(low, own)) & Int64(0xFFFFFFFF)
        )
        read_bytes = cute.arch.shuffle_sync(size, own)
        place = tile + (warp * warp_keys + own) * ROW_BYTES + (piece ^ (own & 7)) * PIECE_BYTES
        for half in cutlass.range_constexpr(2):
            target = place + (block + 4 * half) * BLOCK_BYTES
            copy_piece(target, start + Int64((half * 32 + lane) * PIECE_BYTES), read_bytes)
    cute.arch.cp_async_commit_group()


@cute.jit
def row_address(segments: cutlass.Constexpr, tile: Int32, row: Int32) -> Int64:
    """Where ``row`` (from ``kv_rows.load_row`` for ``tile``) begins; the beginning of the rows for one that is none."""
    number = Int64(cutlass.max(row, 0))
    first = segments[0].pool
    start = first.iterator.toint() + number * Int64(first.stride[0]) * 2
    if cutlass.const_expr(len(segments) == 2):
        second = segments[1].pool
        if tile >= kv_rows.tiles_of(segments[0].keys):
            start = second.iterator.toint() + number * Int64(second.stride[0]) * 2
    return start
