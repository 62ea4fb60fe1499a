"""wgmma: how it sums. Random products in many styles, cancelling ones, and small terms beside large ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.agreement.families.wgmma_layouts import TYPES
from benchmarks.agreement.probe import Probe
from benchmarks.agreement.products import COLUMNS, Operands, integer_sets, random_sets, threshold_sets
from benchmarks.agreement.values import codes
from benchmarks.agreement.warpgroups import K_OF, ROWS, Wgmma, tile_of

N = 16
CHAIN_STEPS = 4


def _wgmma(types: tuple[str, str, str], n: int, **fields: object) -> Wgmma:
    tiles = [tile_of(mn, K_OF[types[1]], types[1], mn_major=False, swizzle_bytes=128) for mn in (ROWS, n)]
    return Wgmma(types, n, tiles[0], tiles[1], **fields)  # type: ignore[arg-type]


def _probe(name: str, wgmma: Wgmma, sets: list[Operands]) -> Probe:
    kind = {"f32": "f32", "f16": "f16x2"}.get(wgmma.types[0], "bits")
    return Probe("wgmma_sums", name, wgmma.kernel(sets), tuple(s.label for s in sets), kind)


def random_products() -> Iterator[tuple[tuple[str, str, str], Wgmma, list[Operands], str]]:
    """For each floating-point type: types of D, A, B, the instruction, the products, and the key of their probe."""
    for number, types in enumerate(TYPES):
        if types[0] != "s32":
            wgmma = _wgmma(types, N)
            yield types, wgmma, random_sets(number, types, ROWS, N, K_OF[types[1]]), f"wgmma_sums/{'.'.join(types)}"


def _chain(number: int, types: tuple[str, str, str]) -> Probe:
    """Several wgmmas in one group on the same accumulators."""
    rng = np.random.default_rng(300 + number)
    k, columns = K_OF[types[1]] * CHAIN_STEPS, 32
    a_tile, b_tile = (tile_of(mn, k, types[1], mn_major=False, swizzle_bytes=128) for mn in (ROWS, columns))
    chain = Wgmma(types, columns, a_tile, b_tile, steps=CHAIN_STEPS, a_step_bytes=32, b_step_bytes=32)
    a, b = codes(rng, types[1], (ROWS, k), "normal"), codes(rng, types[2], (k, columns), "normal")
    operands = Operands(f"chain of {CHAIN_STEPS}", a, b, np.zeros((ROWS, columns), np.uint32))
    return _probe(f"{'.'.join(types)}.chain", chain, [operands])


def probes() -> Iterator[Probe]:
    for _, wgmma, sets, key in random_products():
        yield _probe(key.partition("/")[2], wgmma, sets)
    for number, types in enumerate(TYPES):
        name, k = ".".join(types), K_OF[types[1]]
        if types[0] == "s32":
            sets = integer_sets(number, types, ROWS, N, k)
            yield _probe(name, _wgmma(types, N), sets)
            yield _probe(f"{name}.satfinite", _wgmma(types, N, satfinite=True), sets)
            continue
        if types[0] == "f32":
            yield _probe(f"{name}.thresholds", _wgmma(types, COLUMNS), threshold_sets(types, ROWS, k))
        yield _chain(number, types)
