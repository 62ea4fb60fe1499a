"""Rows of bytes from global to shared memory, each by a copy of its own of the bulk copy engine, and vectors there.

``cp.async.bulk`` takes 16 bytes and more of one row from any lane, without a descriptor: what a gather needs on a chip
that has no gather mode. Addresses are numbers: 64 bits in global memory, 32 bits in the CTA's shared memory.
"""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.inline_asm import memory_asm, reading_asm


@dsl_user_op
def copy_row(target: Int32, source: Int64, row_bytes: int, barrier: Int32, *, loc=None, ip=None) -> None:
    """Start the copy of ``row_bytes`` (a multiple of 16) from ``source`` to ``target``, both multiples of 16.

    The bytes count on the mbarrier at ``barrier``, which expects them. Nothing that other threads do with ``target``
    may still be under way: a barrier has to lie between.
    """
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int64(source).ir_value(loc=loc, ip=ip),
        Int32(row_bytes).ir_value(loc=loc, ip=ip),
        Int32(barrier).ir_value(loc=loc, ip=ip),
    ]
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
    memory_asm(operands, text, "r,l,r,r", loc, ip)


@dsl_user_op
def copy_to_cta(target: Int32, source: Int32, count: int, barrier: Int32, *, loc=None, ip=None) -> None:
    """Start the copy of ``count`` bytes (a multiple of 16) from this CTA's shared memory to that of another one.

    ``target`` and ``barrier`` (where the bytes count) are ``shared::cluster`` addresses in that CTA, which has begun
    and does not end before the bytes are there. What threads wrote to ``source`` needs a proxy fence of theirs before.
    """
    operands = [
        Int32(target).ir_value(loc=loc, ip=ip),
        Int32(source).ir_value(loc=loc, ip=ip),
        Int32(count).ir_value(loc=loc, ip=ip),
        Int32(barrier).ir_value(loc=loc, ip=ip),
    ]
    text = "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
    memory_asm(operands, text, "r,r,r,r", loc, ip)


@dsl_user_op
def send_word(address: Int32, word: Uint32, barrier: Int32, *, loc=None, ip=None) -> None:
    """Store 32 bits in another CTA's shared memory; they count on the mbarrier at ``barrier``.

    Both are ``shared::cluster`` addresses in that CTA, which has begun and does not end before the bytes are there.
    """
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        Uint32(word).ir_value(loc=loc, ip=ip),
        Int32(barrier).ir_value(loc=loc, ip=ip),
    ]
    text = "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [$0], $1, [$2];"
    memory_asm(operands, text, "r,r,r", loc, ip)


@cute.jit
def shared_vector(address: Int32) -> cute.Tensor:
    """A view of the 16 bytes of shared memory at ``address``, as four Uint32."""
    pointer = cute.make_ptr(Uint32, address, cute.AddressSpace.smem, assumed_align=16)
    return cute.make_tensor(pointer, cute.make_layout(4))


@cute.jit
def load_shared(address: Int32, registers: cute.Tensor) -> None:
    """Load 16 bytes at ``address`` into four 32-bit registers."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyS2ROp(), Uint32, num_bits_per_copy=128)
    cute.copy(atom, shared_vector(address), registers)


@dsl_user_op
def load_shared_if(address: Int32, wanted: Uint32, *, loc=None, ip=None) -> tuple[Uint32, Uint32, Uint32, Uint32]:
    """The 16 bytes at ``address`` where ``wanted`` is not 0, else zeros and nothing is read; without a branch."""
    text = (
        "{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, $5, 0;\n\t"
        "mov.b32 $0, 0;\n\tmov.b32 $1, 0;\n\tmov.b32 $2, 0;\n\tmov.b32 $3, 0;\n\t"
        "@wanted ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];\n\t}"
    )
    operands = [Int32(address).ir_value(loc=loc, ip=ip), Uint32(wanted).ir_value(loc=loc, ip=ip)]
    four = ir.Type.parse("!llvm.struct<(i32, i32, i32, i32)>")
    result = reading_asm(four, operands, text, "=&r,=&r,=&r,=&r,r,r", loc, ip)
    first, second, third, fourth = (Uint32(llvm.extractvalue(T.i32(), result, [i], loc=loc, ip=ip)) for i in range(4))
    return first, second, third, fourth


@dsl_user_op
def _store_words_if(address: Int32, words: tuple, wanted: Uint32, *, loc=None, ip=None) -> None:
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        *[Uint32(word).ir_value(loc=loc, ip=ip) for word in words],
        Uint32(wanted).ir_value(loc=loc, ip=ip),
    ]
    text = (
        "{\n\t.reg .pred wanted;\n\tsetp.ne.u32 wanted, $5, 0;\n\t@wanted st.shared.v4.b32 [$0], {$1, $2, $3, $4};\n\t}"
    )
    memory_asm(operands, text, "r,r,r,r,r,r", loc, ip)


@cute.jit
def store_shared_if(address: Int32, registers: cute.Tensor, wanted: Uint32) -> None:
    """Store four 32-bit registers as 16 bytes at ``address`` where ``wanted`` is not 0, without a branch."""
    _store_words_if(address, (registers[0], registers[1], registers[2], registers[3]), wanted)


@cute.jit
def store_shared(address: Int32, registers: cute.Tensor) -> None:
    """Store four 32-bit registers as 16 bytes at ``address``."""
    atom = cute.make_copy_atom(cute.nvgpu.CopyR2SOp(), Uint32, num_bits_per_copy=128)
    cute.copy(atom, registers, shared_vector(address))


@cute.jit
def load_global(address: Int64, registers: cute.Tensor) -> None:
    """Load ``registers`` (Uint32, 1, 2 or 4) from global memory at ``address``, a multiple of their bytes."""
    count = cutlass.const_expr(cute.size(registers))
    pointer = cute.make_ptr(Uint32, address, cute.AddressSpace.gmem, assumed_align=4 * count)
    atom = cute.make_copy_atom(cute.nvgpu.CopyG2ROp(), Uint32, num_bits_per_copy=32 * count)
    cute.copy(atom, cute.make_tensor(pointer, cute.make_layout(count)), registers)
