"""Numbers that the CTAs of a cluster tell one another through their shared memories."""

from __future__ import annotations

from cutlass import Float32, Int32
from cutlass.cutlass_dsl import dsl_user_op

from dsv4.generator.device.inline_asm import memory_asm


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
    memory_asm(operands, text, "r,r,f", loc, ip)


@dsl_user_op
def store_pair_to_cta(address: Int32, rank: Int32, a: Float32, b: Float32, *, loc=None, ip=None) -> None:
    """Store two float32 at ``address`` (a multiple of 8) of CTA ``rank``'s shared memory; see ``store_to_cta``."""
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        Int32(rank).ir_value(loc=loc, ip=ip),
        Float32(a).ir_value(loc=loc, ip=ip),
        Float32(b).ir_value(loc=loc, ip=ip),
    ]
    text = (
        "{\n\t.reg .b32 address;\n\t"
        "mapa.shared::cluster.u32 address, $0, $1;\n\t"
        "st.shared::cluster.v2.f32 [address], {$2, $3};\n\t}"
    )
    memory_asm(operands, text, "r,r,f,f", loc, ip)
