"""Where the operands of tcgen05 instructions lie, by the tables of the PTX ISA, as NumPy index arrays.

Written independently of the core: shared-memory tiles from the ISA's canonical layouts, registers of tcgen05.ld and .st
from the bit layouts of CuTe's copy atoms, D and the scale factors from the ISA's data path organisations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from dsv4.emulator.oracle.formats import FORMATS, decode

SWIZZLES = {0: 0, 128: 2, 64: 4, 32: 6}  # bytes: bits 63..61 of a descriptor
KINDS = {
    "f16": 16,
    "tf32": 8,
    "f8f6f4": 32,
    "i8": 32,
    "mxf8f6f4": 32,
    "mxf4": 64,
    "mxf4nvf4": 64,
}  # K of one instruction
TYPE_CODES = {
    "f16": {"f16": 0, "bf16": 1},
    "tf32": {"tf32": 2},
    "f8f6f4": {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5},
    "mxf8f6f4": {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5},
    "i8": {"u8": 0, "s8": 1},
    "mxf4": {"e2m1": 1},
    "mxf4nvf4": {"e2m1": 1},
}
RESULT_CODES = {"f16": 0, "f32": 1, "s32": 2}


# ------------------------------------------------------------------------------------------------------- formats


@cache
def values_of(name: str) -> np.ndarray:
    """The numbers (float64) that all codes of an element or scale type of at most 16 bits stand for."""
    if name in ("s8", "u8"):
        return np.arange(256, dtype=np.uint8).view(np.int8 if name == "s8" else np.uint8).astype(np.float64)
    if name == "ue8m0":
        return np.array([2.0 ** (code - 127) for code in range(255)] + [np.nan])
    if name == "ue4m3":
        return np.array([float(decode(code & 0x7F, "e4m3")) for code in range(256)])
    return np.array([float(decode(code, name)) for code in range(1 << FORMATS[name].bits)])


def numbers(codes: np.ndarray, name: str) -> np.ndarray:
    """float64 values of codes; tf32 codes are 32 bits of which the low 13 are ignored."""
    if name == "tf32":
        return (codes.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return values_of(name)[codes]


def element_bits(name: str) -> int:
    """Bits of an element as data; tf32 has 32."""
    return {"tf32": 32, "s8": 8, "u8": 8}.get(name) or FORMATS[name].bits


# --------------------------------------------------------------------------------------------------- descriptors


def instruction_descriptor(
    kind: str,
    a: str,
    b: str,
    d: str,
    m: int,
    n: int,
    *,
    mn_major: tuple[bool, bool] = (False, False),
    negate: tuple[bool, bool] = (False, False),
    saturate: bool = False,
    scale: str = "ue8m0",
    scale_ids: tuple[int, int] = (0, 0),
) -> int:
    """The 32-bit instruction descriptor (tables 42 to 44 of the ISA's tcgen05 chapter)."""
    word = TYPE_CODES[kind][a] << 7 | TYPE_CODES[kind][b] << 10 | n // 8 << 17
    word |= negate[0] << 13 | negate[1] << 14 | mn_major[0] << 15 | mn_major[1] << 16
    if kind.startswith("mx"):
        return word | m // 128 << 27 | scale_ids[1] << 4 | scale_ids[0] << 29 | (scale == "ue8m0") << 23
    return word | m // 16 << 24 | RESULT_CODES[d] << 4 | saturate << 3


@dataclass(frozen=True)
class Tile:
    """An operand in shared memory. `start` is a shared address; `leading` and `stride` are LBO and SBO in bytes.

    `swizzle` is 0, 32, 64 or 128 bytes, `wide` the 128-byte swizzle with 32-byte atoms. `padded`: 4- and 6-bit elements
    of f8f6f4, sixteen of them in 16 bytes.
    """

    start: int
    leading: int
    stride: int
    swizzle: int = 128
    mn_major: bool = False
    wide: bool = False
    padded: bool = False

    def descriptor(self) -> int:
        """The 64-bit shared memory descriptor (table 40)."""
        mode = 1 if self.wide else SWIZZLES[self.swizzle]
        fields = (self.start & 0x3FFFF) >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32
        return fields | 1 << 46 | mode << 61

    def addresses(self, mn_count: int, k_count: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """Shared byte address and first bit in it of every element [mn, k] (table 'Canonical Layouts')."""
        spread = 8 if self.padded else bits
        mn, k = np.arange(mn_count)[:, None], np.arange(k_count)[None, :]
        unit = 128 // spread  # T of the table: elements in 16 bytes
        width = max(self.swizzle, 16) // 16
        leading, stride = self.leading * 8 // spread, self.stride * 8 // spread
        if not self.mn_major and not self.swizzle:
            at = mn % 8 * unit + mn // 8 * stride + k % unit + k // unit * leading
        elif not self.mn_major:
            at = mn % 8 * width * unit + mn // 8 * stride + k
        elif not self.swizzle:
            at = mn % unit + mn // unit * stride + k % 8 * unit + k // 8 * leading
        else:
            rows = 4 if self.wide else 8
            at = mn % (unit * width) + mn // (unit * width) * leading + k % rows * unit * width + k // rows * stride
        if self.padded:
            inside = at % 16 * bits
            byte = self.start + at - at % 16 + inside // 8
            bit = inside % 8
        else:
            byte, bit = self.start + at * bits // 8, at * bits % 8
        if self.wide:
            byte = byte ^ ((byte >> 7 & 3) << 5)
        elif self.swizzle:
            byte = byte ^ ((byte >> 7 & (width - 1)) << 4)
        return byte, bit

    def write(self, memory: np.ndarray, codes: np.ndarray, bits: int, base: int = 1024) -> None:
        """Puts the codes [mn, k] into `memory`, whose byte 0 has the shared address `base`."""
        byte, bit = self.addresses(codes.shape[0], codes.shape[1], bits)
        for b in range(bits):
            at = bit + b
            lane = (codes >> b & 1).astype(np.uint8)
            where = byte - base + at // 8
            np.bitwise_and.at(memory, where, (~(1 << at % 8) & 0xFF).astype(np.uint8))
            np.bitwise_or.at(memory, where, (lane << (at % 8)).astype(np.uint8))


# ----------------------------------------------------------------------------------------------- tensor memory


@dataclass(frozen=True)
class Places:
    """For every element of a matrix: CTA of the pair, lane, column (arrays of the matrix's shape)."""

    cta: np.ndarray
    lane: np.ndarray
    column: np.ndarray


def d_places(m: int, n: int, cta_group: int = 1, first_lane: int = 0) -> Places:
    """Where D[row, column] lies: data path layouts A (M = 256), B (128, pair), D (128) and F (64)."""
    row, column = np.broadcast_arrays(np.arange(m)[:, None], np.arange(n)[None, :])
    rows = m // cta_group
    cta, row = row // rows, row % rows
    if rows == 128:
        return Places(cta, row, column)
    if cta_group == 1:
        return Places(cta, row // 16 * 32 + row % 16 + first_lane, column)
    return Places(cta, row + column // (n // 2) * 64, column % (n // 2))


def a_places(m: int, words: int, cta_group: int = 1, first_lane: int = 0) -> list[Places]:
    """Where an A in tensor memory lies, [row, word of K]; a pair with M = 128 has it twice (lanes 0.. and 64..)."""
    row, column = np.broadcast_arrays(np.arange(m)[:, None], np.arange(words)[None, :])
    rows = m // cta_group
    cta, row = row // rows, row % rows
    if rows == 128:
        return [Places(cta, row, column)]
    if cta_group == 1:
        return [Places(cta, row // 16 * 32 + row % 16 + first_lane, column)]
    return [Places(cta, row + half * 64, column) for half in range(2)]


def scale_places(mn: int, *, folded: bool = False) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(index of the row, lane, column) of the words with scale factors, once for each of the four lane quarters.

    `folded`: of B when D is in layout B; quarters 0 and 1 have the first half of the columns, 2 and 3 the second.
    """
    found = []
    for quarter in range(4):
        index = np.arange(mn // 2) + quarter // 2 * (mn // 2) if folded else np.arange(mn)
        at = index % (mn // 2) if folded else index
        found.append((index, quarter * 32 + at % 32, at // 32))
    return found


# ------------------------------------------------------------------------------------------------ tcgen05.ld, .st

# shape of the threads, and their strides in bits at one repetition (the row stride grows with the repetitions)
_THREADS: dict[str, tuple[tuple[int, ...], tuple[int | str, ...]]] = {
    "32x32b": ((32,), ("row",)),
    "16x64b": ((2, 2, 8), ("8 rows", 32, "row")),
    "16x128b": ((4, 8), (32, "row")),
    "16x256b": ((4, 8), (64, "row")),
    "16x32bx2": ((16, 2), ("row", "half")),
}
# registers of a repetition: their offsets
_REGISTERS: dict[str, list[int | str]] = {
    "32x32b": [0],
    "16x64b": [0],
    "16x128b": [0, "8 rows"],
    "16x256b": [0, 32, "8 rows", "8 rows + 32"],
    "16x32bx2": [0],
}
_BITS = {"32x32b": 32, "16x64b": 64, "16x128b": 128, "16x256b": 256, "16x32bx2": 32}


def move_places(shape: str, repetitions: int, *, packed: bool = False, split: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Lane and column (from the base) of register r of thread t as arrays [r, t]; packed: of its lower half."""
    row_bits = _BITS[shape] * repetitions
    extents, strides = _THREADS[shape]
    lanes, columns = [], []
    for repetition in range(repetitions):
        for offset in _REGISTERS[shape]:
            register_lanes, register_columns = [], []
            for thread in range(32):
                bits, half, rest = repetition * _BITS[shape], 0, thread
                for extent, stride in zip(extents, strides, strict=True):
                    index, rest = rest % extent, rest // extent
                    if stride == "half":
                        half = index
                    else:
                        bits += index * _stride(stride, row_bits)
                bits += _stride(offset, row_bits)
                register_lanes.append(bits // row_bits)
                register_columns.append(bits % row_bits // 32 * (2 if packed else 1) + half * split)
            lanes.append(register_lanes)
            columns.append(register_columns)
    return np.array(lanes), np.array(columns)


def _stride(stride: int | str, row_bits: int) -> int:
    if isinstance(stride, int):
        return stride
    return {"row": row_bits, "8 rows": 8 * row_bits, "8 rows + 32": 8 * row_bits + 32}[stride]


# ------------------------------------------------------------------------------------------------------ tcgen05.cp


def copy_places(shape: str, multicast: str = "", first_lane: int = 0) -> list[np.ndarray]:
    """Lanes of the rows of a tcgen05.cp, one array for each copy that is made of them."""
    if shape == "4x256b":
        return [first_lane + 32 * np.arange(4)]
    rows = np.arange(int(shape.split("x")[0]))
    if multicast == "warpx4":
        return [rows + 32 * quarter for quarter in range(4)]
    if multicast == "warpx2::02_13":
        return [rows, rows + 64]
    if multicast == "warpx2::01_23":
        return [rows // 32 * 64 + rows % 32 + 32 * copy for copy in range(2)]
    return [rows]


def unpacked(unit: np.ndarray, bits: int) -> np.ndarray:
    """The 16 bytes that a 16-byte unit of 4- or 6-bit elements becomes: 4 bits in bits 5..2, 6 bits in bits 5..0."""
    stream = np.unpackbits(unit.astype(np.uint8), bitorder="little")[: 16 * bits].reshape(16, bits)
    codes = (stream.astype(np.uint16) << np.arange(bits)).sum(axis=1)
    return (codes << 2 if bits == 4 else codes).astype(np.uint8)
