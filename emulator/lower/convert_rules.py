"""cvt in all its forms."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.rules import rule
from dsv4.emulator.ptx.model import TYPE_BYTES, Operand, Register

# the formats of scalar_narrow.h and scalar_convert.c
FORMATS = {
    "f16": 0,
    "bf16": 1,
    "e4m3": 2,
    "e5m2": 3,
    "e2m3": 4,
    "e3m2": 5,
    "e2m1": 6,
    "f32": 16,
    "f64": 17,
    "tf32": 18,
    "ue8m0": 19,
}
ROUNDINGS = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4}
FTZ, SAT, SATFINITE, RELU, INTEGRAL = 1, 2, 4, 8, 64
FLOAT = r"(f16|bf16|f32|f64)"
INT = r"([su])(8|16|32|64)"


def float_bits(format_name: str) -> int:
    """Register bits of a scalar floating-point format."""
    return {"f16": 16, "bf16": 16, "f64": 64}.get(format_name, 32)


def _register_bits(low: Lowering, operand: Operand) -> int:
    if not isinstance(operand, Register):
        raise low.error("the destination is no register")
    return max(16, TYPE_BYTES[operand.type] * 8)


@rule(rf"cvt(\.sat)?\.{INT}\.{INT}")
def _integers(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    to, source = int(match[3]), int(match[5])
    if match[1] is None and source == 32 and to == 64:
        slot, a_slot = low.dst(d, 64), low.src(a, 32)
        if match[4] == "u":
            low.emit("mov_pair", [slot, slot + 1, a_slot, low.asm.constant(0)])
        else:
            low.emit("cvt_s64_s32", [slot, a_slot])
        return
    if match[1] is None and source in (32, 64) and to == 32:
        low.emit("mov_32", [low.dst(d, to), low.src(a, source)])
        return
    low.emit(
        "cvt_int",
        [low.dst(d, to), low.src(a, source)],
        *(to, match[2] == "s", source, match[4] == "s", bool(match[1]), _register_bits(low, d)),
    )


@rule(rf"cvt\.(rn|rz|rm|rp)\.{FLOAT}\.{INT}")
def _from_integer(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    source = int(match[4])
    slots = [low.dst(d, float_bits(match[2])), low.src(a, source)]
    if low.ins.opcode == "cvt.rn.f32.s32":
        low.emit("cvt_rn_f32_s32", slots)
    else:
        low.emit("cvt_from_int", slots, FORMATS[match[2]], ROUNDINGS[match[1]], source, match[3] == "s")


@rule(rf"cvt\.(rn|rz|rm|rp)i(\.ftz)?(\.sat)?\.{INT}\.{FLOAT}")
def _to_integer(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    to = int(match[5])
    slots = [low.dst(d, to), low.src(a, float_bits(match[6]), "f")]
    imm = (to, match[4] == "s", FORMATS[match[6]], ROUNDINGS[match[1]], FTZ if match[2] else 0, _register_bits(low, d))
    low.emit("cvt_to_int", slots, *imm)


@rule(
    rf"cvt(?:\.(rna|rn|rz|rm|rp)(i)?)?(\.ftz)?(\.satfinite)?(\.relu)?(\.sat)?(\.satfinite)?\.(tf32|f16|bf16|f32|f64)\.{FLOAT}"
)
def _floats(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    rounding, integral, ftz, finite, relu, sat, finite_late, to, source = match.groups()
    widens = float_bits(to) > float_bits(source) or (to == source)
    if rounding is None and not widens:
        raise low.error("a conversion to a narrower type needs a rounding")
    if rounding == "rna" and to != "tf32":
        raise low.error(".rna rounds to tf32 only")
    slots = [low.dst(d, float_bits(to)), low.src(a, float_bits(source), "f")]
    fast = {
        "cvt.f32.bf16": "cvt_f32_bf16",
        "cvt.f32.f16": "cvt_f32_f16",
        "cvt.rn.bf16.f32": "cvt_rn_bf16_f32",
        "cvt.rn.f16.f32": "cvt_rn_f16_f32",
    }.get(low.ins.opcode)
    if fast is not None:
        low.emit(fast, slots)
        return
    chosen = {FTZ: ftz, SATFINITE: finite or finite_late, RELU: relu, SAT: sat, INTEGRAL: integral}
    flags = sum(bit for bit, present in chosen.items() if present)
    low.emit("cvt_float", slots, FORMATS[to], FORMATS[source], ROUNDINGS[rounding or "rn"], flags)


@rule(r"cvt\.(rn|rz|rp)(\.satfinite)?(\.relu)?(\.satfinite)?\.(f16|bf16|e4m3|e5m2|e2m3|e3m2|e2m1|ue8m0)x2\.f32")
def _pack_f32(low: Lowering, match: re.Match[str]) -> None:
    d, upper, lower = low.operands(3)
    to = match[5]
    flags = (SATFINITE if match[2] or match[4] else 0) | (RELU if match[3] else 0)
    bits = {"f16": 32, "bf16": 32, "e2m1": 8}.get(to, 16)
    slots = [low.dst(d, bits), low.src(upper, 32, "f"), low.src(lower, 32, "f")]
    if to in ("f16", "bf16") and match[1] == "rn" and not flags:
        low.emit(f"cvt_rn_{to}x2_f32", slots)
        return
    _check_finite(low, to, flags)
    low.emit("cvt_narrow", slots, FORMATS[to], FORMATS["f32"], ROUNDINGS[match[1]], flags)


@rule(r"cvt\.(rn|rz|rp)(\.satfinite)?(\.relu)?\.(e4m3|e5m2|e2m3|e3m2|e2m1|ue8m0)x2\.(f16|bf16)x2")
def _pack_half(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    flags = (SATFINITE if match[2] else 0) | (RELU if match[3] else 0)
    _check_finite(low, match[4], flags)
    slots = [low.dst(d, 8 if match[4] == "e2m1" else 16), low.src(a, 32), ABSENT]
    low.emit("cvt_narrow", slots, FORMATS[match[4]], FORMATS[match[5]], ROUNDINGS[match[1]], flags)


def _check_finite(low: Lowering, to: str, flags: int) -> None:
    if to not in ("f16", "bf16", "ue8m0") and not flags & SATFINITE:
        raise low.error(f"a conversion to .{to}x2 needs .satfinite")


@rule(r"cvt\.rn(\.relu)?\.(f16|bf16)x2\.(e4m3|e5m2|e2m3|e3m2|e2m1|ue8m0)x2")
def _unpack(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    slots = [low.dst(d, 32), low.src(a, 8 if match[3] == "e2m1" else 16)]
    low.emit("cvt_widen", slots, FORMATS[match[2]], FORMATS[match[3]], 0, RELU if match[1] else 0)


@rule(r"cvt\.pack\.sat\.([su])(8|16)\.s32(\.b32)?")
def _pack_saturated(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(4 if match[3] else 3)
    slots = [low.dst(operands[0]), *(low.src(x) for x in operands[1:])]
    low.emit("cvt_pack", slots if match[3] else [*slots, ABSENT], int(match[2]), match[1] == "s")
