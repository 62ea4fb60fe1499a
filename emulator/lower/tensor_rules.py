"""Matrix instructions: ldmatrix, stmatrix, mma.sync, wgmma, tcgen05. README.md here says what the handlers get."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.rules import rule
from dsv4.emulator.ptx.model import Address, Immediate, Operand

ELEMENTS = (
    "f16",
    "bf16",
    "tf32",
    "e4m3",
    "e5m2",
    "s8",
    "u8",
    "f32",
    "s32",
    "e2m1",
    "e2m3",
    "e3m2",
    "f64",
    "b1",
    "s4",
    "u4",
)
_MATRIX = r"(m8n8|m16n16|m8n16|m16n8)\.x(1|2|4)(\.trans)?\.shared(?:::cta)?\.(b16|b8x16\.b6x16_p32|b8x16\.b4x16_p64|b8)"
SHAPES = ("m8n8", "m16n16", "m8n16", "m16n8")
SOURCES = {"b16": 0, "b8": 1, "b8x16.b6x16_p32": 2, "b8x16.b4x16_p64": 3}
TMEM_SHAPES = ("32x32b", "16x64b", "16x128b", "16x256b", "16x32bx2")
COPY_SHAPES = ("128x256b", "4x256b", "128x128b", "64x128b", "32x128b")
MULTICASTS = ("", "warpx4", "warpx2::02_13", "warpx2::01_23")
COPY_FORMATS = ("", "b8x16.b6x16_p32", "b8x16.b4x16_p64")
KINDS = ("f16", "tf32", "f8f6f4", "i8", "mxf8f6f4", "mxf4", "mxf4nvf4")


@rule(rf"ldmatrix\.sync\.aligned\.{_MATRIX}")
def _ldmatrix(low: Lowering, match: re.Match[str]) -> None:
    d, a = low.operands(2)
    slot, offset = low.narrow_address(a)
    slots = [low.dst(element) for element in low.elements(d)]
    imm = (offset, int(match[2]), SHAPES.index(match[1]), bool(match[3]), SOURCES[match[4]])
    low.emit("ldmatrix", [*slots, slot], *imm, converged=True)


@rule(rf"stmatrix\.sync\.aligned\.{_MATRIX}")
def _stmatrix(low: Lowering, match: re.Match[str]) -> None:
    a, values = low.operands(2)
    slot, offset = low.narrow_address(a)
    sources = [low.src(element) for element in low.elements(values)]
    imm = (offset, int(match[2]), SHAPES.index(match[1]), bool(match[3]), SOURCES[match[4]])
    low.emit("stmatrix", [slot, *sources], *imm, converged=True)


_E = f"({'|'.join(sorted(ELEMENTS, key=len, reverse=True))})"


@rule(rf"mma\.sync\.aligned\.m(\d+)n(\d+)k(\d+)\.row\.col(?:\.kind::f8f6f4)?(\.satfinite)?\.{_E}\.{_E}\.{_E}\.{_E}")
def _mma(low: Lowering, match: re.Match[str]) -> None:
    d, a, b, c = low.operands(4)
    bits = 64 if "f64" in match.groups() else 32
    slots = [low.dst(e, bits) for e in low.elements(d)]
    slots += [low.src(e, bits, "f") for operand in (a, b, c) for e in low.elements(operand)]
    m, n, k = (int(match[group]) for group in (1, 2, 3))
    types = (ELEMENTS.index(match[group]) for group in (5, 6, 7, 8))
    low.emit("mma_sync", slots, m, n, k, *types, bool(match[4]), converged=True)


@rule(rf"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)(\.satfinite)?\.{_E}\.{_E}\.{_E}(\.satfinite)?")
def _wgmma(low: Lowering, match: re.Match[str]) -> None:
    operands = low.ins.operands
    if len(operands) < 4:
        raise low.error(f"{len(operands)} operands are too few")
    n, k = int(match[1]), int(match[2])
    d, a, b, scale = operands[:4]
    accumulators = [low.dst(e) for e in low.elements(d)]
    expected = n // 4 if match[4] == "f16" else n // 2
    if len(accumulators) != expected:
        raise low.error(f"{len(accumulators)} accumulator registers where {expected} are expected")
    in_registers = len(low.elements(a)) == 4
    sources = [low.src(e) for e in low.elements(a)] if in_registers else [low.src(a, 64)]
    literals = [low.integer(operand) for operand in operands[4:]]
    # floating point has scale-a, scale-b and, for 16-bit elements, a transpose for each operand in shared memory
    scale_a, scale_b = (literals[0], literals[1]) if len(literals) >= 2 else (1, 1)
    rest = literals[2:]
    allowed = ((1,) if in_registers else (2,)) if match[5] in ("f16", "bf16") else (0,)
    if len(rest) not in (*allowed, 0) or (len(rest) == 0 and match[5] in ("f16", "bf16")):
        raise low.error(f"{len(literals)} immediates behind the scale predicate are not what this form takes")
    transpose_a = 0 if in_registers or not rest else rest[0]
    transpose_b = rest[-1] if rest else 0
    flags = (
        (1 if in_registers else 0)
        | (2 if scale_a == -1 else 0)
        | (4 if scale_b == -1 else 0)
        | (8 if transpose_a else 0)
        | (16 if transpose_b else 0)
        | (32 if match[3] or match[7] else 0)
    )
    slots = [*accumulators, *sources, low.src(b, 64), low.plain_predicate(scale)]
    types = (ELEMENTS.index(match[group]) for group in (4, 5, 6))
    low.emit("wgmma", slots, n, k, *types, flags, len(accumulators), converged=True)


@rule(r"wgmma\.(fence|commit_group)\.sync\.aligned")
def _wgmma_group(low: Lowering, match: re.Match[str]) -> None:
    low.emit("wgmma_fence" if match[1] == "fence" else "wgmma_commit", [], converged=True)


@rule(r"wgmma\.wait_group\.sync\.aligned")
def _wgmma_wait(low: Lowering, match: re.Match[str]) -> None:
    low.emit("wgmma_wait", [], low.integer(low.operands(1)[0]), converged=True)


_GROUP = r"\.cta_group::([12])"


@rule(rf"tcgen05\.alloc{_GROUP}\.sync\.aligned(?:\.shared::cta)?\.b32")
def _alloc(low: Lowering, match: re.Match[str]) -> None:
    a, columns = low.operands(2)
    slot, offset = low.narrow_address(a)
    low.emit("tcgen05_alloc", [slot, low.src(columns)], int(match[1]), offset, converged=True)


@rule(rf"tcgen05\.dealloc{_GROUP}\.sync\.aligned\.b32")
def _dealloc(low: Lowering, match: re.Match[str]) -> None:
    a, columns = low.operands(2)
    low.emit("tcgen05_dealloc", [low.src(a), low.src(columns)], int(match[1]), converged=True)


@rule(rf"tcgen05\.relinquish_alloc_permit{_GROUP}\.sync\.aligned")
def _relinquish(low: Lowering, match: re.Match[str]) -> None:
    low.emit("tcgen05_relinquish", [], int(match[1]), converged=True)


_TMEM = rf"\.sync\.aligned\.({'|'.join(TMEM_SHAPES)})\.x(\d+)"


@rule(rf"tcgen05\.ld{_TMEM}(\.pack::16b)?\.b32")
def _tmem_load(low: Lowering, match: re.Match[str]) -> None:
    d, a, *half = low.operands(2, 3)
    slot, offset = low.address(a, "tmem")[:2]
    slots = [low.dst(e) for e in low.elements(d)]
    split = low.integer(half[0]) if half else 0
    imm = (TMEM_SHAPES.index(match[1]), int(match[2]), bool(match[3]), split, len(slots), offset)
    low.emit("tcgen05_ld", [*slots, slot], *imm, converged=True)


@rule(rf"tcgen05\.st{_TMEM}(\.unpack::16b)?\.b32")
def _tmem_store(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(2, 3)
    slot, offset = low.address(operands[0], "tmem")[:2]
    sources = [low.src(e) for e in low.elements(operands[-1])]
    split = low.integer(operands[1]) if len(operands) == 3 else 0
    imm = (TMEM_SHAPES.index(match[1]), int(match[2]), bool(match[3]), split, len(sources), offset)
    low.emit("tcgen05_st", [slot, *sources], *imm, converged=True)


@rule(r"tcgen05\.wait::(ld|st)\.sync\.aligned")
def _tmem_wait(low: Lowering, match: re.Match[str]) -> None:
    low.emit("tcgen05_wait", [], match[1] == "st", converged=True)


@rule(r"tcgen05\.fence::(before|after)_thread_sync")
def _tmem_fence(low: Lowering, match: re.Match[str]) -> None:
    low.emit("tcgen05_fence", [], match[1] == "after")


@rule(
    rf"tcgen05\.cp{_GROUP}\.({'|'.join(COPY_SHAPES)})(?:\.(warpx4|warpx2::02_13|warpx2::01_23))?"
    r"(?:\.(b8x16\.b6x16_p32|b8x16\.b4x16_p64))?"
)
def _tmem_copy(low: Lowering, match: re.Match[str]) -> None:
    d, descriptor = low.operands(2)
    slot, offset = low.address(d, "tmem")[:2]
    multicast, source = MULTICASTS.index(match[3] or ""), COPY_FORMATS.index(match[4] or "")
    imm = (int(match[1]), COPY_SHAPES.index(match[2]), multicast, source, offset)
    low.emit("tcgen05_cp", [slot, low.src(descriptor, 64)], *imm)


@rule(rf"tcgen05\.shift{_GROUP}\.down")
def _shift(low: Lowering, match: re.Match[str]) -> None:
    slot, offset = low.address(low.operands(1)[0], "tmem")[:2]
    low.emit("tcgen05_shift", [slot], int(match[1]), offset)


@rule(rf"tcgen05\.commit{_GROUP}\.mbarrier::arrive::one(?:\.shared::cluster)?(\.multicast::cluster)?\.b64")
def _commit(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(2 if match[2] else 1)
    slot, offset = low.narrow_address(operands[0])
    mask = low.src(operands[1], 16) if match[2] else ABSENT
    low.emit("tcgen05_commit", [slot, mask], int(match[1]), offset)


@rule(
    rf"tcgen05\.mma(?P<sparse>\.sp)?\.cta_group::(?P<group>[12])"
    rf"\.kind::(?P<kind>{'|'.join(sorted(KINDS, key=len, reverse=True))})"
    r"(?P<scaled>\.block_scale)?(?:\.(?:scale_vec::(?P<vector>[124])X|block(?P<block>16|32)))?"
    r"(?P<ashift>\.ashift)?(?:\.collector::a(?:::(?:fill|use|lastuse|discard))?)?"
)
def _tmem_mma(low: Lowering, match: re.Match[str]) -> None:
    if match["sparse"]:
        raise low.error("sparse matrices are not supported")
    if match["ashift"]:
        raise low.error("a shift of A's rows is not supported")
    operands: list[Operand] = list(low.ins.operands)
    if len(operands) < 5:
        raise low.error(f"{len(operands)} operands are too few")
    d, a, b, descriptor, *rest = operands
    d_slot, d_offset = low.address(d, "tmem")[:2]
    a_in_tmem = isinstance(a, Address)
    a_slot, a_offset = low.address(a, "tmem")[:2] if a_in_tmem else (low.src(a, 64), 0)
    scales, offsets = [ABSENT, ABSENT], [0, 0]
    if match["scaled"]:
        for n in range(2):
            scales[n], offsets[n] = low.address(rest.pop(0), "tmem")[:2]
        if any(offsets):
            raise low.error("scale addresses with a constant offset are not supported")
    lanes: list[int] = []
    if rest and hasattr(rest[0], "elements"):
        lanes = [low.src(e) for e in low.elements(rest.pop(0))]
    if not rest:
        raise low.error("the enable-input-d predicate is missing")
    enable = low.plain_predicate(rest.pop(0))
    scale_input = low.integer(rest.pop(0)) if rest and isinstance(rest[0], Immediate) else 0
    if rest:
        raise low.error(f"{len(rest)} operands too many")
    slots = [d_slot, a_slot, low.src(b, 64), low.src(descriptor), *scales, enable, *lanes]
    # elements that share a scale: .block16 / .block32, or 4X, 2X, 1X per 64 (mxf4*) or 32 elements of K
    block = int(match["block"] or 0)
    if match["vector"]:
        block = {"1": 32, "2": 32, "4": 16}[match["vector"]]
    elif match["scaled"] and not block:
        block = 32
    imm = (
        KINDS.index(match["kind"]),
        int(match["group"]),
        int(a_in_tmem),
        block,
        len(lanes),
        scale_input,
        d_offset,
        a_offset,
    )
    low.emit("tcgen05_mma", slots, *imm)
