"""Blocks of 8 x 8 bf16 stored to shared memory with rows and columns changed, from registers of an accumulator."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Int32, Uint32
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device.inline_asm import memory_asm

PIECE_BYTES, ROW_BYTES = 16, 128


@dsl_user_op
def store_two_blocks(address: Int32, first: Uint32, second: Uint32, *, loc=None, ip=None) -> None:
    """Row r of the transposed ``first`` block to the 16 bytes at lane r's ``address``, of ``second`` at lane 8 + r's.

    A block lies in a warp as one of an accumulator does: lane l has row l/4, columns 2·(l mod 4) and + 1. All lanes
    call (PTX ISA, "stmatrix").
    """
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        Uint32(first).ir_value(loc=loc, ip=ip),
        Uint32(second).ir_value(loc=loc, ip=ip),
    ]
    text = "stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [$0], {$1, $2};"
    memory_asm(operands, text, "r,r,r", loc, ip)


@cute.jit
def store_transposed(acc: cute.Tensor, tile: Int32, thread: Int32) -> None:
    """An accumulator fragment of 64 x N as bf16 to the tile of N rows x 64 columns at address ``tile``.

    A row is 128 bytes, whose 16-byte pieces stand at (piece ^ row mod 8): ``sm90_wgmma.k_major_smem_layout(N, 64, 1)``.
    ``thread``: of the warpgroup.
    """
    narrow = cute.make_rmem_tensor(acc.layout, BFloat16)
    narrow.store(acc.load().to(BFloat16))
    pairs = cute.recast_tensor(narrow, Uint32)  # ((1, 2 row halves, blocks), 1, 1)
    row, piece = thread & 7, thread // 32 * 2 + (thread >> 3 & 1)
    place = tile + row * ROW_BYTES + (piece ^ row) * PIECE_BYTES
    for block in cutlass.range_constexpr(cute.size(acc) // 4):
        store_two_blocks(place + block * 8 * ROW_BYTES, pairs[(0, 0, block), 0, 0], pairs[(0, 1, block), 0, 0])
