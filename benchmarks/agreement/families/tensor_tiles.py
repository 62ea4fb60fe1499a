"""TMA loads: every rank, type, swizzle, fill, boxes across edges, element strides, multicast."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.maps import (
    FENCE,
    LOAD,
    TILE,
    coordinates_of,
    dump_at,
    loads,
    paint,
    random_map,
    tile_words,
)  # fmt: skip
from benchmarks.agreement.probe import OUT, TARGET, Probe
from benchmarks.agreement.tables import mixed_f32
from dsv4.emulator.text_kernel import Kernel, aligned, barrier_init, copy_words, expect, wait
from dsv4.emulator.tma_descriptor import ElementType, TensorMap

TYPES: tuple[ElementType, ...] = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32.ftz", "f64", "bf16")
SWIZZLES = (0, 32, 64, 128)
PLACES = 5


def _probe(name: str, tensor_map: TensorMap, memory: np.ndarray, places: list[tuple[int, ...]]) -> Probe:
    words = tile_words(tensor_map)
    arrays = {"memory": memory, OUT: aligned(np.zeros((len(places), words), np.uint32))}
    kernel = Kernel(loads(tensor_map, places), {"t": tensor_map}, arrays, read_only=("memory",), target=TARGET)
    return Probe("tensor_tiles", name, kernel, tuple(f"at {place}" for place in places))


def _random() -> Iterator[Probe]:
    for number, element_type in enumerate(TYPES):
        for swizzle in SWIZZLES:
            for strided in (False, True):
                rng = np.random.default_rng(1000 + 10 * number + swizzle * 7 + strided)
                tensor_map, memory = random_map(rng, element_type, swizzle_bytes=swizzle, strided=strided)
                places = [coordinates_of(rng, tensor_map) for _ in range(PLACES)]
                places[0] = (0,) * tensor_map.rank
                name = f"{element_type}.swizzle{swizzle}{'.strided' if strided else ''}"
                yield _probe(name, tensor_map, memory, places)


def _numbers() -> Iterator[Probe]:
    """What a load does to f32 values: tf32 rounding, flushing of subnormals; NaN fill of each type."""
    bits = mixed_f32(np.random.default_rng(1101), 512)
    bits[:64] = np.arange(64, dtype=np.uint32) << 12 | 0x3F800000  # ties of tf32
    bits[64:96] = np.arange(32, dtype=np.uint32) << 18 | 1  # subnormal numbers
    memory = aligned(bits.reshape(16, 32))
    for name in ("f32", "f32.ftz", "f32 to tf32", "f32.ftz to tf32"):
        element_type: ElementType = "f32.ftz" if "ftz" in name else "f32"
        tensor_map = TensorMap(
            memory.ctypes.data, element_type, (32, 16), (128,), (32, 16), spans_fetch=False, fill_nan=True,
            round_to_tf32="tf32" in name,
        )  # fmt: skip
        yield _probe(f"numbers.{name}", tensor_map, memory, [(0, 0), (0, 8), (28, 12)])
    for element_type in ("f16", "bf16", "f64"):
        plain = aligned(np.zeros((8, 64), np.uint8))
        size = {"f16": 2, "bf16": 2, "f64": 8}[element_type]
        tensor_map = TensorMap(
            plain.ctypes.data, element_type, (64 // size, 8), (64,), (64 // size, 8), spans_fetch=False, fill_nan=True
        )
        yield _probe(f"nan_fill.{element_type}", tensor_map, plain, [(16 // size, 3), (0, 100)])


def _multicast() -> Iterator[Probe]:
    """Each CTA of a cluster loads one part of the tile for all."""
    for cluster in (2, 4):
        memory = aligned(np.random.default_rng(1200).integers(0, 2**16, (40, 64)).astype(np.uint16))
        for swizzle in (0, 128):
            tensor_map = TensorMap(
                memory.ctypes.data, "bf16", (64, 40), (128,), (64, 8), swizzle_bytes=swizzle, spans_fetch=False
            )
            words = cluster * 256
            body = barrier_init() + expect(1024 * cluster)
            body += f"mov.b16 %h0, {(1 << cluster) - 1}; shl.b32 %r1, %rank, 3; add.u32 %r1, %r1, 12;\n"
            body += "shl.b32 %r2, %rank, 10; add.u32 %r2, %r2, %smem;\n"
            opcode = LOAD.format(rank=2) + ".multicast::cluster"
            body += f"@%lead {opcode} [%r2+{TILE}], [%m_t, {{0, %r1}}], [%smem], %h0;\n" + wait("%smem")
            body += f"mul.wide.u32 %d0, %rank, {4 * words}; add.u64 %a_{OUT}, %a_{OUT}, %d0;\n" + dump_at(words, 0)
            body += "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
            arrays = {"memory": memory, OUT: aligned(np.zeros((cluster, words), np.uint32))}
            kernel = Kernel(body, {"t": tensor_map}, arrays, cluster=cluster, target=TARGET)
            yield Probe("tensor_tiles", f"multicast.{cluster}.swizzle{swizzle}", kernel)


def _offset_tiles() -> Iterator[Probe]:
    """Swizzled tiles whose start is a multiple of 128 bytes, and no multiple of the swizzle's pattern."""
    memory = aligned(np.random.default_rng(1300).integers(0, 2**16, (16, 64)).astype(np.uint16))
    for swizzle in (32, 64, 128):
        for offset in (128, 384):
            tensor_map = TensorMap(
                memory.ctypes.data, "u16", (64, 16), (128,), (swizzle // 2, 8), swizzle_bytes=swizzle, spans_fetch=False
            )
            places: list[tuple[int, ...]] = [(0, 3)]
            words = tile_words(tensor_map) + 256
            arrays = {"memory": memory, OUT: aligned(np.zeros((1, words), np.uint32))}
            body = loads(tensor_map, places, at=TILE + offset)
            kernel = Kernel(body, {"t": tensor_map}, arrays, read_only=("memory",), target=TARGET)
            yield Probe("tensor_tiles", f"offset_{offset}.swizzle{swizzle}", kernel)


def _inner_stride() -> Iterator[Probe]:
    """An element stride of dimension 0 does not count. The wait gives up, so that a wrong count of bytes would show."""
    memory = aligned(np.arange(16 * 64, dtype=np.uint16).reshape(16, 64))
    for steps, count in (((2, 1), 256), ((4, 2), 128)):
        tensor_map = TensorMap(memory.ctypes.data, "u16", (64, 16), (128,), (32, 4), steps, spans_fetch=False)
        body = barrier_init() + paint(256) + FENCE + expect(count)
        body += f"@%lead {LOAD.format(rank=2)} [%smem+{TILE}], [%m_t, {{8, 3}}], [%smem];\n"
        body += "mov.u32 %r1, 0;\nAGAIN: mbarrier.test_wait.parity.shared.b64 %p1, [%smem], 0; @%p1 bra DONE;\n"
        body += "nanosleep.u32 1000; add.u32 %r1, %r1, 1; setp.lt.u32 %p2, %r1, 3000; @%p2 bra AGAIN; DONE:\n"
        body += "selp.b32 %r2, 1, 0, %p1; @%lead st.global.b32 [%a_out], %r2;\n" + dump_at(256, 1)
        arrays = {"memory": memory, OUT: aligned(np.zeros(257, np.uint32))}
        kernel = Kernel(body, {"t": tensor_map}, arrays, read_only=("memory",), target=TARGET)
        yield Probe("tensor_tiles", f"inner_stride_{steps[0]}_{steps[1]}", kernel)


def _replaced() -> Probe:
    """A map whose address, dimensions, stride, box and fill the kernel replaces in shared memory."""
    memory = aligned(np.arange(64 * 16, dtype=np.uint16).reshape(16, 64))
    template = TensorMap(memory.ctypes.data, "u16", (8, 8), (64,), (64, 4), spans_fetch=False)
    place = 512
    body = (
        barrier_init()
        + paint(256)
        + copy_words(
            32,
            load="add.u64 from, %m_t, wide; ld.b32 x, [from];",
            store=f"add.u32 %at, %at, %smem; st.shared.b32 [%at+{place}], x;",
        )
    )
    head = f"@%lead tensormap.replace.tile.{{}}.shared::cta.b1024.b{{}} [%smem+{place}], "
    body += "bar.warp.sync -1;\n"
    for field, bits, value in (
        ("global_address", 64, "%a_memory"),
        ("global_dim", 32, "0, 64"),
        ("global_dim", 32, "1, 13"),
        ("global_stride", 64, "0, 128"),
        ("box_dim", 32, "1, 6"),
        ("element_stride", 32, "1, 2"),
        ("swizzle_mode", 32, "3"),
    ):
        body += head.format(field, bits) + value + ";\n"
    body += "bar.warp.sync -1; tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
    body += f"[%a_map], [%smem+{place}], 128;\nfence.proxy.tensormap::generic.acquire.gpu [%a_map], 128;\n"
    body += FENCE + expect(3 * 128)
    opcode = LOAD.format(rank=2)
    body += f"@%lead {opcode} [%smem+{TILE}], [%a_map, {{0, 10}}], [%smem];\n" + wait("%smem") + dump_at(256, 0)
    arrays = {"memory": memory, "map": aligned(np.zeros(128, np.uint8)), OUT: aligned(np.zeros(256, np.uint32))}
    return Probe("tensor_tiles", "replaced_map", Kernel(body, {"t": template}, arrays, target=TARGET))


def probes() -> Iterator[Probe]:
    yield from _random()
    yield from _numbers()
    yield from _multicast()
    yield _replaced()
    yield from _offset_tiles()
    yield from _inner_stride()
