"""tcgen05.mma of 64 rows on sm_100, which take half of the lanes of tensor memory: two such matrices share columns.

With 64 rows and one CTA, row r of D (and of an A in tensor memory) lies in lane 32·(r / 16) + r mod 16 + 16·h, where
h, 0 or 1, is chosen by the lane of the address (PTX ISA, tcgen05 data path layout F). So each warp of a warpgroup
reaches 16 rows of two matrices: thread t has row 16·(t / 32) + t mod 16 of the matrix h = t / 16 mod 2.

Operands in shared memory are bf16 in blocks of 64 columns, each rows x 128 bytes, whose 16-byte pieces stand at
(piece ^ row mod 8). What is K-major in one product can be MN-major in the next one: keys are values.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Boolean, Float32, Int32, Int64
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm, nvvm
from cutlass.cutlass_dsl import dsl_user_op
from cutlass.experimental.primitives import Tcgen05InstrDesc, Tcgen05SmemDesc

ROWS = 64
K_ELEMENTS = 16
"""bf16 along K of one instruction."""
K_COLUMNS = K_ELEMENTS // 2
"""Columns of tensor memory that they take in an A there: two to a column."""
HALF_LANE = 16 << 16
"""From the first to the second matrix in the same columns, as a distance of addresses."""

ROW_BYTES = 128
GROUP_BYTES = 8 * ROW_BYTES
"""Eight rows, after which the swizzle repeats."""
SWIZZLE_128 = 2
TENSOR_MEMORY = 6  # address space


def row_of(thread: Int32) -> Int32:
    """The row that a thread (0 … 127) of a warpgroup has, of both matrices."""
    return (thread >> 5) * 16 + (thread & 15)


def half_of(thread: Int32) -> Int32:
    """Which of the two matrices the thread's lane belongs to."""
    return (thread >> 4) & 1


def instruction(columns: int, *, transposed_b: bool) -> Int32:
    """The instruction descriptor of 64 x ``columns`` x 16: bf16 operands, float32 sums; B is K-major or MN-major."""
    return Tcgen05InstrDesc.build(
        a_dtype=BFloat16, b_dtype=BFloat16, c_dtype=Float32, b_major=int(transposed_b), n_dim=columns, m_dim=ROWS
    )


def k_major(address: Int32) -> Int64:
    """The descriptor of an operand with K contiguous, from the shared address of its first row on."""
    return Tcgen05SmemDesc.build(
        address, leading_byte_offset=16, stride_byte_offset=GROUP_BYTES, layout=SWIZZLE_128
    )  # the leading offset is not used


def mn_major(address: Int32, block_bytes: int) -> Int64:
    """The descriptor of an operand with M or N contiguous: the next 64 lie ``block_bytes`` further, K 8 … 15 in the
    next group of rows."""
    return Tcgen05SmemDesc.build(
        address, leading_byte_offset=block_bytes, stride_byte_offset=GROUP_BYTES, layout=SWIZZLE_128
    )


@dsl_user_op
def multiply(
    group, d: Int32, a, a_in_tmem: bool, b: Int64, instruction: Int32, accumulate: Boolean, *, loc=None, ip=None
):
    """D (+)= A·Bᵀ by the CTAs of ``group`` (``nvvm.CTAGroupKind``), A by descriptor or in tensor memory. One thread."""
    pointer = ir.Type.parse(f"!llvm.ptr<{TENSOR_MEMORY}>")
    target = llvm.inttoptr(pointer, Int32(d).ir_value(loc=loc, ip=ip), loc=loc, ip=ip)
    if a_in_tmem:
        first = llvm.inttoptr(pointer, Int32(a).ir_value(loc=loc, ip=ip), loc=loc, ip=ip)
    else:
        first = Int64(a).ir_value(loc=loc, ip=ip)
    nvvm.tcgen05_mma(
        nvvm.Tcgen05MMAKind.F16,
        group,
        target,
        first,
        Int64(b).ir_value(loc=loc, ip=ip),
        Int32(instruction).ir_value(loc=loc, ip=ip),
        Boolean(accumulate).ir_value(loc=loc, ip=ip),
        loc=loc,
        ip=ip,
    )


def multiply_shared(d: Int32, a: Int64, b: Int64, instruction: Int32, accumulate) -> None:
    """D (+)= A·Bᵀ with descriptors of A and B. ``d`` is the address of D in tensor memory. For one thread."""
    multiply(nvvm.CTAGroupKind.CTA_1, d, a, False, b, instruction, accumulate)


def multiply_tmem(d: Int32, a: Int32, b: Int64, instruction: Int32, accumulate) -> None:
    """The same with A in tensor memory, in the half of the lanes that D is in."""
    multiply(nvvm.CTAGroupKind.CTA_1, d, a, True, b, instruction, accumulate)


@dsl_user_op
def _load_row(shape: str, address: Int32, columns: int, *, loc=None, ip=None) -> tuple:
    row = ", ".join(["i32"] * columns)
    result = ir.Type.parse(f"!llvm.struct<({row})>")
    registers = ", ".join(f"${i}" for i in range(columns))
    second = f", {columns}" if shape == "16x32bx2" else ""  # where the second half of the lanes' columns begin
    text = (
        f"tcgen05.ld.sync.aligned.{shape}.x{columns}.b32 {{{registers}}}, [${columns}]{second};\n\t"
        "tcgen05.wait::ld.sync.aligned;"
    )
    found = llvm.inline_asm(
        result, [Int32(address).ir_value(loc=loc, ip=ip)], text, "=r," * columns + "r,~{memory}", has_side_effects=True,
        is_align_stack=False, asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip
    element = ir.IntegerType.get_signless(32)
    words = [llvm.extractvalue(element, found, [i], loc=loc, ip=ip) for i in range(columns)]
    return tuple(Float32(llvm.bitcast(Float32.mlir_type, word, loc=loc, ip=ip)) for word in words)


@cute.jit
def load_split_row(address: Int32, values: cute.Tensor) -> None:
    """Half a row of a matrix of 2·n columns to each thread: ``values`` (n,) float32, columns n·h … of row ``row_of``.

    ``address`` is the matrix's, with the lane of the warp's first row. Collective over the warp, and waited for.
    """
    words = _load_row("16x32bx2", address, cutlass.const_expr(cute.size(values)))
    for i in cutlass.range_constexpr(cute.size(values)):
        values[i] = words[i]


@cute.jit
def load_lane(address: Int32, values: cute.Tensor) -> None:
    """The columns from ``address`` on of the thread's own lane: ``values`` (n,) float32. ``address`` has the lane of
    the warp's first row. Collective over the warp, and waited for."""
    words = _load_row("32x32b", address, cutlass.const_expr(cute.size(values)))
    for i in cutlass.range_constexpr(cute.size(values)):
        values[i] = words[i]
