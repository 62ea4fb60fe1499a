"""Tiles in shared memory: the core's addresses against CuTe layouts, those against the ISA's worked examples."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from dsv4.emulator import library
from dsv4.emulator.oracle.matrix import Tile, layout, swizzle
from tests.emulator.matrix_machine import SHARED_BASE


class SmemMatrix(ctypes.Structure):
    """struct SmemMatrix of core/matrix.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint32)
        for name in ("start", "leading_bytes", "stride_bytes", "swizzle_bytes", "atom_bytes", "base_offset", "mn_major")
    )


def core_addresses(tile: SmemMatrix, mn: int, k: int, bits: int) -> np.ndarray:
    """Address of each element's first byte, int64 [mn, k]."""
    offset = library.load().c.matrix_offset
    offset.restype = ctypes.c_uint32
    found = [offset(ctypes.byref(tile), m, x, bits) for m, x in itertools.product(range(mn), range(k))]
    return np.array(found, np.int64).reshape(mn, k) + SHARED_BASE


def core_units(tile: SmemMatrix, mn: int, k: int, bits: int) -> np.ndarray:
    """Addresses of the 16-byte units in the order of `matrix_units`."""
    core = library.load().c
    count = core.matrix_unit_count(ctypes.byref(tile), mn, k, bits)
    out = np.zeros(count, np.uint32)
    assert core.matrix_units(ctypes.byref(tile), mn, k, bits, library.pointer(out)) == count
    return out.astype(np.int64) + SHARED_BASE


# the ISA's examples, in elements: name, bits, MN-major, swizzle, LBO, SBO, then the exact layout's modes of MN and of K
EXAMPLES = [
    ("K, none, tf32", 32, False, 0, 64, 32, [(8, 4), (2, 32)], [(4, 1), (4, 64)]),
    ("K, 32B, tf32", 32, False, 32, 1, 64, [(8, 8), (2, 64)], [(4, 1), (4, 4)]),
    ("MN, none, bf16", 16, True, 0, 128, 64, [(8, 1), (1, 8), (2, 64)], [(8, 8), (2, 128)]),
    ("MN, 32B, bf16", 16, True, 32, 128, 256, [(8, 1), (2, 8), (2, 128)], [(8, 16), (2, 256)]),
    ("MN, 64B, bf16", 16, True, 64, 256, 512, [(8, 1), (4, 8), (2, 256)], [(8, 32), (2, 512)]),
]


@pytest.mark.parametrize(("name", "bits", "mn_major", "swizzle_bytes", "lbo", "sbo", "mn", "k"), EXAMPLES)
def test_the_oracle_agrees_with_the_worked_examples(
    name: str, bits: int, mn_major: bool, swizzle_bytes: int, lbo: int, sbo: int, mn: list, k: list
) -> None:
    extents = [int(np.prod([size for size, _ in modes])) for modes in (mn, k)]
    if name.startswith("K, 32B"):
        extents[1] = 8  # one wgmma takes 32 bytes of K; a second step has a start address of its own
    tile = Tile(extents[0], extents[1], bits, mn_major, swizzle_bytes, lbo * bits // 8, sbo * bits // 8)
    elements = layout(extents[0], mn)[:, None] + layout(extents[1], k)[None, :]
    assert np.array_equal(tile.addresses(0), swizzle(elements * bits // 8, swizzle_bytes))


@pytest.mark.parametrize("swizzle_bytes", [0, 32, 64, 128])
@pytest.mark.parametrize(
    ("bits", "mn_major"), [(4, False), (8, False), (8, True), (16, False), (16, True), (32, False), (32, True)]
)
def test_core_addresses(bits: int, mn_major: bool, swizzle_bytes: int) -> None:
    mn, k = 128, 256 // bits
    if mn_major and bits == 4:
        return
    for leading, stride, start, base in (
        (5120, 2048, 2048, 0),
        (4096, 12288, 3072 + 384, 3),
        (1024, 3072, 2048 + 64, 0),
    ):
        tile = Tile(mn, k, bits, mn_major, swizzle_bytes, leading, stride, base)
        c_tile = SmemMatrix(start, leading, stride, swizzle_bytes, 16, base, int(mn_major))
        assert np.array_equal(core_addresses(c_tile, mn, k, bits), tile.addresses(start))
        units = tile.addresses(start)[:: 128 // bits if mn_major else 1, :: 1 if mn_major else 128 // bits]
        assert np.array_equal(core_units(c_tile, mn, k, bits), (units.T if mn_major else units).ravel())


def test_tcgen05_atoms_of_32_bytes() -> None:
    """Swizzle<2, 5, 2> o ((8, n), (4, k)):((1, LBO), (8, SBO)) in units of 16 bytes: MN-major tf32 only."""
    mn, k, leading, stride = 64, 8, 4096, 512
    units = layout(mn // 4, [(8, 1), (0, leading // 16)])[:, None] + layout(k, [(4, 8), (0, stride // 16)])[None, :]
    plain = 2048 + 16 * np.repeat(units, 4, axis=0) + 4 * (np.arange(mn) % 4)[:, None]
    expected = plain ^ ((plain >> 7 & 3) << 5)
    assert np.array_equal(core_addresses(SmemMatrix(2048, leading, stride, 128, 32, 0, 1), mn, k, 32), expected)


def test_the_descriptor_of_wgmma_is_taken_apart() -> None:
    tile = Tile(8, 16, 16, True, 64, 0x12340, 0x2BCD0, base_offset=5)
    decode = library.load().c.wgmma_matrix
    decode.restype, decode.argtypes = SmemMatrix, [ctypes.c_uint64, ctypes.c_int]
    found = decode(tile.descriptor(0x3FEC0), 1)
    fields = [getattr(found, name) for name, _ in SmemMatrix._fields_]
    assert fields == [0x3FEC0, 0x12340, 0x2BCD0, 64, 16, 5, 1]
    # the constants that compiled kernels hold
    found = decode(0x4000004000010000, 0)
    assert (found.swizzle_bytes, found.leading_bytes, found.stride_bytes) == (128, 16, 1024)
    found = decode(0x4000004004000000, 1)
    assert (found.swizzle_bytes, found.leading_bytes, found.stride_bytes) == (128, 16384, 1024)
