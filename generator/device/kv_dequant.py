"""Raw rows of a packed page in shared memory turned into the bf16 keys that the tensor cores read.

A row is 448 E4M3 codes, whose scales are E8M0, and 64 rotary numbers that are bf16 already (dsv4-reference §4.4). It
becomes row k of a tile of 64 x 512 in ``sm90_wgmma.k_major_smem_layout``: eight blocks of 64 columns, each 64 rows of
128 bytes, whose 16-byte pieces stand at (piece ^ row mod 8). Value = bf16(code) · bf16(scale), rounded to bf16, which
is exact but for numbers under the normal ones.

A lane takes 16 codes, two neighbouring pieces, and eight lanes that follow one another take the same block of two
neighbouring rows: those lie 576 bytes apart, which is half of the banks, and their pieces of even and of odd number
change places from row to row. So neither loads nor stores of a quarter warp meet in a bank.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.bulk_rows import load_shared, store_shared
from dsv4.generator.device.e8m0 import NAN_CODE
from dsv4.generator.device.inline_asm import pure_asm
from dsv4.generator.device.kv_rows import SLOT_BYTES, SLOT_ROWS, TILE_KEYS
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES

PIECE_BYTES = 16
ROW_BYTES = 128  # of one block of 64 columns
BLOCK_BYTES = TILE_KEYS * ROW_BYTES
TILE_BYTES = 8 * BLOCK_BYTES
CODE_BLOCKS = KV_CODES // 64
ROTARY_PIECES = (KV_BODY_BYTES - KV_CODES) // PIECE_BYTES
assert (SLOT_ROWS, ROTARY_PIECES, CODE_BLOCKS) == (8, 8, 7)


@dsl_user_op
def scaled_codes(codes: Uint32, scales: Uint32, *, loc=None, ip=None) -> tuple[Uint32, Uint32]:
    """Four E4M3 codes as bf16, times the two bf16 in ``scales`` (equal ones): the first two codes, the last two."""
    text = (
        "{\n\t.reg .b16 low, high, h0, h1, h2, h3;\n\t.reg .b32 pair0, pair1, wide0, wide1;\n\t"
        ".reg .f32 f0, f1, f2, f3;\n\t"
        "mov.b32 {low, high}, $2;\n\t"
        "cvt.rn.f16x2.e4m3x2 pair0, low;\n\tcvt.rn.f16x2.e4m3x2 pair1, high;\n\t"
        "mov.b32 {h0, h1}, pair0;\n\tmov.b32 {h2, h3}, pair1;\n\t"
        "cvt.f32.f16 f0, h0;\n\tcvt.f32.f16 f1, h1;\n\tcvt.f32.f16 f2, h2;\n\tcvt.f32.f16 f3, h3;\n\t"
        "cvt.rn.bf16x2.f32 wide0, f1, f0;\n\tcvt.rn.bf16x2.f32 wide1, f3, f2;\n\t"
        "mul.bf16x2 $0, wide0, $3;\n\tmul.bf16x2 $1, wide1, $3;\n\t}"
    )
    two = ir.Type.parse("!llvm.struct<(i32, i32)>")
    operands = [Uint32(value).ir_value(loc=loc, ip=ip) for value in (codes, scales)]
    result = pure_asm(two, operands, text, "=r,=r,r,r", loc, ip)
    first, second = (Uint32(llvm.extractvalue(T.i32(), result, [i], loc=loc, ip=ip)) for i in range(2))
    return first, second


@cute.jit
def scale_pair(code: Uint32) -> Uint32:
    """An E8M0 code (0 … 255) as two equal bf16: 2^(code − 127), of which code 0 is subnormal; NaN for 255."""
    bits = code << Uint32(7)
    bits = Uint32(0x0040) if code == Uint32(0) else bits
    bits = Uint32(0x7FC0) if code == Uint32(NAN_CODE) else bits
    return bits | (bits << Uint32(16))


@cute.jit
def dequantise_slot(
    slot: cutlass.Constexpr[int],
    raw: Int32,
    tile: Int32,
    first_row: Int32,
    keys: Uint32,
    low: Uint32,
    high: Uint32,
    lane: Int32,
) -> None:
    """The eight rows of a raw slot, to rows ``first_row`` … + 7 (a multiple of 8) of the tile at address ``tile``.

    ``raw`` is the address of the warp's slots; bit i of ``keys`` says whether lane i's key counts, ``low`` and ``high``
    are its scales: those of row r of the slot are lane 8·slot + r's. A row that does not count becomes zeros, whatever
    lies in the slot. All lanes of the warp call.
    """
    quarter, odd, vector = lane >> 3, (lane >> 2) & 1, lane & 3
    source = raw + slot * SLOT_BYTES + odd * KV_BODY_BYTES + quarter * 64 + vector * PIECE_BYTES
    target = tile + quarter * BLOCK_BYTES + (first_row + odd) * ROW_BYTES + ((2 * vector) ^ odd) * PIECE_BYTES
    counts = keys >> Uint32(slot * SLOT_ROWS + odd)
    for pair in cutlass.range_constexpr(SLOT_ROWS // 2):
        for half in cutlass.range_constexpr(2):  # blocks 0 … 3, then 4 … 6
            scales = cute.arch.shuffle_sync(low if half == 0 else high, slot * SLOT_ROWS + 2 * pair + odd)
            if quarter + 4 * half < CODE_BLOCKS:
                codes = cute.make_rmem_tensor((4,), Uint32)
                codes.fill(0)
                factor = Uint32(0)
                if counts & Uint32(1 << (2 * pair)) != Uint32(0):
                    load_shared(source + 2 * pair * KV_BODY_BYTES + half * 256, codes)
                    factor = scale_pair((scales >> Uint32(8 * quarter)) & Uint32(0xFF))
                for side in cutlass.range_constexpr(2):
                    piece = cute.make_rmem_tensor((4,), Uint32)
                    piece[0], piece[1] = scaled_codes(codes[2 * side], factor)
                    piece[2], piece[3] = scaled_codes(codes[2 * side + 1], factor)
                    place = target ^ ((2 * pair) ^ side) * PIECE_BYTES
                    store_shared(place + 4 * half * BLOCK_BYTES + 2 * pair * ROW_BYTES, piece)
    rotary_block = tile + CODE_BLOCKS * BLOCK_BYTES + first_row * ROW_BYTES
    rotary_source = raw + slot * SLOT_BYTES + KV_CODES
    for half in cutlass.range_constexpr(SLOT_ROWS * ROTARY_PIECES // 32):
        number = half * 32 + lane
        own_row, own_piece = number >> 3, number & 7  # eight pieces a row
        numbers = cute.make_rmem_tensor((4,), Uint32)
        numbers.fill(0)
        if (keys >> Uint32(slot * SLOT_ROWS + own_row)) & Uint32(1) != Uint32(0):
            load_shared(rotary_source + own_row * KV_BODY_BYTES + own_piece * PIECE_BYTES, numbers)
        store_shared(rotary_block + own_row * ROW_BYTES + (own_piece ^ own_row) * PIECE_BYTES, numbers)
