"""wgmma: where its operands lie: every swizzle and width, K-major and MN-major, A in registers, moving descriptors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.probe import Probe
from benchmarks.agreement.products import Operands
from benchmarks.agreement.values import codes
from benchmarks.agreement.warpgroups import K_OF, ROWS, Wgmma, tile_of

SWIZZLES = (0, 32, 64, 128)
Place = tuple[bool, int] | None  # MN-major and swizzle; None: registers


def _operands(seed: int, types: tuple[str, str, str], n: int, k: int) -> Operands:
    """Numbers of few exponents, so that whatever is at a wrong place shows."""
    rng = np.random.default_rng(seed)
    d_type, a_type, b_type = types
    c = rng.integers(-1000, 1000, (ROWS, n)).astype(np.uint32)
    if d_type != "s32":
        c = codes(rng, d_type, (ROWS, n), "spread2", 2)
    return Operands("", codes(rng, a_type, (ROWS, k), "spread2"), codes(rng, b_type, (k, n), "spread2"), c)


def _layout(
    name: str, types: tuple[str, str, str], n: int, a: Place, b: tuple[bool, int], gap: int = 0, **fields: object
) -> Probe:
    k = K_OF[types[1]]
    a_tile = tile_of(ROWS, k, types[1], mn_major=a[0], swizzle_bytes=a[1], gap=gap) if a else None
    b_tile = tile_of(n, k, types[2], mn_major=b[0], swizzle_bytes=b[1], gap=gap)
    wgmma = Wgmma(types, n, a_tile, b_tile, **fields)  # type: ignore[arg-type]
    seed = sum(map(ord, name)) * 31 + n
    kind = "f32" if types[0] == "f32" else "bits"
    return Probe("wgmma_layouts", name, wgmma.kernel([_operands(seed, types, n, k)]), kind=kind)


def _place(place: Place) -> str:
    return "registers" if place is None else f"{'MN' if place[0] else 'K'}-{place[1]}"


TYPES = (
    ("f32", "f16", "f16"),
    ("f16", "f16", "f16"),
    ("f32", "bf16", "bf16"),
    ("f32", "tf32", "tf32"),
    ("f32", "e4m3", "e4m3"),
    ("f32", "e4m3", "e5m2"),
    ("f16", "e5m2", "e4m3"),
    ("f32", "e5m2", "e5m2"),
    ("s32", "s8", "s8"),
    ("s32", "u8", "u8"),
    ("s32", "s8", "u8"),
    ("s32", "u8", "s8"),
)


def _chains() -> Iterator[Probe]:
    """Tiles of several K steps whose descriptors advance, as every GEMM does it; starts within a pattern."""
    for a_type, n in (("bf16", 96), ("e4m3", 64), ("tf32", 40), ("s8", 48)):
        types = ("s32" if a_type == "s8" else "f32", a_type, a_type)
        for swizzle_bytes in SWIZZLES:
            each = K_OF[a_type]
            steps = max(swizzle_bytes // 32, 1) if swizzle_bytes else 3
            k = each * steps
            tiles = [tile_of(mn, k, a_type, mn_major=False, swizzle_bytes=swizzle_bytes) for mn in (ROWS, n)]
            step_bytes = 32 if swizzle_bytes else 2 * tiles[0].leading_bytes
            wgmma = Wgmma(types, n, tiles[0], tiles[1], steps=steps, a_step_bytes=step_bytes, b_step_bytes=step_bytes)
            operands = _operands(swizzle_bytes + n, types, n, k)
            kind = "f32" if types[0] == "f32" else "bits"
            yield Probe("wgmma_layouts", f"chain.{a_type}.K-{swizzle_bytes}", wgmma.kernel([operands]), kind=kind)
    for swizzle_bytes in SWIZZLES:
        types, n, steps = ("f32", "bf16", "bf16"), 128, 4
        tiles = [tile_of(mn, 16 * steps, "bf16", mn_major=True, swizzle_bytes=swizzle_bytes) for mn in (ROWS, n)]
        a_step, b_step = (2 * (t.stride_bytes if swizzle_bytes else t.leading_bytes) for t in tiles)
        wgmma = Wgmma(types, n, tiles[0], tiles[1], steps=steps, a_step_bytes=a_step, b_step_bytes=b_step)
        operands = _operands(swizzle_bytes, types, n, 16 * steps)
        yield Probe("wgmma_layouts", f"chain.bf16.MN-{swizzle_bytes}", wgmma.kernel([operands]), kind="f32")


def _odd_descriptors() -> Iterator[Probe]:
    """Leading offsets that do not matter, and tiles that start within a swizzle pattern, with a base offset."""
    types, n = ("f32", "bf16", "bf16"), 64
    for leading in (0, 1024, 0x3FFF0):
        for swizzle_bytes in (32, 64, 128):
            tiles = [tile_of(mn, 16, "bf16", mn_major=False, swizzle_bytes=swizzle_bytes) for mn in (ROWS, n)]
            for tile in tiles:
                object.__setattr__(tile, "leading_bytes", leading)
            wgmma = Wgmma(types, n, tiles[0], tiles[1])
            name = f"leading_{leading:#x}.K-{swizzle_bytes}"
            yield Probe(
                "wgmma_layouts", name, wgmma.kernel([_operands(leading + swizzle_bytes, types, n, 16)]), kind="f32"
            )
    for rows in (1, 2, 4, 7):
        tiles = [tile_of(mn, 16, "bf16", mn_major=False, swizzle_bytes=128) for mn in (ROWS, n)]
        for tile in tiles:
            object.__setattr__(tile, "base_offset", rows)
        wgmma = Wgmma(types, n, tiles[0], tiles[1], a_start_bytes=128 * rows, b_start_bytes=128 * rows)
        yield Probe("wgmma_layouts", f"base_offset_{rows}", wgmma.kernel([_operands(rows, types, n, 16)]), kind="f32")


def probes() -> Iterator[Probe]:
    for type_name, n, gap in (("bf16", 192, 0), ("f16", 64, 1)):
        for swizzle_bytes in SWIZZLES:
            for a_mn in (False, True):
                for b_mn in (False, True):
                    one, other = (a_mn, swizzle_bytes), (b_mn, swizzle_bytes)
                    name = f"{type_name}.{_place(one)}.{_place(other)}.gap{gap}"
                    yield _layout(name, ("f32", type_name, type_name), n, one, other, gap)
    for a_swizzle in SWIZZLES:
        for b_swizzle in SWIZZLES:
            if a_swizzle != b_swizzle:
                one, other = (True, a_swizzle), (False, b_swizzle)
                yield _layout(f"bf16.{_place(one)}.{_place(other)}", ("f32", "bf16", "bf16"), 128, one, other, 1)
    for types in TYPES:
        for swizzle_bytes in SWIZZLES:
            place = (False, swizzle_bytes)
            yield _layout(f"{'.'.join(types)}.{_place(place)}", types, 48, place, place, 1)
        yield _layout(f"{'.'.join(types)}.registers", types, 24, None, (False, 128))
    for n in range(8, 257, 8):
        a: Place = [(False, 128), (True, 32), None, (True, 64)][n // 8 % 4]
        b = (True, 32) if n % 16 == 0 else (False, 64)
        types = ("f16" if n // 8 % 4 == 1 else "f32", "f16", "f16")
        yield _layout(f"n{n}.{_place(a)}.{_place(b)}", types, n, a, b)
    for scale_a, scale_b in ((-1, 1), (1, -1), (-1, -1)):
        for a in ((False, 32), None):
            name = f"scales_{scale_a}_{scale_b}.{_place(a)}"
            yield _layout(name, TYPES[2], 24, a, (False, 32), scale_a=scale_a, scale_b=scale_b)
    yield _layout("scale_d_0", TYPES[0], 8, (False, 128), (False, 128), accumulate=False)
    yield from _chains()
    yield from _odd_descriptors()
