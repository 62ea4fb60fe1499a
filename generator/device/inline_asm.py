"""Inline assembly with AT&T operands: a function of its operands, or something that is done to memory."""

from __future__ import annotations

import cutlass.cute as cute
from cutlass._mlir.dialects import llvm


def pure_asm(result, operands, text, constraints, loc, ip):
    """``text`` computes a value of type ``result`` from ``operands``; unused or repeated, it may be left out."""
    return llvm.inline_asm(
        result, operands, text, constraints, has_side_effects=False, is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


def memory_asm(operands, text, constraints, loc, ip):
    """``text`` reads or writes memory: it stays where it is among all other accesses."""
    llvm.inline_asm(
        None, operands, text, constraints + ",~{memory}", has_side_effects=True, is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


def reading_asm(result, operands, text, constraints, loc, ip):
    """``text`` reads memory and gives a value of type ``result``: it stays where it is among all other accesses."""
    return llvm.inline_asm(
        result, operands, text, constraints + ",~{memory}", has_side_effects=True, is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip


@cute.jit
def not_hoisted(number):
    """``number``, such that what follows from it is worked out where it stands, not kept in registers around a loop."""
    kind = type(number)
    return cute.arch.inline_ptx(
        f"mov.b{kind.width} {{$w0}}, {{$r0}};", write_only_types=[kind], read_only_args=[number]
    )
