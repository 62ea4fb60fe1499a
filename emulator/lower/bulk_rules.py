"""Bulk copies and tensor maps."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.rules import rule
from dsv4.emulator.ptx.model import Address, Operand

MULTICAST, CTA_GROUP_2, ROWS, OWN_CTA = 1, 2, 4, 8
REDUCTIONS = ("", "add", "min", "max", "inc", "dec", "and", "or", "xor")
TENSOR_MAP_FIELDS = (
    *("global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride"),
    *("elemtype", "interleave_layout", "swizzle_mode", "fill_mode", "swizzle_atomicity"),
)
ELEMENT_TYPES = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32.ftz", "f64", "bf16", "b32", "b64")


def _tensor(low: Lowering, operand: Operand) -> tuple[int, int, list[int]]:
    """Slot and offset of a tensor map's address, and the slots of the coordinates."""
    if not isinstance(operand, Address) or operand.coordinates is None:
        raise low.error("a tensor operand [map, {coordinates}] is expected")
    slot, offset, _ = low.address(operand, "generic")
    return slot, offset, [low.src(element) for element in operand.coordinates.elements]


def _element_type(low: Lowering, name: str) -> int:
    if name not in ELEMENT_TYPES:
        raise low.error(f"reductions of .{name} elements do not exist")
    return ELEMENT_TYPES.index(name)


def _rank(low: Lowering, match: re.Match[str], coordinates: list[int]) -> int:
    rank = int(match["rank"])
    expected = 5 if match["rows"] else rank
    if len(coordinates) != expected:
        raise low.error(f"{len(coordinates)} coordinates where {expected} are expected")
    return rank


@rule(
    r"cp\.async\.bulk\.tensor\.(?P<rank>[1-5])d\.shared::(?P<to>cta|cluster)\.global(?:\.tile(?P<rows>::gather4)?)?"
    r"\.mbarrier::complete_tx::bytes(?P<multicast>\.multicast::cluster)?(?P<hint>\.L2::cache_hint)?"
    r"(?:\.cta_group::(?P<group>[12]))?(?P<late>\.L2::cache_hint)?"
)
def _tile_load(low: Lowering, match: re.Match[str]) -> None:
    operands = list(low.operands(3 + sum(bool(match[name]) for name in ("multicast", "hint", "late"))))
    to, to_offset = low.narrow_address(operands[0])
    tensor, tensor_offset, coordinates = _tensor(low, operands[1])
    rank = _rank(low, match, coordinates)
    barrier, barrier_offset = low.narrow_address(operands[2])
    slots = [to, tensor, *coordinates, barrier]
    flags = (CTA_GROUP_2 if match["group"] == "2" else 0) | (ROWS if match["rows"] else 0)
    flags |= OWN_CTA if match["to"] == "cta" else 0
    if match["multicast"]:
        flags |= MULTICAST
        slots.append(low.src(operands[3], 16))
    low.emit("tma_load", slots, rank, flags, to_offset, tensor_offset, barrier_offset)


@rule(
    r"cp\.(?P<reduce>reduce\.)?async\.bulk\.tensor\.(?P<rank>[1-5])d\.global\.shared::cta"
    r"(?:\.(?P<op>add|min|max|inc|dec|and|or|xor))?(?:\.tile(?P<rows>::scatter4)?)?\.bulk_group(?P<hint>\.L2::cache_hint)?"
)
def _tile_store(low: Lowering, match: re.Match[str]) -> None:
    if bool(match["reduce"]) != bool(match["op"]):
        raise low.error("the reduction is missing or has no place here")
    operands = low.operands(3 if match["hint"] else 2)
    tensor, tensor_offset, coordinates = _tensor(low, operands[0])
    rank = _rank(low, match, coordinates)
    source, source_offset = low.narrow_address(operands[1])
    imm = (rank, ROWS if match["rows"] else 0, tensor_offset, source_offset, REDUCTIONS.index(match["op"] or ""))
    low.emit("tma_store", [tensor, *coordinates, source], *imm)


