"""Numbers that the CTAs of a cluster tell one another through their shared memories."""

from __future__ import annotations

from cutlass import Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import dsl_user_op


@dsl_user_op
def store_to_cta(target, rank: Int32, value: Float32, *, loc=None, ip=None) -> None:
    """Store ``value`` where ``target`` (a pointer into this CTA's shared memory) lies in that of CTA ``rank``.

    That CTA has to have begun, and must not have ended before the store is done: a cluster barrier before and one
    after, which also makes it visible.
    """
    operands = [
        target.toint(loc=loc, ip=ip).ir_value(loc=loc, ip=ip),
        Int32(rank).ir_value(loc=loc, ip=ip),
        Float32(value).ir_value(loc=loc, ip=ip),
    ]
    text = (
        "{\n\t.reg .b32 address;\n\t"
        "mapa.shared::cluster.u32 address, $0, $1;\n\t"
        "st.shared::cluster.f32 [address], $2;\n\t}"
    )
    llvm.inline_asm(
        None, operands, text, "r,r,f,~{memory}", has_side_effects=True, is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT, loc=loc, ip=ip,
    )  # fmt: skip
