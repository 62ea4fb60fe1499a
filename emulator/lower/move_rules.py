"""Moves, packing, comparison, selection, addresses, and what lanes exchange."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, CLOCKS, Lowering
from dsv4.emulator.lower.rules import rule
from dsv4.emulator.ptx.model import TYPE_BYTES, Immediate, Operand, Register, SpecialRegister, Symbol, Vector

COMBINATIONS = {"": 0, "and": 1, "or": 2, "xor": 3}
INTEGER_ORDER = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@rule(r"mov\.pred")
def _mov_predicate(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    slot = low.dst_predicate(d)
    if isinstance(a, Immediate):
        zero = low.asm.constant(0)
        low.emit("setp_ne_b32" if a.value == 0 else "setp_eq_b32", [slot, ABSENT, zero, zero, ABSENT], 0, 0, 0)
    else:
        low.emit("mov_pred", [slot, low.plain_predicate(a)])


@rule(r"mov\.[bsuf](16|32|64|128)")
def _mov(low: Lowering, match: re.Match[str]) -> None:
    bits = int(match[1])
    d, a = low.operands(2)
    if isinstance(d, Vector):
        _unpack(low, d.elements, a, bits)
    elif isinstance(a, Vector):
        _pack(low, d, a.elements, bits)
    elif isinstance(a, Symbol):
        base, offset, wide = low.symbol(a)
        slot = low.dst(d, bits)
        if bits == 32:
            if wide:
                raise low.error(f"the 64-bit address of {a.name} does not fit a 32-bit register")
            low.emit("add_32", [slot, base, low.asm.constant(offset)])
        else:
            if not wide:
                pair = low.asm.register(2)
                low.emit("mov_pair", [pair, pair + 1, base, low.asm.constant(0)])
                base = pair
            low.emit("add_64", [slot, base, low.asm.constant(offset, 2)])
    elif isinstance(a, SpecialRegister) and a.name in CLOCKS:
        low.emit("clock", [low.dst(d, bits)], bits)
    else:
        low.emit({16: "mov_32", 32: "mov_32", 64: "mov_64", 128: "mov_128"}[bits], [low.dst(d, bits), low.src(a, bits)])


def _element_bits(low: Lowering, elements: tuple[Operand, ...], bits: int) -> int:
    width, rest = divmod(bits, len(elements))
    if rest or width not in (8, 16, 32, 64):
        raise low.error(f"{len(elements)} elements do not divide {bits} bits")
    return width


def _pack(low: Lowering, d: Operand, elements: tuple[Operand, ...], bits: int) -> None:
    width = _element_bits(low, elements, bits)
    slot = low.dst(d, bits)
    sources = [low.src(element, width) for element in elements]
    if width == 32 and len(elements) == 2:
        low.emit("mov_pair", [slot, slot + 1, *sources])
    elif width >= 32:
        _through_copies(low, slot, sources, width)
    else:
        low.emit("pack", [slot, *sources], len(elements), width)


def _through_copies(low: Lowering, slot: int, sources: list[int], width: int) -> None:
    # 128-bit registers: build the value aside, because a source may be part of the destination
    words = width // 32
    aside = low.asm.register(words * len(sources))
    for n, source in enumerate(sources):
        low.emit("mov_64" if words == 2 else "mov_32", [aside + n * words, source])
    low.emit("mov_128", [slot, aside])


def _unpack(low: Lowering, elements: tuple[Operand, ...], a: Operand, bits: int) -> None:
    width = _element_bits(low, elements, bits)
    source = low.src(a, bits)
    slots = [low.dst(element, width) for element in elements]
    if width == 32 and len(elements) == 2:
        low.emit("mov_pair", [*slots, source, source + 1])
    elif width >= 32:
        for n, slot in enumerate(slots):
            if slot != ABSENT:
                low.emit("mov_64" if width == 64 else "mov_32", [slot, source + n * width // 32])
    else:
        low.emit("unpack", [*slots, source], len(elements), width)


def _comparison(low: Lowering, compare: str, type_name: str) -> str:
    kind, bits = re.fullmatch(r"(bf|[bsuf])(16|32|64)", type_name).groups()  # type: ignore[union-attr]
    if kind in ("f", "bf"):
        if compare in INTEGER_ORDER:
            raise low.error(f".{compare} compares integers")
        return f"{compare}_{type_name}"
    compare = INTEGER_ORDER.get(compare, compare)
    if compare in ("eq", "ne"):
        return f"{compare}_b{bits}"
    if compare not in ("lt", "le", "gt", "ge") or kind == "b":
        raise low.error(f".{compare} does not compare .{type_name}")
    return f"{compare}_{type_name}"


_COMPARE = r"(eq|ne|lt|le|gt|ge|lo|ls|hi|hs|equ|neu|ltu|leu|gtu|geu|num|nan)"


@rule(rf"setp\.{_COMPARE}(?:\.(and|or|xor))?(\.ftz)?\.(bf16|[bsuf]16|[bsuf]32|[bsuf]64)")
def _setp(low: Lowering, match: re.Match[str]) -> None:
    combination = COMBINATIONS[match[2] or ""]
    operands = low.operands(4 if combination else 3)
    p, q = low.pair(operands[0])
    bits = int(match[4][-2:])
    kind = "f" if match[4].startswith("f") and bits > 16 else "b"
    sources = [low.src(operand, bits, kind) for operand in operands[1:3]]
    c, negated = low.predicate(operands[3]) if combination else (ABSENT, 0)
    slots = [low.dst_predicate(p), low.dst_predicate(q), *sources, c]
    low.emit(f"setp_{_comparison(low, match[1], match[4])}", slots, combination, negated, bool(match[3]))


@rule(rf"set\.{_COMPARE}(?:\.(and|or|xor))?(\.ftz)?\.([usf]32)\.(bf16|[bsuf]16|[bsuf]32)")
def _set(low: Lowering, match: re.Match[str]) -> None:
    combination = COMBINATIONS[match[2] or ""]
    operands = low.operands(4 if combination else 3)
    bits = int(match[5][-2:])
    kind = "f" if match[5] == "f32" else "b"
    sources = [low.src(operand, bits, kind) for operand in operands[1:3]]
    c, negated = low.predicate(operands[3]) if combination else (ABSENT, 0)
    slots = [low.dst(operands[0]), ABSENT, *sources, c]
    name = _comparison(low, match[1], match[5])
    low.emit(f"set_{name}", slots, combination, negated, bool(match[3]), match[4] == "f32")


@rule(r"selp\.[bsuf](16|32|64)")
def _select(low: Lowering, match: re.Match[str]) -> None:
    d, a, b, p = low.operands(4)
    bits = int(match[1])
    slot, negated = low.predicate(p)
    first, second = (b, a) if negated else (a, b)
    low.emit(
        "selp_64" if bits == 64 else "selp_32", [low.dst(d, bits), low.src(first, bits), low.src(second, bits), slot]
    )


@rule(r"cvta(?:\.to)?\.(param|global|shared|shared::cta|shared::cluster|local|const)\.u(32|64)")
def _cvta(low: Lowering, match: re.Match[str]) -> None:
    # generic addresses are what the state spaces use: shared below 2^28, the rest host pointers
    d, a = low.operands(2)
    bits = int(match[2])
    if isinstance(a, Symbol):
        base, offset, wide = low.symbol(a)
        if bits == 64 and wide:
            low.emit("add_64", [low.dst(d, 64), base, low.asm.constant(offset, 2)])
            return
        raise low.error("a symbol of shared memory: move it into a register first")
    low.emit("mov_64" if bits == 64 else "mov_32", [low.dst(d, bits), low.src(a, bits)])


@rule(r"mapa(?:\.shared::cluster)?\.u(32|64)")
def _mapa(low: Lowering, match: re.Match[str]) -> None:
    bits = int(match[1])
    d, a, rank = low.operands(3)
    if isinstance(a, Symbol):
        raise low.error("a symbol as address: move it into a register first")
    low.emit("mapa", [low.dst(d, bits), low.src(a, bits), low.src(rank)], bits)


SHUFFLES = ("idx", "up", "down", "bfly")
VOTES = ("all", "any", "uni", "ballot")
REDUCTIONS = ("add", "and", "or", "xor", "min_s32", "max_s32", "min_u32", "max_u32", "min_f32", "max_f32")


@rule(rf"shfl\.sync\.({'|'.join(SHUFFLES)})\.b32")
def _shuffle(low: Lowering, match: re.Match[str]) -> None:
    d, a, b, c, members = low.operands(5)
    value, valid = low.pair(d)
    slots = [low.dst(value), low.dst_predicate(valid), *(low.src(x) for x in (a, b, c, members))]
    low.emit("shfl", slots, SHUFFLES.index(match[1]))


@rule(r"vote\.sync\.(?:(all|any|uni)\.pred|(ballot)\.b32)")
def _vote(low: Lowering, match: re.Match[str]) -> None:
    d, a, members = low.operands(3)
    predicate, negated = low.predicate(a)
    slot = low.dst(d) if match[2] else low.dst_predicate(d)
    low.emit("vote", [slot, predicate, low.src(members)], VOTES.index(match[1] or match[2]), negated)


@rule(r"match\.(any|all)\.sync\.b(32|64)")
def _match(low: Lowering, match: re.Match[str]) -> None:
    d, a, members = low.operands(3)
    value, equal = low.pair(d)
    bits = int(match[2])
    slots = [low.dst(value), low.dst_predicate(equal), low.src(a, bits), low.src(members)]
    low.emit("match", slots, match[1] == "all", bits // 32)


@rule(r"redux\.sync\.(?:(add|min|max)\.([su]32)|(and|or|xor)\.b32|(min|max)(\.abs)?(\.NaN)?\.f32)")
def _redux(low: Lowering, match: re.Match[str]) -> None:
    d, a, members = low.operands(3)
    if match[4]:
        name = f"{match[4]}_f32"
    elif match[3]:
        name = match[3]
    else:
        name = "add" if match[1] == "add" else f"{match[1]}_{match[2]}"
    flags = (1 if match[5] else 0) | (2 if match[6] else 0)
    low.emit("redux", [low.dst(d), low.src(a), low.src(members)], REDUCTIONS.index(name), flags)


@rule(r"activemask\.b32")
def _activemask(low: Lowering, match: re.Match[str]) -> None:
    (d,) = low.operands(1)
    low.emit("activemask", [low.dst(d)])


def register_bytes(operand: Operand) -> int:
    """Bytes of a destination register (2, 4 or 8), for loads that widen."""
    return max(2, TYPE_BYTES[operand.type]) if isinstance(operand, Register) else 4
