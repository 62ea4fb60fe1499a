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

from cutlass import Int32, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.inline_asm import pure_asm
from dsv4.generator.device.kv_rows import TILE_KEYS
from dsv4.generator.device.page_rows import KV_BODY_BYTES, KV_CODES

PIECE_BYTES = 16
ROW_BYTES = 128  # of one block of 64 columns
BLOCK_BYTES = TILE_KEYS * ROW_BYTES
TILE_BYTES = 8 * BLOCK_BYTES
CODE_BLOCKS = KV_CODES // 64
ROTARY_PIECES = (KV_BODY_BYTES - KV_CODES) // PIECE_BYTES
assert (ROTARY_PIECES, CODE_BLOCKS) == (8, 7)


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


@dsl_user_op
def scale_pair_of(scales: Uint32, number: Int32, *, loc=None, ip=None) -> Uint32:
    """Byte ``number`` (0 … 3) of ``scales``, an E8M0 code, as two equal bf16: 2^(code − 127), NaN for 255.

    Code 0 is subnormal. Seven instructions: both ends of the codes have bit 6 of the mantissa set.
    """
    text = (
        "{\n\t.reg .b32 byte, code, next, bits, special;\n\t.reg .pred end;\n\t"
        "or.b32 byte, $2, 0x4440;\n\tprmt.b32 code, $1, 0, byte;\n\t"
        "add.u32 next, code, 1;\n\tand.b32 next, next, 0xFE;\n\tsetp.eq.u32 end, next, 0;\n\t"  # 0 and 255
        "shl.b32 bits, code, 7;\n\tor.b32 special, bits, 0x40;\n\tselp.b32 bits, special, bits, end;\n\t"
        "prmt.b32 $0, bits, 0, 0x1010;\n\t}"
    )
    operands = [Uint32(scales).ir_value(loc=loc, ip=ip), Int32(number).ir_value(loc=loc, ip=ip)]
    return Uint32(pure_asm(T.i32(), operands, text, "=r,r,r", loc, ip))
