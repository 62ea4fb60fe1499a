"""Matrix instructions in plain NumPy and fractions: where elements lie, and how tensor cores add.

Positions are written from the PTX ISA's fragment tables and from its canonical layouts as CuTe layouts; sums follow the
model that is described in core/matrix_sum.c. Slow, and only meant for tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dsv4.emulator.oracle.floats import add
from dsv4.emulator.oracle.formats import FORMATS, NAN, Value, decode, encode, is_nan

LANES = np.arange(32)
GROUP, MEMBER = LANES >> 2, LANES % 4  # groupID and threadID_in_group of the fragment tables

WIDTHS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "f64": 64}


# --------------------------------------------------------------------------------------------------- register fragments


def a_fragment(k: int, bits: int, m: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of element i of lane l of operand A of an m × k × 8 mma (or a warp's part of wgmma).

    Two arrays (elements of a lane, 32), elements in the order a0, a1, … of the fragment tables.
    """
    count = m * k // 32
    i = np.arange(count)[:, None]
    if m == 8:  # m8n8k16 (8 bits), m8n8k32 (4 bits), m8n8k4 (64 bits)
        return GROUP + 0 * i, MEMBER * count + i
    if bits == 64:  # m16n8k4, k8, k16: rows alternate, then K goes on by 4
        return GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)
    if bits == 32:  # m16n8k4, m16n8k8 with .tf32
        return GROUP + 8 * (i % 2), MEMBER + 4 * (i // 2)
    if bits == 16:  # m16n8k8, m16n8k16
        row = GROUP + 8 * (i // 2 % 2)
        return row, MEMBER * 2 + (i & 1) + np.where(i < 4, 0, 8)
    each = 32 // bits  # elements of a register: 4 of 8 bits, 8 of 4 bits
    row = GROUP + 8 * (i // each % 2)
    return row, MEMBER * each + i % each + np.where(i < 2 * each, 0, 4 * each)


def b_fragment(k: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Row (k) and column (n) of element i of lane l of operand B of an mma with n = 8: two arrays (elements, 32)."""
    i = np.arange(8 * k // 32)[:, None]
    if bits >= 32:  # one element a register
        return MEMBER + 4 * i, GROUP + 0 * i
    each = 32 // bits
    return MEMBER * each + i % each + 4 * each * (i // each), GROUP + 0 * i


def d_fragment(n: int = 8, m: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of accumulator element i of lane l, n columns wide (wgmma: N): two arrays (elements, 32)."""
    i = np.arange(m * n // 32)[:, None]
    per_block = m * 8 // 32  # elements of 8 columns
    return GROUP + 8 * (i % per_block // 2), MEMBER * 2 + (i & 1) + 8 * (i // per_block)


def pack(elements: np.ndarray, bits: int) -> np.ndarray:
    """Registers (uint32 [registers, 32]) of elements (uint32 codes [elements, 32]); the first element is lowest."""
    each = 32 // bits
    grouped = elements.reshape(-1, each, elements.shape[1]).astype(np.uint64)
    shifts = (np.arange(each, dtype=np.uint64) * np.uint64(bits))[None, :, None]
    return np.bitwise_or.reduce(grouped << shifts, axis=1).astype(np.uint32)


def unpack(registers: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of :func:`pack`."""
    each = 32 // bits
    shifts = (np.arange(each, dtype=np.uint32) * np.uint32(bits))[None, :, None]
    mask = np.uint32((1 << bits) - 1)
    return ((registers[:, None, :] >> shifts) & mask).reshape(-1, registers.shape[1])


# ----------------------------------------------------------------------------------------------- tiles in shared memory


@dataclass(frozen=True)
class Tile:
    """A tile of `mn` × `k` elements of `bits` bits in shared memory, as a wgmma descriptor describes it. Bytes."""

    mn: int
    k: int
    bits: int
    mn_major: bool
    swizzle_bytes: int  # 0, 32, 64, 128
    leading_bytes: int
    stride_bytes: int
    base_offset: int = 0

    def descriptor(self, address: int) -> int:
        """The 64-bit descriptor of the tile at a shared address."""
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.swizzle_bytes]
        encoded = [(value & 0x3FFFF) >> 4 for value in (address, self.leading_bytes, self.stride_bytes)]
        return encoded[0] | encoded[1] << 16 | encoded[2] << 32 | self.base_offset << 49 | mode << 62

    def addresses(self, address: int) -> np.ndarray:
        """Address of the first byte of each element, int64 [mn, k], of the tile at `address`.

        The canonical layouts of the PTX ISA: shape and stride trees of CuTe, then Swizzle<b, 4, 3> of the address.
        """
        t = 128 // self.bits
        lbo, sbo = self.leading_bytes * 8 // self.bits, self.stride_bytes * 8 // self.bits
        wide = max(self.swizzle_bytes // 16, 1)
        if self.mn_major and self.swizzle_bytes:
            mn_modes, k_modes = [(t, 1), (wide, t), (0, lbo)], [(8, wide * t), (0, sbo)]
        elif self.mn_major:
            mn_modes, k_modes = [(t, 1), (0, sbo)], [(8, t), (0, lbo)]
        elif self.swizzle_bytes:
            mn_modes, k_modes = [(8, wide * t), (0, sbo)], [(t, 1), (0, t)]
        else:
            mn_modes, k_modes = [(8, t), (0, sbo)], [(t, 1), (0, lbo)]
        elements = layout(self.mn, mn_modes)[:, None] + layout(self.k, k_modes)[None, :]
        return swizzle(address + elements * self.bits // 8, self.swizzle_bytes, self.base_offset)

    def scatter(self, codes: np.ndarray, address: int, memory: np.ndarray, base: int) -> None:
        """Writes element codes [mn, k] of at least 8 bits into `memory` (uint8), whose first byte is address `base`."""
        at = self.addresses(address) - base
        for byte in range(self.bits // 8):
            memory[at + byte] = (codes >> (8 * byte)) & 0xFF


def layout(extent: int, modes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Offsets of coordinates 0..extent-1 under (size, stride) modes, the last of which has any size."""
    index, offset = np.arange(extent), np.zeros(extent, np.int64)
    for size, stride in modes:
        offset += (index % size if size else index) * stride
        index = index // size if size else index * 0
    return offset


def swizzle(address: np.ndarray, swizzle_bytes: int, base_offset: int = 0) -> np.ndarray:
    """Swizzle<b, 4, 3> of byte addresses: bits 4.. are exchanged by bits 7.. (less the base offset)."""
    mask = max(swizzle_bytes // 16, 1) - 1
    return address ^ ((((address >> 7) - base_offset) & mask) << 4)


# ----------------------------------------------------------------------------------------------------- sums of products


@dataclass(frozen=True)
class Model:
    """Fraction bits that terms keep below the largest exponent, and that the result keeps."""

    fraction_bits: int
    result_bits: int


def model(unit: str, a: str, b: str) -> Model:
    """The model of "mma_sync" (other than fp8) or "wgmma" on Hopper."""
    is_fp8 = a in ("e4m3", "e5m2") and b in ("e4m3", "e5m2")
    return Model(13, 13) if unit == "wgmma" and is_fp8 else Model(25, 23)


def value_of(code: int, name: str) -> Value:
    """The number of an element's code; tf32 codes are 32 bits of which the low 13 are ignored."""
    if name == "tf32":
        return decode(code >> 13, name)
    return decode(code, name)


def codes_of(values: np.ndarray, name: str) -> np.ndarray:
    """Codes (uint32) of finite float64 values, each rounded to nearest even."""
    codes = [encode(Fraction(value), name) for value in values.ravel().tolist()]
    return np.array(codes, np.uint32).reshape(values.shape)


def _exponent(value: Value, name: str) -> int | None:
    if value == 0 or not isinstance(value, Fraction):
        return None
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    return max(exponent, 1 - FORMATS[name].bias)


def _truncated(value: Fraction, step: Fraction) -> Fraction:
    steps = value / step
    whole = abs(steps.numerator) // steps.denominator
    return (whole if steps >= 0 else -whole) * step


def sum_of_products(a: Iterable[int], b: Iterable[int], c: int, types: tuple[str, str, str, str], rule: Model) -> int:
    """The code of c + Σ a·b as the model gives it. Codes in, code out; types of A, B, C and D. There is one NaN."""
    a_type, b_type, c_type, d_type = types
    pairs = [(value_of(x, a_type), value_of(y, b_type)) for x, y in zip(a, b, strict=True)]
    accumulator = decode(c, c_type)
    special = [x for pair in pairs for x in pair if isinstance(x, float) and x != 0]
    if special or (isinstance(accumulator, float) and accumulator != 0):
        total = float(accumulator)
        for x, y in pairs:
            total += float(x) * float(y)
        return encode(NAN if is_nan(total) else total, d_type)
    terms = [(Fraction(accumulator), _exponent(accumulator, c_type))]
    for x, y in pairs:
        exponents = _exponent(x, a_type), _exponent(y, b_type)
        if exponents[0] is not None and exponents[1] is not None:
            terms.append((Fraction(x) * Fraction(y), exponents[0] + exponents[1]))
    present = [exponent for _, exponent in terms if exponent is not None]
    if not present:
        return 0
    step = Fraction(2) ** (max(present) - rule.fraction_bits)
    total_sum = sum((_truncated(value, step) for value, _ in terms), Fraction(0))
    if total_sum == 0:
        return 0
    if d_type == "f16":
        return encode(total_sum, "f16") & (0x7FFF if encode(total_sum, "f16") == 0x8000 else 0xFFFF)
    exponent = _exponent(total_sum, "f32")
    assert exponent is not None
    rounded = _truncated(total_sum, Fraction(2) ** (exponent - rule.result_bits))
    return encode(rounded, "f32") if rounded else 0


def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray, types: tuple[str, str, str, str], rule: Model) -> np.ndarray:
    """Codes of D = A·B + C under the model: a [m, k], b [k, n], c [m, n]; uint32."""
    out = np.zeros(c.shape, np.uint32)
    for m, n in itertools.product(*map(range, c.shape)):
        out[m, n] = sum_of_products(a[m].tolist(), b[:, n].tolist(), int(c[m, n]), types, rule)
    return out


def mma_sync(a: np.ndarray, b: np.ndarray, c: np.ndarray, types: tuple[str, str, str, str]) -> np.ndarray:
    """D = A·B + C of mma.sync on Hopper and on sm_100; arguments as of :func:`multiply`.

    fp8 is widened to f16 and multiplied twice, elements 0 and 1 of every four along K, then 2 and 3 on top; C is added
    to that with an ordinary addition.
    """
    a_type, b_type, c_type, d_type = types
    if a_type not in ("e4m3", "e5m2"):
        return multiply(a, b, c, types, model("mma_sync", a_type, b_type))
    wide_a, wide_b = (
        np.array([encode(decode(code, name), "f16") for code in codes.ravel().tolist()], np.uint32).reshape(codes.shape)
        for codes, name in ((a, a_type), (b, b_type))
    )
    total = np.zeros(c.shape, np.uint32)
    late = np.arange(a.shape[1]) % 4 >= 2
    for half in (~late, late):
        total = multiply(
            wide_a[:, half], wide_b[half], total, ("f16", "f16", d_type, d_type), model("mma_sync", "f16", "f16")
        )
    sums = [
        encode(add(decode(x, d_type), decode(y, c_type)), d_type)
        for x, y in zip(total.ravel().tolist(), c.ravel().tolist(), strict=True)
    ]
    return np.array(sums, np.uint32).reshape(c.shape)


def integers_of(codes: np.ndarray, name: str) -> np.ndarray:
    """s8, u8, s4, u4 codes as int64."""
    bits = WIDTHS[name]
    values = codes.astype(np.int64) & ((1 << bits) - 1)
    return values - ((values >> (bits - 1)) << bits) if name.startswith("s") else values


def multiply_integers(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, types: tuple[str, str], *, saturate: bool = False
) -> np.ndarray:
    """D = A·B + C in int32, wrapped or limited; uint32 codes [m, n]."""
    exact = integers_of(a, types[0]) @ integers_of(b, types[1]) + c.astype(np.uint32).view(np.int32)
    if saturate:
        exact = np.clip(exact, -(2**31), 2**31 - 1)
    return (exact & 0xFFFFFFFF).astype(np.uint32)


# --------------------------------------------------------------------------------------------------- ldmatrix, stmatrix


def unpacked_row(row: np.ndarray, bits: int) -> np.ndarray:
    """16 elements of 4 or 6 bits from the 16 bytes of a padded row, one a byte, in the low bits."""
    number = int.from_bytes(row.tobytes(), "little")
    return np.array([number >> (bits * e) & ((1 << bits) - 1) for e in range(16)], np.uint8)


def ldmatrix(rows: np.ndarray, shape: str, *, transposed: bool) -> np.ndarray:
    """Registers, uint32 [registers, 32], of matrices whose rows of 16 bytes are given: uint8 [rows, 16].

    Without transposition lane l holds bytes of row l // 4 of an 8-row matrix, as the PTX ISA's figures show it.
    """
    loaded = []
    if shape == "m16n16":  # 8-bit elements, always transposed: 4 consecutive columns in 2 rows of the transposed matrix
        for matrix in rows.reshape(-1, 16, 16):
            columns = matrix.T
            for half in range(2):
                loaded.append(columns[8 * half : 8 * half + 8].reshape(32, 4))
    else:
        for matrix in rows.reshape(-1, 8, 16):
            elements = matrix.copy().view(np.uint16)
            chosen = elements.T if transposed else elements
            loaded.append(np.ascontiguousarray(chosen).view(np.uint8).reshape(32, 4))
    return np.stack([np.ascontiguousarray(one).view(np.uint32)[:, 0] for one in loaded])


def stmatrix(registers: np.ndarray, shape: str, *, transposed: bool) -> np.ndarray:
    """Rows of 16 bytes, uint8 [rows, 16], that registers uint32 [registers, 32] are stored to."""
    stored = []
    for register in registers:
        lanes = np.ascontiguousarray(register).view(np.uint8).reshape(32, 4)
        if shape == "m16n8":  # e0, e1 in row l // 4, columns 2 (l % 4) and the next; e2, e3 in row l // 4 + 8
            matrix = np.zeros((16, 8), np.uint8)
            for element in range(4):
                matrix[GROUP + 8 * (element >> 1), 2 * MEMBER + (element & 1)] = lanes[:, element]
            stored.append(matrix.T)
            continue
        matrix16 = lanes.reshape(8, 16).copy().view(np.uint16)
        chosen = matrix16.T if transposed else matrix16
        stored.append(np.ascontiguousarray(chosen).view(np.uint8))
    return np.concatenate(stored)