@rule(
    r"cp\.async\.bulk\.prefetch\.tensor\.(?P<rank>[1-5])d\.L2\.global(?:\.tile(?P<rows>::gather4)?)?(?P<hint>\.L2::cache_hint)?"
)
def _tile_prefetch(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(2 if match["hint"] else 1)
    tensor, offset, coordinates = _tensor(low, operands[0])
    low.emit(
        "tma_prefetch", [tensor, *coordinates], _rank(low, match, coordinates), ROWS if match["rows"] else 0, offset
    )


@rule(
    r"cp\.async\.bulk\.shared::(?P<to>cta|cluster)\.(?P<source>global|shared::cta)\.mbarrier::complete_tx::bytes"
    r"(?P<multicast>\.multicast::cluster)?(?P<hint>\.L2::cache_hint)?"
)
def _load(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(4 + bool(match["multicast"]) + bool(match["hint"]))
    to, to_offset = low.narrow_address(operands[0])
    source, source_offset, _ = low.address(operands[1], "global" if match["source"] == "global" else "shared")
    barrier, barrier_offset = low.narrow_address(operands[3])
    mask = low.src(operands[4], 16) if match["multicast"] else ABSENT
    name = "bulk_load" if match["source"] == "global" else "bulk_shared"
    if match["source"] != "global" and (match["to"] == "cta" or match["multicast"] or match["hint"]):
        raise low.error(
            "a bulk copy from shared memory ends in shared::cluster and takes neither mask nor cache policy"
        )
    flags = (MULTICAST if match["multicast"] else 0) | (OWN_CTA if match["to"] == "cta" else 0)
    slots = [to, source, low.src(operands[2]), barrier, mask]
    low.emit(name, slots, flags, to_offset, source_offset, barrier_offset)


@rule(
    r"cp\.(?P<reduce>reduce\.)?async\.bulk\.global\.shared::cta\.bulk_group(?P<hint>\.L2::cache_hint)?"
    r"(?:\.(?P<op>add|min|max|inc|dec|and|or|xor)(?:\.noftz)?\.(?P<type>[a-z]+\d+))?"
)
def _store(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(4 if match["hint"] else 3)
    to, to_offset, _ = low.address(operands[0], "global")
    source, source_offset = low.narrow_address(operands[1])
    if bool(match["reduce"]) != bool(match["op"]):
        raise low.error("the reduction is missing or has no place here")
    kind = _element_type(low, match["type"]) if match["op"] else 0
    imm = (0, to_offset, source_offset, REDUCTIONS.index(match["op"] or ""), kind)
    low.emit("bulk_store", [to, source, low.src(operands[2])], *imm)


@rule(
    r"cp\.reduce\.async\.bulk\.shared::cluster\.shared::cta\.mbarrier::complete_tx::bytes"
    r"\.(?P<op>add|min|max|inc|dec|and|or|xor)\.(?P<type>[bus]\d+)"
)
def _shared_reduction(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(4)
    to, to_offset = low.narrow_address(operands[0])
    source, source_offset = low.narrow_address(operands[1])
    barrier, barrier_offset = low.narrow_address(operands[3])
    slots = [to, source, low.src(operands[2]), barrier, ABSENT]
    operation, kind = REDUCTIONS.index(match["op"]), _element_type(low, match["type"])
    low.emit("bulk_shared", slots, 0, to_offset, source_offset, barrier_offset, operation, kind)


@rule(r"cp\.async\.bulk\.prefetch\.L2\.global(?P<hint>\.L2::cache_hint)?")
def _prefetch(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3 if match["hint"] else 2)
    source, offset, _ = low.address(operands[0], "global")
    low.emit("bulk_prefetch", [source, low.src(operands[1])], offset)


@rule(r"cp\.async\.bulk\.commit_group")
def _commit(low: Lowering, match: re.Match[str]) -> None:
    low.emit("bulk_commit", [])


@rule(r"cp\.async\.bulk\.wait_group(\.read)?")
def _wait(low: Lowering, match: re.Match[str]) -> None:
    low.emit("bulk_wait", [], low.integer(low.operands(1)[0]), bool(match[1]))


@rule(rf"tensormap\.replace\.tile\.({'|'.join(TENSOR_MAP_FIELDS)})\.(?P<space>global|shared::cta)\.b1024\.b(32|64)")
def _replace(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(2, 3)
    slot, offset, _ = low.address(operands[0], "global" if match["space"] == "global" else "shared")
    bits = int(match[3])
    ordinal = low.integer(operands[1]) if len(operands) == 3 else 0
    in_shared = match["space"] != "global"
    imm = (TENSOR_MAP_FIELDS.index(match[1]), ordinal, offset, bits, in_shared)
    low.emit("tensormap_replace", [slot, low.src(operands[-1], bits)], *imm)


@rule(
    r"tensormap\.cp_fenceproxy\.global\.shared::cta\.tensormap::generic\.release\.(?:cta|cluster|gpu|sys)\.sync\.aligned"
)
def _copy_map(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3)
    to, to_offset, _ = low.address(operands[0], "global")
    source, source_offset = low.narrow_address(operands[1])
    low.emit(
        "tensormap_cp_fenceproxy", [to, source], to_offset, source_offset, low.integer(operands[2]), converged=True
    )
