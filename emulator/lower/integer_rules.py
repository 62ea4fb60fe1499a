"""Integer arithmetic, logic, shifts and bit fields."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.rules import rule

PRMT_MODES = ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")


def simple(low: Lowering, handler: str, bits: list[int], *imm: int, kind: str = "b") -> None:
    """A handler whose slots are destination and sources in order; `bits` gives their widths."""
    operands = low.operands(len(bits))
    slots = [low.dst(operands[0], bits[0])]
    slots += [low.src(operand, width, kind) for operand, width in zip(operands[1:], bits[1:], strict=True)]
    if slots[0] == ABSENT:
        raise low.error("the result is '_'")
    low.emit(handler, slots, *imm)


@rule(r"(add|sub)\.([sub])(16|32|64)")
def _add(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_{match[3]}", [int(match[3])] * 3)


@rule(r"(add|sub)\.sat\.s32")
def _add_sat(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_sat_s32", [32] * 3)


@rule(r"add\.[su]16x2")
def _add_pair(low: Lowering, match: re.Match[str]) -> None:
    simple(low, "add_16x2", [32] * 3)


@rule(r"(mul|mad)\.(lo|hi|wide)\.([su])(16|32|64)")
def _multiply(low: Lowering, match: re.Match[str]) -> None:
    name, part, sign, bits = match[1], match[2], match[3], int(match[4])
    if part == "wide" and bits == 64:
        raise low.error("there is no .wide of 64-bit sources")
    if name == "mad" and part == "hi" and bits == 16:
        raise low.error("mad.hi of 16 bits is not supported")
    result = 2 * bits if part == "wide" else bits
    suffix = f"lo_{bits}" if part == "lo" else f"{part}_{sign}{bits}"
    simple(low, f"{name}_{suffix}", [result, bits, bits] + ([result] if name == "mad" else []))


@rule(r"(div|rem)\.([su])(16|32|64)")
def _divide(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_{match[2]}{match[3]}", [int(match[3])] * 3)


@rule(r"(min|max)\.([su])(16|32|64)")
def _extreme(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_{match[2]}{match[3]}", [int(match[3])] * 3)


@rule(r"(min|max)(\.relu)?\.(s32|s16x2)|(min|max)\.u16x2")
def _extreme_relu(low: Lowering, match: re.Match[str]) -> None:
    name = f"{match[4]}_u16x2" if match[4] else f"{match[1]}{'_relu' if match[2] else ''}_{match[3]}"
    simple(low, name, [32] * 3)


@rule(r"(abs|neg)\.s(16|32|64)")
def _unary(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_s{match[2]}", [int(match[2])] * 2)


@rule(r"sad\.([su])32")
def _sad(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"sad_{match[1]}32", [32] * 4)


@rule(r"dp(4)a\.([su])32\.([su])32|dp(2)a\.(lo|hi)\.([su])32\.([su])32")
def _dot(low: Lowering, match: re.Match[str]) -> None:
    if match[1]:
        simple(low, "dp4a", [32] * 4, match[2] == "s", match[3] == "s")
    else:
        simple(low, "dp2a", [32] * 4, match[6] == "s", match[7] == "s", match[5] == "hi")


@rule(r"(and|or|xor)\.b(16|32|64)")
def _logic(low: Lowering, match: re.Match[str]) -> None:
    # 16-bit registers are zero-extended, so the 32-bit handlers are right for them
    simple(low, f"{match[1]}_b{max(32, int(match[2]))}", [int(match[2])] * 3)


@rule(r"(and|or|xor)\.pred")
def _logic_predicate(low: Lowering, match: re.Match[str]) -> None:
    d, a, b = low.operands(3)
    low.emit(f"{match[1]}_pred", [low.dst_predicate(d), low.plain_predicate(a), low.plain_predicate(b)])


@rule(r"not\.pred")
def _not_predicate(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    low.emit("not_pred", [low.dst_predicate(d), low.plain_predicate(a)])


@rule(r"(not|cnot)\.b(16|32|64)")
def _not(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_b{match[2]}", [int(match[2])] * 2)


@rule(r"lop3\.b32")
def _lop3(low: Lowering, match: re.Match[str]) -> None:
    d, a, b, c, table = low.operands(5)
    low.emit("lop3_b32", [low.dst(d), low.src(a), low.src(b), low.src(c)], low.integer(table))


@rule(r"shl\.b(16|32|64)|shr\.([bsu])(16|32|64)")
def _shift(low: Lowering, match: re.Match[str]) -> None:
    bits = int(match[1] or match[3])
    name = f"shl_b{bits}" if match[1] else f"shr_{'s' if match[2] == 's' else 'u'}{bits}"
    simple(low, name, [bits, bits, 32])


@rule(r"shf\.([lr])\.(wrap|clamp)\.b32")
def _funnel(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"shf_{match[1]}_{match[2]}_b32", [32] * 4)


@rule(r"prmt\.b32(?:\.(f4e|b4e|rc8|ecl|ecr|rc16))?")
def _permute(low: Lowering, match: re.Match[str]) -> None:
    simple(low, "prmt_b32", [32] * 4, PRMT_MODES.index(match[1] or ""))


@rule(r"brev\.b(32|64)")
def _reverse(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"brev_b{match[1]}", [int(match[1])] * 2)


@rule(r"bfe\.([su])(32|64)")
def _extract(low: Lowering, match: re.Match[str]) -> None:
    bits = int(match[2])
    simple(low, f"bfe_{match[1]}{bits}", [bits, bits, 32, 32])


@rule(r"bfi\.b(32|64)")
def _insert(low: Lowering, match: re.Match[str]) -> None:
    bits = int(match[1])
    simple(low, f"bfi_b{bits}", [bits, bits, bits, 32, 32])


@rule(r"bmsk\.(clamp|wrap)\.b32")
def _mask(low: Lowering, match: re.Match[str]) -> None:
    simple(low, "bmsk_b32", [32] * 3, match[1] == "wrap")


@rule(r"szext\.(clamp|wrap)\.([su])32")
def _extend(low: Lowering, match: re.Match[str]) -> None:
    simple(low, "szext_32", [32] * 3, match[2] == "s", match[1] == "wrap")


@rule(r"(popc|clz)\.b(32|64)")
def _count(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"{match[1]}_b{match[2]}", [32, int(match[2])])


@rule(r"bfind(\.shiftamt)?\.([su])(32|64)")
def _find(low: Lowering, match: re.Match[str]) -> None:
    simple(low, f"bfind_{match[2]}{match[3]}", [32, int(match[3])], bool(match[1]))
