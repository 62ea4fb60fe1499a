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
    return Wgmma(types, n, *tiles, **fields)  # type: ignore[arg-type]


def _probe(name: str, wgmma: Wgmma, sets: list[Operands]) -> Probe:
    kind = {"f32": "f32", "f16": "f16x2"}.get(wgmma.types[0], "bits")
    return Probe("wgmma_sums", name, wgmma.kernel(sets), tuple(s.label for s in sets), kind)


def probes() -> Iterator[Probe]:
    for number, types in enumerate(TYPES):
        name, k = ".".join(types), K_OF[types[1]]
        if types[0] == "s32":
            sets = integer_sets(number, types, ROWS, N, k)
            yield _probe(name, _wgmma(types, N), sets)
            yield _probe(f"{name}.satfinite", _wgmma(types, N, satfinite=True), sets)
            continue
        yield _probe(name, _wgmma(types, N), random_sets(number, types, ROWS, N, k))
        if types[0] == "f32":
            yield _probe(f"{name}.thresholds", _wgmma(types, COLUMNS), threshold_sets(types, ROWS, k))
        rng = np.random.default_rng(300 + number)
        b_tile = tile_of(32, K_OF[types[1]] * CHAIN_STEPS, types[1], mn_major=False, swizzle_bytes=128)
        a_tile = tile_of(ROWS, K_OF[types[1]] * CHAIN_STEPS, types[1], mn_major=False, swizzle_bytes=128)
        sets = [
            Operands(
                f"chain of {CHAIN_STEPS}",
                codes(rng, types[1], (ROWS, k * CHAIN_STEPS), "normal"),
                codes(rng, types[2], (k * CHAIN_STEPS, 32), "normal"),
                np.zeros((ROWS, 32), np.uint32),
            )
        ]
        chain = Wgmma(types, 32, a_tile, b_tile, steps=CHAIN_STEPS, a_step_bytes=32, b_step_bytes=32)
        yield _probe(f"{name}.chain", chain, sets)
