"""TMA stores and reductions: boxes across edges, swizzles, every operation of every type."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.floats import halves
from benchmarks.agreement.maps import DONE, FENCE, REDUCE, STORE, TILE, coordinates_of, issue, random_map, tile_words
from benchmarks.agreement.probe import OUT, TARGET, Probe
from benchmarks.agreement.tables import mixed_f32, mixed_u32, mixed_u64
from dsv4.emulator.text_kernel import Kernel, aligned, fill
from dsv4.emulator.tma_descriptor import ElementType, TensorMap

SWIZZLES = (0, 32, 64, 128)
TYPES: tuple[ElementType, ...] = ("u8", "bf16", "f32", "u64")
REDUCTIONS: dict[ElementType, tuple[str, ...]] = {
    "u32": ("add", "min", "max", "inc", "dec", "and", "or", "xor"),
    "s32": ("add", "min", "max", "and", "or", "xor"),
    "u64": ("add", "min", "max", "and", "or", "xor"),
    "s64": ("min", "max"),
    "f16": ("add", "min", "max"),
    "bf16": ("add", "min", "max"),
    "f32": ("add",),
    "f32.ftz": ("add",),
}
DTYPES = {"u32": "u4", "s32": "u4", "u64": "u8", "s64": "u8", "f16": "u2", "bf16": "u2", "f32": "u4", "f32.ftz": "u4"}
PLACES = 3


def _store(name: str, element_type: ElementType, swizzle: int, seed: int, *, strided: bool, negative: bool) -> Probe:
    rng = np.random.default_rng(seed)
    tensor_map, memory = random_map(rng, element_type, swizzle_bytes=swizzle, strided=strided)
    words = tile_words(tensor_map)
    source = aligned(rng.integers(0, 256, 4 * words, dtype=np.uint8))
    body = fill("source", words, TILE) + FENCE
    for _ in range(PLACES):
        place = coordinates_of(rng, tensor_map, negative=negative)
        if negative:
            place = (-tensor_map.box[0] // 2 if tensor_map.box[0] >= 32 else -abs(place[0]), *place[1:])
        body += issue(STORE, place, load=False) + DONE
    kernel = Kernel(body, {"t": tensor_map}, {"source": source, OUT: memory}, target=TARGET)
    return Probe("tensor_writes", name, kernel, may_fail=negative)


def _stores() -> Iterator[Probe]:
    for number, element_type in enumerate(TYPES):
        for swizzle in SWIZZLES:
            for strided in (False, True):
                name = f"store.{element_type}.swizzle{swizzle}{'.strided' if strided else ''}"
                seed = 2000 + 10 * number + swizzle * 7 + strided
                yield _store(name, element_type, swizzle, seed, strided=strided, negative=False)
        name = f"store_negative.{element_type}"
        yield _store(name, element_type, 0, 2050 + number, strided=False, negative=True)


def _values(rng: np.random.Generator, element_type: str, count: int) -> np.ndarray:
    if element_type in ("f16", "bf16"):
        return halves(rng, count, 5 if element_type == "f16" else 8)
    if element_type.startswith("f32"):
        return mixed_f32(rng, count)
    return mixed_u64(rng, count) if element_type.endswith("64") else mixed_u32(rng, count)


def _reductions() -> Iterator[Probe]:
    """Eight rows of 128 bytes at (0, 0)."""
    rng = np.random.default_rng(2100)
    for element_type, operations in REDUCTIONS.items():
        size = np.dtype(DTYPES[element_type]).itemsize
        columns = 128 // size
        for op in operations:
            before = aligned(_values(rng, element_type, 1024 // size).reshape(8, columns))
            added = aligned(_values(rng, element_type, 1024 // size))
            if op in ("inc", "dec"):
                added = aligned((added & 0xFF).astype(added.dtype))
                before &= 0x1FF
            tensor_map = TensorMap(
                before.ctypes.data, element_type, (columns, 8), (128,), (columns, 8), spans_fetch=False
            )
            body = fill("source", 256, TILE) + FENCE
            body += issue(REDUCE.replace("{op}", op), (0, 0), load=False) + DONE
            kernel = Kernel(body, {"t": tensor_map}, {"source": added, OUT: before}, target=TARGET)
            kind = element_type.split(".")[0] if element_type.startswith(("f", "bf")) else "bits"
            yield Probe("tensor_writes", f"{op}.{element_type}", kernel, kind=kind)


def _ragged() -> Iterator[Probe]:
    """Reductions and stores into rows that end within 16 bytes, and within a box."""
    rng = np.random.default_rng(2200)
    forms: tuple[tuple[str, ElementType], ...] = (
        ("add", "u32"), ("max", "s32"), ("xor", "u64"), ("add", "f16"), ("min", "bf16"), ("add", "f32"),
    )  # fmt: skip
    for op, element_type in forms:
        size = np.dtype(DTYPES[element_type]).itemsize
        columns = 32 // size + 1
        before = aligned(_values(rng, element_type, 1024 // size)[: 512 // size].reshape(8, 64 // size))
        added = aligned(_values(rng, element_type, 1024 // size)[: 512 // size])
        tensor_map = TensorMap(
            before.ctypes.data, element_type, (columns, 7), (64,), (64 // size, 8), spans_fetch=False
        )
        body = fill("source", 128, TILE) + FENCE + issue(REDUCE.replace("{op}", op), (0, 0), load=False) + DONE
        kernel = Kernel(body, {"t": tensor_map}, {"source": added, OUT: before}, target=TARGET)
        yield Probe("tensor_writes", f"ragged.{op}.{element_type}", kernel)


def probes() -> Iterator[Probe]:
    yield from _stores()
    yield from _reductions()
    yield from _ragged()
