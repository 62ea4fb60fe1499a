"""Random tensor maps over small tensors, and the statements that move their boxes."""

from __future__ import annotations

import numpy as np

from benchmarks.agreement.probe import OUT
from dsv4.emulator.text_kernel import aligned, barrier_init, copy_words, expect, wait
from dsv4.emulator.tma_descriptor import ELEMENT_BITS, ElementType, TensorMap

TILE = 1024
"""Byte offset of the tile in shared memory, behind the mbarrier."""
LOAD = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
STORE = "cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group"
REDUCE = "cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{op}.tile.bulk_group"
FENCE = "fence.proxy.async.shared::cta; bar.sync 0;\n"
DONE = "@%lead cp.async.bulk.commit_group; @%lead cp.async.bulk.wait_group 0;\n"
FLOATS = ("f16", "bf16", "f32", "f32.ftz", "f64")
MAX_MEMORY_BYTES = 1 << 15
MAX_TILE_BYTES = 1 << 12
PATTERN = 0xA5A5A5A5


def random_map(
    rng: np.random.Generator, element_type: ElementType, *, swizzle_bytes: int, strided: bool, rank: int = 0
) -> tuple[TensorMap, np.ndarray]:
    """A map over an aligned array of random bytes: ragged edges, gaps between rows, element strides if ``strided``."""
    size = ELEMENT_BITS[element_type] // 8
    while True:
        drawn = rank or int(rng.integers(1, 6))
        drawn = max(drawn, 2) if swizzle_bytes else drawn
        quantum = max(16 // size, 1)
        widest = (swizzle_bytes or 64) // size
        inner = int(rng.integers(1, max(widest // quantum, 1) + 1)) * quantum
        box = (inner, *(int(rng.integers(1, 6)) for _ in range(drawn - 1)))
        dims = tuple(int(rng.integers(1, 2 * extent + 3)) for extent in box)
        strides, reach = [], dims[0] * size
        for extent in dims[1:]:
            stride = -(-reach // 16) * 16 + 16 * int(rng.integers(0, 3))
            strides.append(stride)
            reach = stride * extent
        rows_bytes = int(np.prod(box[1:])) * (swizzle_bytes or inner * size)
        if reach <= MAX_MEMORY_BYTES and rows_bytes <= MAX_TILE_BYTES:
            break
    steps = tuple(int(rng.integers(1, 4)) if strided and n else 1 for n in range(drawn))
    memory = aligned(rng.integers(0, 256, -(-reach // 16) * 16 + 64, dtype=np.uint8))
    fill_nan = bool(element_type in FLOATS and rng.integers(0, 2))
    found = TensorMap(
        memory.ctypes.data, element_type, dims, tuple(strides), box, steps,
        swizzle_bytes=swizzle_bytes, fill_nan=fill_nan, spans_fetch=False,
    )  # fmt: skip
    return found, memory


def box_bytes(tensor_map: TensorMap) -> int:
    """Bytes that a load of one box moves: with an element stride of s every s-th element."""
    steps = tensor_map.element_strides or (1,) * tensor_map.rank
    counts = [-(-extent // step) for extent, step in zip(tensor_map.box, steps, strict=True)]
    return int(np.prod([tensor_map.box[0], *counts[1:]])) * ELEMENT_BITS[tensor_map.element_type] // 8


def tile_words(tensor_map: TensorMap) -> int:
    """Words of shared memory that hold a tile, in whole swizzle patterns: a swizzle's rows are as long as its span."""
    row_bytes = tensor_map.box[0] * ELEMENT_BITS[tensor_map.element_type] // 8
    rows = box_bytes(tensor_map) // row_bytes
    return -(-rows * (tensor_map.swizzle_bytes or row_bytes) // 1024) * 256


def coordinates_of(rng: np.random.Generator, tensor_map: TensorMap, *, negative: bool = True) -> tuple[int, ...]:
    """Where a box may begin: inside, across an edge, outside; along dimension 0 at a multiple of 16 bytes."""
    low = -1 if negative else 0
    found = [int(rng.integers(low * extent, 2 * extent + 2)) for extent in tensor_map.box]
    quantum = max(128 // ELEMENT_BITS[tensor_map.element_type], 1)
    return (found[0] // quantum * quantum, *found[1:])


def paint(words: int, offset: int = TILE) -> str:
    """Fills shared memory with a pattern, so that bytes that nobody writes show."""
    return copy_words(
        words, load=f"mov.u32 x, {PATTERN};", store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{offset}], x;"
    )


def dump_at(words: int, position: int, offset: int = TILE) -> str:
    """Shared memory from ``offset`` on into ``out``, from word ``position`` on."""
    return copy_words(
        words,
        load=f"add.u32 %at, %at, %smem; ld.shared.b32 x, [%at+{offset}];",
        store=f"add.u64 to, %a_{OUT}, wide; st.global.b32 [to+{4 * position}], x;",
    )


def issue(opcode: str, coordinates: tuple[int, ...], *, load: bool, guard: str = "@%lead", at: int = TILE) -> str:
    """One tensor copy of map t between its box and the tile."""
    tensor = f"[%m_t, {{{', '.join(map(str, coordinates))}}}]"
    operands = f"[%smem+{at}], {tensor}, [%smem]" if load else f"{tensor}, [%smem+{at}]"
    return f"{guard} {opcode.format(rank=len(coordinates))} {operands};\n"


def loads(tensor_map: TensorMap, places: list[tuple[int, ...]], *, at: int = TILE) -> str:
    """Loads one box after the other to shared byte ``at``, dumping what lies from TILE on."""
    words, body = tile_words(tensor_map) + (at - TILE + 1023) // 1024 * 256, barrier_init()
    for n, place in enumerate(places):
        body += paint(words) + FENCE + expect(box_bytes(tensor_map)) + issue(LOAD, place, load=True, at=at)
        body += wait("%smem", n & 1) + dump_at(words, n * words) + "bar.sync 0;\n"
    return body
