"""Floating-point arithmetic: f32, f32x2, f64, f16, bf16 and the packed and mixed forms."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import Lowering
from dsv4.emulator.lower.integer_rules import simple
from dsv4.emulator.lower.rules import rule

FTZ, SAT, NAN, XORSIGN, ABS, RELU = 1, 2, 4, 8, 16, 32
ROUNDINGS = {"": 0, "rn": 0, "rz": 1, "rm": 2, "rp": 3}
PROPERTIES = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
SOURCES = {"add": 2, "sub": 2, "mul": 2, "fma": 3, "div": 2, "rcp": 1, "sqrt": 1}
HALF = r"(f16x2|bf16x2|f16|bf16)"


def flag_bits(**flags: object) -> int:
    """The handlers' flags immediate from named modifiers."""
    values = {"ftz": FTZ, "sat": SAT, "nan": NAN, "xorsign": XORSIGN, "abs": ABS, "relu": RELU}
    return sum(values[name] for name, present in flags.items() if present)


@rule(r"(add|sub|mul|fma|mad)(?:\.(rn|rz|rm|rp))?(\.ftz)?(\.sat)?\.(f32x2|f32)")
def _arithmetic(low: Lowering, match: re.Match[str]) -> None:
    operation = "fma" if match[1] == "mad" else match[1]
    flags, rounding = flag_bits(ftz=match[3], sat=match[4]), ROUNDINGS[match[2] or ""]
    bits = 64 if match[5] == "f32x2" else 32
    name = f"{operation}_{match[5]}" + ("_any" if flags or rounding else "")
    simple(low, name, [bits] * (SOURCES[operation] + 1), flags, rounding, kind="f")


@rule(r"div\.(?:(approx|full)|(rn|rz|rm|rp))(\.ftz)?\.f32")
def _divide(low: Lowering, match: re.Match[str]) -> None:
    if match[1]:
        simple(low, "div_approx_f32", [32] * 3, flag_bits(ftz=match[3]), match[1] == "full", kind="f")
        return
    simple(low, "div_f32", [32] * 3, flag_bits(ftz=match[3]), ROUNDINGS[match[2]], kind="f")


@rule(r"(rcp|sqrt)\.(?:(approx)|(rn|rz|rm|rp))(\.ftz)?\.f32")
def _root(low: Lowering, match: re.Match[str]) -> None:
    if match[1] == "rcp" and match[2]:
        simple(low, "rcp_approx_ftz_f32" if match[4] else "rcp_approx_f32", [32] * 2, kind="f")
        return
    simple(low, f"{match[1]}_f32", [32] * 2, flag_bits(ftz=match[4]), ROUNDINGS[match[3] or ""], kind="f")


@rule(r"ex2\.approx(\.ftz)?\.f32")
def _exp2(low: Lowering, match: re.Match[str]) -> None:
    simple(low, "ex2_ftz_f32" if match[1] else "ex2_f32", [32] * 2, kind="f")


@rule(r"(lg2|rsqrt|sin|cos|tanh)\.approx(\.ftz)?\.f32")
def _special(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_f32", [32] * 2, flag_bits(ftz=match[2]), kind="f")


@rule(r"(abs|neg)(\.ftz)?\.f32")
def _sign(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_f32", [32] * 2, flag_bits(ftz=match[2]), kind="f")


@rule(r"copysign\.f32")
def _copysign(low: Lowering, match: re.Match[str]) -> None:
    d, a, b = low.operands(3)  # d has the sign of a and the magnitude of b
    low.emit("copysign_f32", [low.dst(d), low.src(a, 32, "f"), low.src(b, 32, "f")])


@rule(r"(min|max)(\.ftz)?(\.NaN)?(\.xorsign\.abs|\.abs)?\.f32")
def _extreme(low: Lowering, match: re.Match[str]) -> None:
    flags = flag_bits(ftz=match[2], nan=match[3], xorsign=match[4] == ".xorsign.abs", abs=match[4] == ".abs")
    name = match[1]
    if len(low.ins.operands) == 4:
        simple(low, f"{name}3_f32", [32] * 4, flags, kind="f")
        return
    suffix = {0: "_f32", NAN: "_nan_f32"}.get(flags, "_f32_any")
    simple(low, name + suffix, [32] * 3, flags, kind="f")


@rule(rf"testp\.({'|'.join(PROPERTIES)})\.f32")
def _property(low: Lowering, match: re.Match[str]) -> None:
    p, a = low.operands(2)
    low.emit("testp_f32", [low.dst_predicate(p), low.src(a, 32, "f")], PROPERTIES.index(match[1]))


@rule(r"(add|sub|mul|fma|mad|div|rcp|sqrt)(?:\.(rn|rz|rm|rp))?\.f64")
def _double(low: Lowering, match: re.Match[str]) -> None:
    operation = "fma" if match[1] == "mad" else match[1]
    simple(low, f"{operation}_f64", [64] * (SOURCES[operation] + 1), 0, ROUNDINGS[match[2] or ""], kind="f")


@rule(r"(abs|neg|min|max)\.f64")
def _double_simple(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_f64", [64] * (2 if match[1] in ("abs", "neg") else 3), kind="f")


def _half(type_name: str) -> tuple[int, int, int]:
    """Register bits, 1 for bf16, and elements of a half type."""
    elements = 2 if type_name.endswith("x2") else 1
    return 16 * elements, int(type_name.startswith("bf16")), elements


@rule(rf"(add|sub|mul|fma)(?:\.rn)?(\.ftz)?(\.sat)?(\.relu)?\.{HALF}")
def _half_arithmetic(low: Lowering, match: re.Match[str]) -> None:
    bits, is_bf16, elements = _half(match[5])
    flags = flag_bits(ftz=match[2], sat=match[3], relu=match[4])
    simple(low, f"{match[1]}_half", [bits] * (SOURCES[match[1]] + 1), flags, is_bf16, elements)


@rule(rf"(min|max)(\.ftz)?(\.NaN)?(\.xorsign\.abs)?\.{HALF}")
def _half_extreme(low: Lowering, match: re.Match[str]) -> None:
    bits, is_bf16, elements = _half(match[5])
    simple(
        low, f"{match[1]}_half", [bits] * 3, flag_bits(ftz=match[2], nan=match[3], xorsign=match[4]), is_bf16, elements
    )


@rule(rf"(abs|neg)\.{HALF}")
def _half_sign(low: Lowering, match: re.Match[str]) -> None:
    bits, is_bf16, elements = _half(match[2])
    simple(low, f"{match[1]}_half", [bits] * 2, 0, is_bf16, elements)


@rule(rf"(ex2|tanh)\.approx(\.ftz)?\.{HALF}")
def _half_special(low: Lowering, match: re.Match[str]) -> None:
    bits, is_bf16, elements = _half(match[3])
    simple(low, f"{match[1]}_half", [bits] * 2, flag_bits(ftz=match[2]), is_bf16, elements)


@rule(r"(add|sub|fma)(?:\.rn)?(\.sat)?\.f32\.(f16|bf16)")
def _mixed(low: Lowering, match: re.Match[str]) -> None:
    halves = 2 if match[1] == "fma" else 1
    simple(
        low, f"{match[1]}_f32_half", [32] + [16] * halves + [32], flag_bits(sat=match[2]), match[3] == "bf16", kind="f"
    )
