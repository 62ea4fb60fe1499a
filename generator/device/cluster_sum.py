"""Numbers that the CTAs of a cluster tell one another through their shared memories."""

from __future__ import annotations

from cutlass import Float32, Int32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4.generator.device.inline_asm import memory_asm, pure_asm


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
def shift_to_cta(address: Int32, rank: Int32, *, loc=None, ip=None) -> Int32:
    """What has to be added to an address in this CTA's shared memory to get that of the same place in CTA ``rank``'s.

    The result of ``mapa`` has to be waited for; a sum has not, so that stores to one CTA go out one after another.
    ``address``: any in this CTA's shared memory.
    """
    text = "{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, $1, $2;\n\tsub.s32 $0, there, $1;\n\t}"
    operands = [Int32(address).ir_value(loc=loc, ip=ip), Int32(rank).ir_value(loc=loc, ip=ip)]
    return Int32(pure_asm(T.i32(), operands, text, "=r,r,r", loc, ip))


@dsl_user_op
def store_float(address: Int32, number: Float32, *, loc=None, ip=None) -> None:
    """Store a float32 at a ``shared::cluster`` address; see ``store_to_cta``."""
    operands = [Int32(address).ir_value(loc=loc, ip=ip), Float32(number).ir_value(loc=loc, ip=ip)]
    memory_asm(operands, "st.shared::cluster.f32 [$0], $1;", "r,f", loc, ip)


@dsl_user_op
def store_pair(address: Int32, a: Float32, b: Float32, *, loc=None, ip=None) -> None:
    """Store two float32 at a ``shared::cluster`` address, a multiple of 8; see ``store_to_cta``."""
    operands = [
        Int32(address).ir_value(loc=loc, ip=ip),
        Float32(a).ir_value(loc=loc, ip=ip),
        Float32(b).ir_value(loc=loc, ip=ip),
    ]
    memory_asm(operands, "st.shared::cluster.v2.f32 [$0], {$1, $2};", "r,f,f", loc, ip)


@dsl_user_op
def store_four(address: Int32, a: Float32, b: Float32, c: Float32, d: Float32, *, loc=None, ip=None) -> None:
    """Store four float32 at a ``shared::cluster`` address, a multiple of 16; see ``store_to_cta``."""
    operands = [Int32(address).ir_value(loc=loc, ip=ip)]
    operands += [Float32(number).ir_value(loc=loc, ip=ip) for number in (a, b, c, d)]
    memory_asm(operands, "st.shared::cluster.v4.f32 [$0], {$1, $2, $3, $4};", "r,f,f,f,f", loc, ip)
