"""TMA boxes in C against NumPy, and descriptors: encoded, decoded, refused."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
import pytest

from dsv4.emulator.tma_descriptor import DescriptorError, TensorMap, decode

SHARED_BYTES = 1 << 17
ELEMENT_BYTES = {"u8": 1, "bf16": 2, "f32": 4, "u64": 8}
SWIZZLE_BITS = {0: 0, 32: 1, 64: 2, 128: 3}


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The tile functions of the core, compiled by themselves."""
    core = resources.files("dsv4.emulator") / "core"
    target = tmp_path_factory.mktemp("tma") / "tma_tile.so"
    subprocess.run(
        [
            "gcc",
            "-O1",
            "-Wall",
            "-Werror",
            "-fsanitize=undefined",
            "-fno-sanitize-recover=all",
            "-shared",
            "-fPIC",
            "-o",
            str(target),
            str(core / "tma_tile.c"),
        ],
        check=True,
    )
    return ctypes.CDLL(str(target))


@dataclass(frozen=True)
class Tile:
    """One case: a tensor map over ``memory`` (address 0 of the tensor is its byte 0), and where the box goes."""

    map: TensorMap
    memory: np.ndarray
    coordinates: tuple[int, ...]
    shared_address: int


def random_tile(seed: int) -> Tile:
    """Ranks 1 to 5, strides with gaps, ragged edges, negative coordinates, every swizzle; 16-byte steps along a row."""
    draw = np.random.default_rng(seed)
    name = str(draw.choice(list(ELEMENT_BYTES)))
    size = ELEMENT_BYTES[name]
    rank = int(draw.integers(1, 6))
    swizzle = int(draw.choice([0, 32, 64, 128])) if rank > 1 else 0
    widest = (swizzle or 64) // size
    quantum = max(16 // size, 1)
    inner = int(draw.integers(1, widest // quantum + 1)) * quantum
    box = (inner, *(int(draw.integers(1, 6)) for _ in range(rank - 1)))
    dims = tuple(int(draw.integers(1, 2 * extent + 3)) for extent in box)
    strides, reach = [], dims[0] * size
    for extent in dims[1:]:
        stride = -(-reach // 16) * 16 + 16 * int(draw.integers(0, 3))
        strides.append(stride)
        reach = stride * extent
    memory = draw.integers(0, 256, reach + 64, dtype=np.uint8)
    first, *others = (int(draw.integers(-extent, 2 * extent + 2)) for extent in box)
    coordinates = (first // quantum * quantum, *others)
    fill_nan = bool(name in ("bf16", "f32") and draw.integers(0, 2))
    tensor_map = TensorMap(
        0x7F0000000000, name, dims, tuple(strides), box, (1,) * rank, swizzle_bytes=swizzle, fill_nan=fill_nan
    )  # type: ignore[arg-type]
    return Tile(tensor_map, memory, coordinates, 1024 * int(draw.integers(0, 8)))


def places(tile: Tile, *, stored: bool = False) -> list[tuple[int, int | None]]:
    """(shared address, global byte or None where out of bounds) of each element of the box, dimension 0 fastest.

    With `stored` a row ends where its last 16 bytes end: a store overwrites them.
    """
    m, size = tile.map, ELEMENT_BYTES[tile.map.element_type]
    mask = (1 << SWIZZLE_BITS[m.swizzle_bytes]) - 1
    pitch = m.swizzle_bytes or m.box[0] * size  # a swizzle's rows are as long as its span
    row = -(-m.dims[0] * size // 16) * 16 // size if stored else m.dims[0]
    found: list[tuple[int, int | None]] = []
    for linear, back in enumerate(itertools.product(*(range(extent) for extent in reversed(m.box)))):
        index = [c + i for c, i in zip(tile.coordinates, reversed(back), strict=True)]
        address = tile.shared_address + linear // m.box[0] * pitch + linear % m.box[0] * size
        address ^= ((address >> 7) & mask) << 4
        inside = all(0 <= i < extent for i, extent in zip(index, (row, *m.dims[1:]), strict=True))
        at = index[0] * size + sum(i * s for i, s in zip(index[1:], m.strides_bytes, strict=True))
        found.append((address, at if inside else None))
    return found


def call(function: ctypes._CFuncPtr, tile: Tile, memory: np.ndarray, shared: np.ndarray) -> None:
    function.restype = None
    raw = (ctypes.c_uint8 * 128).from_buffer_copy(tile.map.encode())
    coordinates = (ctypes.c_int32 * 5)(*tile.coordinates)
    at_global, at_shared = (array.ctypes.data_as(ctypes.c_void_p) for array in (memory, shared))
    function(raw, at_global, at_shared, ctypes.c_uint32(tile.shared_address), coordinates, None)


@pytest.mark.parametrize("seed", range(60))
def test_a_load_puts_every_byte_where_the_descriptor_says(tiles: ctypes.CDLL, seed: int) -> None:
    tile = random_tile(seed)
    size = ELEMENT_BYTES[tile.map.element_type]
    before = np.random.default_rng(seed + 1000).integers(0, 256, SHARED_BYTES, dtype=np.uint8)
    shared, expected = before.copy(), before.copy()
    call(tiles.tma_load_plain, tile, tile.memory.copy(), shared)
    outside = []
    for address, at in places(tile):
        if at is None:
            outside.append(address)
            expected[address : address + size] = 0
        else:
            expected[address : address + size] = tile.memory[at : at + size]
    if tile.map.fill_nan:
        values = [shared[address : address + size].tobytes() for address in outside]
        floats = [int.from_bytes(value, "little") << (32 - 8 * size) for value in values]
        assert all(np.isnan(np.uint32(bits).view(np.float32)) for bits in floats)
        for address in outside:
            expected[address : address + size] = shared[address : address + size]
    assert np.array_equal(shared, expected)


@pytest.mark.parametrize("seed", range(60))
def test_a_store_writes_what_lies_inside_the_tensor_up_to_whole_units(tiles: ctypes.CDLL, seed: int) -> None:
    tile = random_tile(seed)
    size = ELEMENT_BYTES[tile.map.element_type]
    shared = np.random.default_rng(seed + 2000).integers(0, 256, SHARED_BYTES, dtype=np.uint8)
    memory, expected = tile.memory.copy(), tile.memory.copy()
    call(tiles.tma_store_plain, tile, memory, shared)
    for address, at in places(tile, stored=True):
        if at is not None:
            expected[at : at + size] = shared[address : address + size]
    assert np.array_equal(memory, expected)


# rows of 16-byte pieces as the PTX ISA draws them (Swizzling Modes), the tile on a boundary of the pattern
PATTERNS = {
    (32, 16): ["01234567", "10325476"],
    (64, 16): ["01234567", "10325476", "23016745", "32107654"],
    (128, 16): ["01234567", "10325476", "23016745", "32107654", "45670123", "54761032", "67452301", "76543210"],
    (128, 32): ["01234567", "23016745", "45670123", "67452301"],
    (128, 64): ["01234567", "45670123"],
}


@pytest.mark.parametrize(("swizzle_bytes", "atom_bytes"), PATTERNS)
def test_a_swizzle_is_the_pattern_that_the_isa_draws(tiles: ctypes.CDLL, swizzle_bytes: int, atom_bytes: int) -> None:
    pieces = swizzle_bytes // 16
    rows = 16 * 8 // pieces
    tensor_map = TensorMap(
        0x1000, "u8", (16 * pieces, rows), (16 * pieces,), (16 * pieces, rows),
        swizzle_bytes=swizzle_bytes, atom_bytes=atom_bytes,
    )  # fmt: skip
    memory = np.repeat(np.arange(rows * pieces, dtype=np.uint8), 16)
    shared = np.zeros(SHARED_BYTES, np.uint8)
    call(tiles.tma_load_plain, Tile(tensor_map, memory, (0, 0), 4096), memory, shared)
    lines = shared[4096 : 4096 + 16 * 128].reshape(16, 8, 16)
    pattern = PATTERNS[swizzle_bytes, atom_bytes]
    for line in range(16):
        assert (lines[line] == lines[line][:, :1]).all()
        drawn = [8 * line + int(piece) for piece in pattern[line % len(pattern)]]
        assert lines[line, :, 0].tolist() == drawn


@pytest.mark.parametrize("seed", range(20))
def test_a_descriptor_survives_encoding_and_only_its_first_64_bytes_count(seed: int) -> None:
    tensor_map = random_tile(seed).map
    raw = tensor_map.encode()
    assert len(raw) == 128
    again = decode(raw[:64] + bytes(range(64)))
    assert replace(again, spans_fetch=None) == replace(tensor_map, spans_fetch=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"box": (24, 3)}, "box[0]: found 48 bytes"),
        ({"box": (8, 257)}, "box[1]: found 257"),
        ({"strides_bytes": (40,)}, "strides_bytes[0]: found 40"),
        ({"address": 8}, "address: found 0x8"),
        ({"swizzle_bytes": 48}, "swizzle_bytes: found 48"),
        ({"atom_bytes": 32}, "atom_bytes: found 32 under a swizzle of 32 bytes"),
        ({"strides_bytes": ()}, "strides_bytes: found 0 entries"),
    ],
)
def test_a_map_that_the_driver_would_refuse_is_refused_with_the_field(change: dict[str, object], said: str) -> None:
    good = TensorMap(0x1000, "bf16", (64, 10), (128,), (16, 3), (1, 1), swizzle_bytes=32)
    good.encode()
    with pytest.raises(DescriptorError) as caught:
        replace(good, **change).encode()  # type: ignore[arg-type]
    assert said in str(caught.value)
