"""Loads, stores, atomics, asynchronous copies of a thread, prefetches."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.move_rules import register_bytes
from dsv4.emulator.lower.rules import rule
from dsv4.emulator.ptx.model import Negated, Register

SIGNED, RELAXED, ACQUIRE, RELEASE, REMOTE = 1, 2, 4, 8, 32
ORDERS = {"weak": 0, "relaxed": RELAXED, "volatile": RELAXED, "mmio": RELAXED, "acquire": ACQUIRE, "release": RELEASE}
OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
TYPES = {"b": 0, "u": 0, "s": 1, "f32": 2, "f64": 3, "f16x2": 4, "bf16x2": 5, "f16": 6, "bf16": 7}
_SCOPE = r"(?:\.(?:cta|cluster|gpu|sys))"
_CACHE = (
    r"(?:\.(?:ca|cg|cs|lu|cv|wb|wt))?(?:\.L1::(?:evict_normal|evict_unchanged|evict_first|evict_last|no_allocate))?"
    r"(?:\.L2::(?:evict_normal|evict_first|evict_last))?(?P<hint>\.L2::cache_hint)?(?:\.L2::(?:64B|128B|256B))?"
)
_SPACE = r"(?:\.(?P<space>global|shared|shared::cta|shared::cluster|param|param::entry|local))?"
_TYPE = r"(?:\.v(?P<n>2|4|8))?\.(?P<type>[bsu](?:8|16|32|64)|f32|f64|b128)"


def _access(match: re.Match[str]) -> tuple[str, int]:
    space = (match["space"] or "generic").split("::")[0]
    flags = ORDERS[match["order"] or "weak"]
    if match["space"] == "shared::cluster":
        flags |= REMOTE
    return space, flags


_LATE_CACHE = _CACHE.replace("(?P<hint>", "(?P<late>")


@rule(
    rf"ld(?:\.(?P<order>weak|volatile|(?:relaxed|acquire|mmio)(?={_SCOPE})){_SCOPE}?)?{_SPACE}{_CACHE}"
    rf"(?:\.nc)?{_LATE_CACHE}{_TYPE}"
)
def _load(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3 if match["hint"] or match["late"] else 2)
    space, flags = _access(match)
    slot, offset, wide = low.address(operands[1], space)
    if match["type"] == "b128":
        first = low.dst(operands[0], 128)
        low.emit(
            f"ld_{space}", [*range(first, first + 4), slot], offset, 4, 4, flags | (wide if space == "shared" else 0), 4
        )
        return
    count, bits = int(match["n"] or 1), int(match["type"][1:])
    elements = low.elements(operands[0], count)
    slots = [low.register_slot(e, min(bits, 16)) if isinstance(e, Register) else low.dst(e, bits) for e in elements]
    if match["type"][0] == "s":
        flags |= SIGNED
    widths = {register_bytes(e) for e, s in zip(elements, slots, strict=True) if s != ABSENT} or {4}
    if len(widths) > 1:
        raise low.error("the destination registers differ in width")
    if max(widths) * 8 < bits:
        raise low.error(f"the destination registers are narrower than the {bits} bits that are loaded")
    flags |= wide if space == "shared" else 0
    low.emit(f"ld_{space}", [*slots, slot], offset, bits // 8, count, flags, max(widths))


@rule(rf"st(?:\.(?P<order>weak|volatile|(?:relaxed|release|mmio)(?={_SCOPE})){_SCOPE}?)?{_SPACE}{_CACHE}{_TYPE}")
def _store(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3 if match["hint"] else 2)
    space, flags = _access(match)
    slot, offset, wide = low.address(operands[0], space)
    flags |= wide if space == "shared" else 0
    if match["type"] == "b128":
        first = low.src(operands[1], 128)
        low.emit(f"st_{space}", [slot, *range(first, first + 4)], offset, 4, 4, flags)
        return
    count, bits = int(match["n"] or 1), int(match["type"][1:])
    kind = "f" if match["type"][0] == "f" else "b"
    sources = [low.src(e, bits, kind) for e in low.elements(operands[1], count)]
    low.emit(f"st_{space}", [slot, *sources], offset, bits // 8, count, flags)


@rule(
    r"st\.async(?:\.weak)?(?:\.shared::cluster)?\.mbarrier::complete_tx::bytes"
    r"(?:\.v(?P<n>2|4))?\.(?P<type>[bsu](?:32|64)|f32|f64)"
)
def _store_async(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3)
    count, bits = int(match["n"] or 1), int(match["type"][1:])
    to, to_offset = low.narrow_address(operands[0])
    barrier, barrier_offset = low.narrow_address(operands[2])
    kind = "f" if match["type"][0] == "f" else "b"
    sources = [low.src(e, bits, kind) for e in low.elements(operands[1], count)]
    low.emit("st_async", [to, *sources, barrier], to_offset, bits // 8, count, barrier_offset)


@rule(
    rf"(?P<name>atom|red)(?:\.(?P<sem>relaxed|acquire|release|acq_rel))?{_SCOPE}?{_SPACE}{_SCOPE}?"
    r"(?:\.(?P<late>acq_rel|acquire|release))?"  # LLVM names the order here where the scope is .gpu
    rf"\.(?P<op>{'|'.join(OPERATIONS)})(?:\.noftz)?(?P<hint>\.L2::cache_hint)?(?:\.v(?P<n>2|4|8))?"
    r"\.(?P<type>[bsu](?:16|32|64)|f32|f64|f16x2|bf16x2|f16|bf16)"
)
def _atomic(low: Lowering, match: re.Match[str]) -> None:
    operands = list(low.ins.operands)
    if match["hint"]:
        operands.pop()
    is_red = match["name"] == "red"
    target = None if is_red else operands.pop(0)
    if len(operands) != (3 if match["op"] == "cas" else 2):
        raise low.error(f"{len(low.ins.operands)} operands, which is not what {match['op']} takes")
    space = (match["space"] or "generic").split("::")[0]
    if space not in ("global", "shared", "generic"):
        raise low.error(f"atomics on .{space} do not exist")
    type_name = match["type"]
    number = TYPES.get(type_name, TYPES.get(type_name[0], 0))
    bits = 32 if type_name.endswith("x2") else int(type_name.lstrip("bsuf"))
    flags = {"acquire": ACQUIRE, "release": RELEASE, "acq_rel": ACQUIRE | RELEASE}.get(
        match["sem"] or match["late"] or "", RELAXED
    )
    flags |= REMOTE if match["space"] == "shared::cluster" else 0
    slot, offset, wide = low.address(operands[0], space)
    flags |= wide if space == "shared" else 0
    count = int(match["n"] or 1)
    kind = "f" if type_name in ("f32", "f64") else "b"
    values = low.elements(operands[1], count)
    results = low.elements(target, count) if target is not None else (None,) * count
    compared = low.src(operands[2], bits) if match["op"] == "cas" else ABSENT
    for n, (value, result) in enumerate(zip(values, results, strict=True)):
        slots = [ABSENT if result is None else low.dst(result, bits), slot, low.src(value, bits, kind), compared]
        low.emit(
            f"atom_{space}", slots, offset + n * bits // 8, bits // 8, OPERATIONS.index(match["op"]), number, flags
        )


@rule(r"prefetch(?:u\.L1|\.tensormap|(?:\.(?:param|const))\.tensormap|(?:\.(?:global|local))?\.L[12](?:::evict_\w+)?)")
def _prefetch(low: Lowering, match: re.Match[str]) -> None:
    low.operands(1)
    low.emit("prefetch", [])


@rule(r"(?:discard|applypriority)(?:\.global)?\.L2(?:::evict_normal)?")
def _discard(low: Lowering, match: re.Match[str]) -> None:
    low.operands(2)
    low.emit("prefetch", [])


@rule(r"createpolicy\.fractional\.L2::\w+(?:\.L2::\w+)?\.b64")
def _policy(low: Lowering, match: re.Match[str]) -> None:
    # a cache policy changes no result
    low.emit("mov_64", [low.dst(low.ins.operands[0], 64), low.asm.constant(0, 2)])


@rule(r"cp\.async\.(?:ca|cg)\.shared(?:::cta)?\.global(?P<hint>\.L2::cache_hint)?(?:\.L2::(?:64B|128B|256B))?")
def _copy(low: Lowering, match: re.Match[str]) -> None:
    operands = list(low.ins.operands)
    if match["hint"]:
        operands.pop()
    if len(operands) not in (3, 4):
        raise low.error(f"{len(operands)} operands; 3 or 4 are expected")
    to, to_offset = low.narrow_address(operands[0])
    source, source_offset, _ = low.address(operands[1], "global")
    size, ignored = ABSENT, ABSENT
    if len(operands) == 4:
        last = operands[3]
        if isinstance(last, Negated) or (isinstance(last, Register) and last.type == "pred"):
            ignored = low.plain_predicate(last)
        else:
            size = low.src(last)
    low.emit("cp_async", [to, source, size, ignored], low.integer(operands[2]), to_offset, source_offset)


@rule(r"cp\.async\.commit_group")
def _commit(low: Lowering, match: re.Match[str]) -> None:
    low.emit("cp_async_commit", [])


@rule(r"cp\.async\.wait_(group|all)")
def _wait(low: Lowering, match: re.Match[str]) -> None:
    low.emit("cp_async_wait", [], low.integer(low.operands(1)[0]) if match[1] == "group" else -1)


@rule(r"cp\.async\.mbarrier\.arrive(\.noinc)?(?:\.shared(?:::cta)?)?\.b64")
def _arrive(low: Lowering, match: re.Match[str]) -> None:
    slot, offset = low.narrow_address(low.operands(1)[0])
    low.emit("cp_async_mbarrier_arrive", [slot], offset, bool(match[1]))
